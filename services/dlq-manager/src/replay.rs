//! What becomes of a replay: the ledger's outcome as an answer. A letter whose event is gone, or never was one, is
//! published as a new event from its own copy. Called by the replay routes.

use bytes::Bytes;
use relay_core::bundle::BundleWriter;
use relay_core::event::{Event, EventType, PAYLOAD_BYTES_MAX, check_payload};
use relay_core::ids::{DeadLetterId, DeliveryId, EndpointId, EventId};
use relay_core::problem::ProblemType;
use relay_core::subject::HINT_DUE;
use relay_links::Links;
use relay_runtime::problem::ProblemResponse;
use relay_runtime::random::bytes10;
use relay_store::{LetterEvent, ReplayOutcome};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::refusal;

/// The shard of bundles that ingest uses too.
const SHARD: u16 = 0;

/// A replay that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Replay)]
pub struct ReplayShape {
    /// The letter.
    original_dlq_id: Uuid,
    /// The event that is sent: the same one, so that a receiver that had processed it after all can tell. A new one
    /// only where the first is not stored any more.
    new_event_id: Uuid,
    /// The delivery that was opened again; null for a new event, whose deliveries follow.
    delivery_id: Option<Uuid>,
    /// Always true: it is due now.
    enqueued: bool,
}

impl ReplayShape {
    fn new(letter: DeadLetterId, event: EventId, delivery: Option<DeliveryId>) -> Self {
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

/// Finishes the replay of one letter, or says why it doesn't go.
pub async fn settle(links: &Links, letter: DeadLetterId, outcome: ReplayOutcome) -> Result<Replayed, ProblemResponse> {
    match outcome {
        ReplayOutcome::Replayed { event, endpoint, delivery } => {
            Ok(Replayed { shape: ReplayShape::new(letter, event, Some(delivery)), endpoint: Some(endpoint) })
        }
        ReplayOutcome::AsNewEvent(copy) => {
            let event = publish(links, copy).await?;
            // In this order: a crash in between leaves a letter that can be replayed again, not one that was lost.
            links.store.mark_replayed(letter).await.map_err(refusal::ledger)?;
            Ok(Replayed { shape: ReplayShape::new(letter, event, None), endpoint: None })
        }
        refused => Err(refuse(&refused)),
    }
}

/// Tells the scheduler that something is due.
pub async fn wake(links: &Links) {
    links.bus.hint(HINT_DUE, Bytes::new()).await;
}

async fn publish(links: &Links, copy: LetterEvent) -> Result<EventId, ProblemResponse> {
    let not_an_event = |why: String| {
        ProblemResponse::new(ProblemType::NotReplayable, format!("The message is no event that could be sent: {why}"))
    };
    let event_type = EventType::parse(&copy.event_type).map_err(|e| not_an_event(e.to_string()))?;
    check_payload(&copy.payload, PAYLOAD_BYTES_MAX).map_err(|e| not_an_event(e.to_string()))?;
    let accepted_at = links.clock.now();
    let event = Event {
        id: EventId::fresh(accepted_at, bytes10()),
        tenant: copy.tenant,
        event_type,
        endpoint: copy.endpoint,
        key: None,
        accepted_at,
        trace: None,
        payload: copy.payload,
    };
    let mut bundle = BundleWriter::default();
    bundle.push(&event);
    links.bus.publish_events(SHARD, bundle.finish()).await.map_err(|error| refusal::unpublished(&error))?;
    Ok(event.id)
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
        ReplayOutcome::Replayed { .. } | ReplayOutcome::AsNewEvent(_) => {
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
