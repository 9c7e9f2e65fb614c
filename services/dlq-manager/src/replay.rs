//! What becomes of a replay: the ledger's outcome as an answer. On request, and where the event is gone or never was
//! one, a letter is published as a new event. Called by the replay routes and the runner of jobs.

use bytes::Bytes;
use relay_bus::PublishError;
use relay_core::bundle::BundleWriter;
use relay_core::event::{Event, EventType, PAYLOAD_BYTES_MAX, check_payload};
use relay_core::ids::{DeadLetterId, DeliveryId, EndpointId, EventId, TenantId};
use relay_core::problem::ProblemType;
use relay_core::subject::HINT_DUE;
use relay_links::Links;
use relay_runtime::problem::ProblemResponse;
use relay_runtime::random::bytes10;
use relay_store::{LetterEvent, ReplayOutcome, StoreError};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::refusal;

/// A replay that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Replay)]
pub struct ReplayShape {
    /// The letter.
    original_dlq_id: Uuid,
    /// The event that is sent: the same one, so that a receiver that had processed it after all can tell. A new one
    /// on request, and where the first is not stored any more.
    new_event_id: Uuid,
    /// The delivery; null for a new event that is for all endpoints that match.
    delivery_id: Option<Uuid>,
    /// Always true: it is due now.
    enqueued: bool,
}

impl ReplayShape {
    /// What is answered.
    pub fn new(letter: DeadLetterId, event: EventId, delivery: Option<DeliveryId>) -> Self {
        Self { original_dlq_id: letter.0, new_event_id: event.0, delivery_id: delivery.map(|d| d.0), enqueued: true }
    }
}

/// A letter that was replayed.
#[derive(Debug)]
pub struct Replayed {
    /// The answer.
    pub shape: ReplayShape,
    /// The endpoint whose delivery was opened again.
    pub endpoint: Option<EndpointId>,
}

/// Replays one letter, as itself or as a new event, or says why it doesn't go.
pub async fn replay_one(
    links: &Links,
    tenant: Option<&TenantId>,
    letter: DeadLetterId,
    force: bool,
    as_new_event: bool,
) -> Result<Replayed, ProblemResponse> {
    if !as_new_event {
        match links.store.replay_one(tenant, letter, force).await.map_err(refusal::ledger)? {
            ReplayOutcome::NeedsNewEvent => {}
            ReplayOutcome::Replayed { event, endpoint, delivery } => {
                let shape = ReplayShape::new(letter, event, Some(delivery));
                return Ok(Replayed { shape, endpoint: Some(endpoint) });
            }
            refused => return Err(refuse(&refused)),
        }
    }
    let event = send_as_new(links, tenant, letter, force).await?;
    // In this order: a crash in between leaves a letter that is replayed as the same event again.
    links.store.mark_replayed(letter, event.id).await.map_err(refusal::ledger)?;
    let delivery = event.endpoint.map(|endpoint| DeliveryId::derive(event.id, endpoint));
    Ok(Replayed { shape: ReplayShape::new(letter, event.id, delivery), endpoint: None })
}

/// Why a letter did not go out as a new event.
#[derive(Debug)]
pub enum NotSent {
    /// The ledger says no.
    Refused(ReplayOutcome),
    /// Its bytes or its type are no event's.
    NoEvent(String),
    /// The ledger does not answer, or could not.
    Ledger(StoreError),
    /// The accept log did not take it.
    Unpublished(PublishError),
}

impl From<NotSent> for ProblemResponse {
    fn from(not: NotSent) -> Self {
        match not {
            NotSent::Refused(outcome) => refuse(&outcome),
            NotSent::NoEvent(why) => {
                let detail = format!("The message is no event that could be sent: {why}");
                Self::new(ProblemType::NotReplayable, detail)
            }
            NotSent::Ledger(error) => refusal::ledger(error),
            NotSent::Unpublished(error) => refusal::unpublished(&error),
        }
    }
}

/// Publishes a letter as a new event. It does not count as replayed yet; until it does, a repetition publishes the
/// same event.
pub async fn send_as_new(
    links: &Links,
    tenant: Option<&TenantId>,
    letter: DeadLetterId,
    force: bool,
) -> Result<LetterEvent, NotSent> {
    let fresh = EventId::fresh(links.clock.now(), bytes10());
    let reserved = links.store.reserve_new_event(tenant, letter, force, fresh).await.map_err(NotSent::Ledger)?;
    let copy = reserved.map_err(NotSent::Refused)?;
    let event_type = EventType::parse(&copy.event_type).map_err(|e| NotSent::NoEvent(e.to_string()))?;
    check_payload(&copy.payload, PAYLOAD_BYTES_MAX).map_err(|e| NotSent::NoEvent(e.to_string()))?;
    let event = Event {
        id: copy.id,
        tenant: copy.tenant.clone(),
        event_type,
        endpoint: copy.endpoint,
        key: None,
        accepted_at: links.clock.now(),
        trace: None,
        payload: copy.payload.clone(),
    };
    let mut bundle = BundleWriter::default();
    bundle.push(&event);
    links.bus.publish_events(bundle.finish()).await.map_err(NotSent::Unpublished)?;
    Ok(copy)
}

/// Tells the scheduler that something is due.
pub async fn wake(links: &Links) {
    links.bus.hint(HINT_DUE, Bytes::new()).await;
}

/// Why a letter isn't replayed.
fn refuse(outcome: &ReplayOutcome) -> ProblemResponse {
    let (kind, detail) = match outcome {
        ReplayOutcome::NotFound => return refusal::unknown_letter(),
        ReplayOutcome::ReplayedRecently => {
            (ProblemType::ReplayedRecently, "Event was replayed less than 1 hour ago. Use force=True to override.")
        }
        ReplayOutcome::InProgress => (ProblemType::DeliveryInProgress, "The delivery is open already."),
        ReplayOutcome::Delivered => {
            (ProblemType::NotReplayable, "The delivery succeeded after all. Use force=True to send it again.")
        }
        ReplayOutcome::InactiveEndpoint => (ProblemType::EndpointInactive, "Endpoint is inactive"),
        ReplayOutcome::UnknownEndpoint => (ProblemType::NotReplayable, "The endpoint doesn't exist."),
        ReplayOutcome::NotReplayable => (ProblemType::NotReplayable, "There is no event any more that could be sent."),
        // Taken care of by the caller.
        ReplayOutcome::Replayed { .. } | ReplayOutcome::SentAsNewEvent(_) | ReplayOutcome::NeedsNewEvent => {
            return ProblemResponse::internal("a replay that goes was refused");
        }
    };
    ProblemResponse::new(kind, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_statuses_of_the_interface() {
        for (outcome, status) in [
            (ReplayOutcome::NotFound, 404),
            (ReplayOutcome::ReplayedRecently, 409),
            (ReplayOutcome::InProgress, 409),
            (ReplayOutcome::Delivered, 409),
            (ReplayOutcome::UnknownEndpoint, 409),
            (ReplayOutcome::NotReplayable, 409),
            (ReplayOutcome::InactiveEndpoint, 422),
        ] {
            assert_eq!(refuse(&outcome).0.status(), status, "{outcome:?}");
        }
    }
}
