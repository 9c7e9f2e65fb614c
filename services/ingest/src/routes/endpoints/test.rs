//! `POST /api/v1/endpoints/{endpoint_id}/test`: an event to this endpoint alone, through the whole pipeline, and what
//! became of its first attempt.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use relay_core::delivery::Status;
use relay_core::endpoint::{Endpoint, TEST_EVENT_TYPE};
use relay_core::event::{EventType, check_payload};
use relay_core::ids::{DeliveryId, EventId, TenantId};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_runtime::random;
use relay_store::{DeliveryView, EventView};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::admit::{self, Draft};
use crate::api::Api;
use crate::fields::{self, Faults, is_null};
use crate::query;
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};
use crate::shapes::AttemptShape;

/// How long a request waits for the first attempt's end.
const WAIT: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Tests that wait at once.
const TESTS_MAX: usize = 32;
static TESTS: Semaphore = Semaphore::const_new(TESTS_MAX);

/// What is sent, unless the request says otherwise.
const PAYLOAD: &[u8] = br#"{"test":true,"message":"A test event from WebhookRelay"}"#;

const FIELDS: &[&str; 2] = &["event_type", "payload"];

/// Body of a test; may be left out.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct TestRequest {
    /// A type that the endpoint takes; the default passes any filter.
    #[schema(default = "webhook.test", max_length = 255)]
    event_type: Option<String>,
    /// Any JSON value.
    payload: Option<serde_json::Value>,
}

/// What became of a test.
#[derive(Debug, Serialize, ToSchema)]
pub struct TestOutcome {
    event_id: Uuid,
    delivery_id: Uuid,
    endpoint_id: Uuid,
    event_type: String,
    /// That of the delivery: `delivered`, `failed` (to be tried again), `dead_lettered`; `pending` or `delivering` where
    /// there was no answer yet.
    status: &'static str,
    /// Why there was no attempt yet, or why the last one failed.
    detail: Option<String>,
    attempts: Vec<AttemptShape>,
}

/// Send a test event
///
/// An event for this endpoint alone goes through the whole pipeline, signed and recorded as every other (also its
/// failures: they are tried again and end as a dead letter). The answer comes after the first attempt, or after 10 seconds
/// with the ids by which to look it up.
#[utoipa::path(
    post,
    path = "/api/v1/endpoints/{endpoint_id}/test",
    tag = "endpoints",
    operation_id = "test_endpoint",
    params(("endpoint_id" = uuid::Uuid, Path)),
    request_body(content = Option<TestRequest>, example = json!({"event_type": "order.created", "payload": {"order_id": 42}})),
    responses(
        (status = 200, description = "The event was sent, or waits", body = TestOutcome),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn test(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    said: SaysJson,
    sent: Sent,
) -> Result<Json<TestOutcome>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let (event_type, payload) = match sent {
        Sent(Ok(body)) if body.is_empty() => (EventType::trusted(TEST_EVENT_TYPE), Bytes::from_static(PAYLOAD)),
        sent => read(&body::json(said, sent, api.payload_bytes_max)?, api.payload_bytes_max)?,
    };
    let _turn = TESTS.try_acquire().map_err(|_| Refusal::overloaded("Too many tests wait"))?;
    let tenant = caller.tenant;
    let endpoint = api.endpoint(&tenant, id).await?;
    let draft = Draft { endpoint: Some(id), event_type, key: None, trace: None, payload };
    admit::fits(&draft, &tenant, Some(&endpoint))?;
    let now = admit::accept_time(api.links.clock.now());
    let event = admit::event(draft, tenant.clone(), now, random::bytes10());
    let outcome = TestOutcome {
        event_id: event.id.0,
        delivery_id: DeliveryId::derive(event.id, id).0,
        endpoint_id: id.0,
        event_type: event.event_type.as_str().to_owned(),
        status: Status::Pending.as_str(),
        detail: endpoint.paused.then(|| "The endpoint is paused: the event waits until it is resumed".to_owned()),
        attempts: Vec::new(),
    };
    let event_id = event.id;
    api.committer.submit(event).await?;
    let view = watch(&api, &tenant, &endpoint, event_id).await?;
    Ok(Json(match view {
        Some(view) => outcome.of(&view),
        None => outcome,
    }))
}

/// The event after its first attempt, or as it is when the time is up.
async fn watch(
    api: &Api,
    tenant: &TenantId,
    endpoint: &Endpoint,
    event: EventId,
) -> Result<Option<EventView>, Refusal> {
    let end = Instant::now() + WAIT;
    loop {
        let view = match api.event(tenant, event).await {
            Ok(view) => Some(view),
            // Accepted it is: only nobody can see it yet.
            Err(Refusal::UnknownEvent | Refusal::Unavailable(_) | Refusal::Overloaded(..)) => None,
            Err(refusal) => return Err(refusal),
        };
        // An attempt can be seen a moment before its delivery has moved on.
        let over = view.as_ref().is_some_and(|v| {
            let moved = |d: &DeliveryView| !matches!(d.status, Status::Pending | Status::Delivering);
            endpoint.paused || v.deliveries.iter().any(moved)
        });
        if over || Instant::now() >= end {
            return Ok(view);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl TestOutcome {
    fn of(self, view: &EventView) -> Self {
        let delivery = view.deliveries.first();
        Self {
            status: delivery.map_or(self.status, |d| d.status.as_str()),
            detail: delivery.and_then(|d| d.last_error.clone()).or(self.detail),
            attempts: view.attempts.iter().map(AttemptShape::new).collect(),
            ..self
        }
    }
}

/// `payload_max` is in bytes.
fn read(body: &Bytes, payload_max: usize) -> Result<(EventType, Bytes), Refusal> {
    let [event_type, payload] = fields::read(body, FIELDS)?;
    let mut faults = Faults::default();
    let event_type = event_type.filter(|v| !is_null(v)).map_or(Some(EventType::trusted(TEST_EVENT_TYPE)), |value| {
        let text = faults.string("event_type", value)?;
        EventType::parse(&text).map_err(|why| faults.add("event_type", why)).ok()
    });
    let payload = match payload {
        None => Bytes::from_static(PAYLOAD),
        Some(value) => body.slice_ref(value.get().as_bytes()),
    };
    if let Err(why) = check_payload(&payload, payload_max) {
        faults.add("payload", why);
    }
    match event_type {
        Some(event_type) if faults.is_empty() => Ok((event_type, payload)),
        _ => Err(Refusal::Invalid(faults.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Bytes) -> Result<(EventType, Bytes), Refusal> {
        super::read(&body, 1000)
    }

    #[test]
    fn type_and_payload_are_optional_and_checked() {
        let (event_type, payload) = read(Bytes::from_static(b"{}")).unwrap();
        assert_eq!((event_type.as_str(), &payload[..]), (TEST_EVENT_TYPE, PAYLOAD));
        assert!(serde_json::from_slice::<serde_json::Value>(PAYLOAD).is_ok());
        let (event_type, payload) = read(Bytes::from_static(br#"{"event_type":"a.b","payload":{ "x":1}}"#)).unwrap();
        assert_eq!((event_type.as_str(), &payload[..]), ("a.b", &br#"{ "x":1}"#[..]));
        assert!(matches!(read(Bytes::from_static(br#"{"event_type":"a..b"}"#)), Err(Refusal::Invalid(_))));
        assert!(matches!(read(Bytes::from_static(b"7")), Err(Refusal::Invalid(_))));
    }
}
