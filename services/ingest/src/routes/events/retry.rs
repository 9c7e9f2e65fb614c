//! `POST /api/v1/events/{event_id}/retry`: an event's deliveries are sent again, or at once.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use relay_core::ids::{DeliveryId, EndpointId, EventId, TenantId};
use relay_core::subject::HINT_DUE;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_store::ResendOutcome;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::fields::{self, Faults, is_null};
use crate::query;
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};

/// Bytes of a request at most.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Deliveries that one statement sends again.
const STEP: i64 = 1000;
/// The fields of a request.
const FIELDS: &[&str; 1] = &["endpoint_id"];

/// Body of a retry; may be left out.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct RetryRequest {
    /// Only the delivery to this endpoint; without it all deliveries of the event, also those that succeeded.
    endpoint_id: Option<Uuid>,
}

/// What a retry did.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Retry)]
pub struct RetryShape {
    event_id: Uuid,
    /// How many deliveries are due now.
    resent: usize,
    /// One per delivery.
    results: Vec<RetryResult>,
}

/// What became of one delivery.
#[derive(Debug, Serialize, ToSchema)]
pub struct RetryResult {
    endpoint_id: Uuid,
    delivery_id: Uuid,
    /// `reopened` (it was closed and begins a new round of attempts), `due_now` (it waited), `in_progress` (it is being
    /// sent, and was left alone) or `endpoint_inactive`.
    #[schema(example = "reopened")]
    outcome: &'static str,
}

/// Send an event again
///
/// A delivery that waits for its time is due now; one that ended, however it ended, begins a new round of attempts under
/// the same event id. What is being sent at this moment is left alone.
#[utoipa::path(
    post,
    path = "/api/v1/events/{event_id}/retry",
    tag = "events",
    operation_id = "retry_event",
    params(("event_id" = uuid::Uuid, Path)),
    request_body = Option<RetryRequest>,
    responses(
        (status = 202, description = "What became of each delivery", body = RetryShape),
        (status = 404, description = "There is no such event, or it has no delivery to this endpoint", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The one delivery is being sent", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn retry(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    said: SaysJson,
    sent: Sent,
) -> Result<(StatusCode, Json<RetryShape>), Refusal> {
    let id: EventId = query::id("event_id", &id)?;
    let endpoint = match sent {
        Sent(Ok(body)) if body.is_empty() => None,
        sent => read(&body::json(said, sent, BODY_BYTES_MAX)?)?,
    };
    let tenant = caller.tenant;
    let event = api.stored_id(&tenant, id).await?;
    let done = match endpoint {
        Some(endpoint) => vec![one(&api, &tenant, event, endpoint).await?],
        None => all(&api, &tenant, event).await?,
    };
    let resent = done.iter().filter(|(_, outcome)| is_due(*outcome)).count();
    if resent > 0 {
        api.links.bus.hint(HINT_DUE, Bytes::new()).await;
    }
    let results = done
        .into_iter()
        .map(|(endpoint, outcome)| RetryResult {
            endpoint_id: endpoint.0,
            delivery_id: DeliveryId::derive(event, endpoint).0,
            outcome: text(outcome),
        })
        .collect();
    Ok((StatusCode::ACCEPTED, Json(RetryShape { event_id: event.0, resent, results })))
}

fn read(body: &Bytes) -> Result<Option<EndpointId>, Refusal> {
    let [endpoint] = fields::read(body, FIELDS)?;
    let mut faults = Faults::default();
    let endpoint = endpoint.filter(|v| !is_null(v)).and_then(|value| faults.id("endpoint_id", value));
    if faults.is_empty() { Ok(endpoint) } else { Err(Refusal::Invalid(faults.0)) }
}

/// The one delivery, which then is its circuit's probe.
async fn one(
    api: &Api,
    tenant: &TenantId,
    event: EventId,
    endpoint: EndpointId,
) -> Result<(EndpointId, ResendOutcome), Refusal> {
    let outcomes = api.links.store.resend(tenant, event, &[endpoint]).await?;
    match outcomes.first() {
        None | Some(ResendOutcome::NotFound) => Err(Refusal::UnknownDelivery),
        Some(ResendOutcome::InactiveEndpoint) => Err(Refusal::InactiveEndpoint),
        Some(ResendOutcome::InProgress) => Err(Refusal::InProgress),
        Some(outcome) => {
            api.links.circuits.half_open(endpoint).await;
            Ok((endpoint, *outcome))
        }
    }
}

/// All of them; circuits are left alone.
async fn all(api: &Api, tenant: &TenantId, event: EventId) -> Result<Vec<(EndpointId, ResendOutcome)>, Refusal> {
    let store = &api.links.store;
    let mut done = Vec::new();
    let mut after = None;
    loop {
        let endpoints = store.delivery_endpoints(tenant, event, after, STEP).await?;
        let Some(last) = endpoints.last() else { return Ok(done) };
        after = Some(*last);
        let outcomes = store.resend(tenant, event, &endpoints).await?;
        done.extend(endpoints.into_iter().zip(outcomes));
    }
}

fn is_due(outcome: ResendOutcome) -> bool {
    matches!(outcome, ResendOutcome::Reopened | ResendOutcome::DueNow)
}

fn text(outcome: ResendOutcome) -> &'static str {
    match outcome {
        ResendOutcome::Reopened => "reopened",
        ResendOutcome::DueNow => "due_now",
        ResendOutcome::InactiveEndpoint => "endpoint_inactive",
        // One that went between the two statements was being closed by its result.
        ResendOutcome::InProgress | ResendOutcome::NotFound => "in_progress",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_endpoint_or_none() {
        let read = |body: &'static str| super::read(&Bytes::from_static(body.as_bytes()));
        assert_eq!(read("{}"), Ok(None));
        assert_eq!(read(r#"{"endpoint_id":null}"#), Ok(None));
        let id = r#"{"endpoint_id":"00000000-0000-0000-0000-000000000007"}"#;
        assert_eq!(read(id), Ok(Some(EndpointId(Uuid::from_u128(7)))));
        for bad in [r#"{"endpoint_id":7}"#, r#"{"endpoint_id":"x"}"#, "[]"] {
            assert!(matches!(read(bad), Err(Refusal::Invalid(_))), "{bad}");
        }
        assert!(matches!(read("{"), Err(Refusal::Malformed(_))));
    }
}
