//! `POST /api/v1/events`: step 1 of an event's way. The 202 means that the event is on disk in the accept log.
//!
//! This is the hot path: one parse, one slice of the body, one place in the committer's queue.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use relay_core::ids::TenantId;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_store::EventView;
use tokio::time::timeout;

use crate::admit::{self, Draft, Headers};
use crate::api::Api;
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};
use crate::shapes::EventShape;

/// How long a request with a key waits for Postgres to say whether the key was used; then the first one wins.
pub(super) const KEY_LOOK_UP: Duration = Duration::from_millis(100);

/// An event to be sent.
// For the document: the request itself is read by `admit::draft`.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct EventRequest {
    /// The one endpoint the event is for; without it, every active endpoint whose filter matches.
    endpoint_id: Option<uuid::Uuid>,
    /// Dot-separated tokens of visible ASCII, at most 255 characters.
    event_type: String,
    /// Any JSON value; its bytes are kept, signed and sent exactly as they came.
    payload: serde_json::Value,
    /// 1 to 255 characters: equal requests with equal keys are one event for at least 24 hours. Can be given as
    /// header `Idempotency-Key` instead.
    idempotency_key: Option<String>,
}

/// The headers that count here: taken one by one, as a copy of all would be the dearest step of the hot path.
pub struct Head {
    /// `Idempotency-Key`.
    pub(super) key: Option<HeaderValue>,
    /// `traceparent`.
    pub(super) trace: Option<HeaderValue>,
}

impl<S: Sync> FromRequestParts<S> for Head {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let header = |name| parts.headers.get(name).cloned();
        Ok(Self { key: header("idempotency-key"), trace: header("traceparent") })
    }
}

/// A request that is taken although others wait: asked before its body is read, so that a refusal costs little.
pub struct Taken;

impl FromRequestParts<Api> for Taken {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        // Without a caller the next extractor refuses it.
        let Some(caller) = parts.extensions.get::<Caller>() else { return Ok(Self) };
        api.committer.takes(&caller.tenant).map(|()| Self).map_err(|busy| {
            let refusal = busy.into();
            api.counters.refusal(&refusal);
            refusal
        })
    }
}

/// Send an event
#[utoipa::path(
    post,
    path = "/api/v1/events",
    tag = "events",
    operation_id = "send_event",
    params(("Idempotency-Key" = Option<String>, Header, description = "Instead of the field `idempotency_key`"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context, sent on to the endpoints")),
    request_body = EventRequest,
    security(("api_key" = ["events:write"])),
    responses(
        (status = 202, description = "On disk; deliveries follow", body = EventShape),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The idempotency key was used for another event", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn post(
    _taken: Taken,
    State(api): State<Api>,
    caller: Caller,
    head: Head,
    said: SaysJson,
    sent: Sent,
) -> Result<Response, Refusal> {
    let outcome = accept(&api, caller.tenant, &head, body::json(said, sent, api.payload_bytes_max)).await;
    match &outcome {
        Ok((_, false)) => api.counters.accepted.increment(1),
        Ok((_, true)) => api.counters.repeated.increment(1),
        Err(refusal) => api.counters.refusal(refusal),
    }
    outcome.map(|(shape, _)| (StatusCode::ACCEPTED, Json(shape)).into_response())
}

fn bytes(value: &Option<HeaderValue>) -> Option<&[u8]> {
    value.as_ref().map(HeaderValue::as_bytes)
}

/// The event, and whether it was known before.
async fn accept(
    api: &Api,
    tenant: TenantId,
    head: &Head,
    body: Result<Bytes, Refusal>,
) -> Result<(EventShape, bool), Refusal> {
    let headers = Headers { key: bytes(&head.key), trace: bytes(&head.trace) };
    let draft = admit::draft(&body?, headers, api.payload_bytes_max)?;
    if let Some(known) = first_of_key(api, &tenant, &draft).await? {
        return Ok((known, true));
    }
    check_endpoint(api, &tenant, &draft).await?;
    let now = admit::accept_time(api.links.clock.now());
    let event = admit::event(draft, tenant, now, relay_runtime::random::bytes10());
    let shape = EventShape::accepted(&event);
    api.committer.submit(event).await?;
    Ok((shape, false))
}

/// The event that a key stands for already, where Postgres shows it in time.
async fn first_of_key(api: &Api, tenant: &TenantId, draft: &Draft) -> Result<Option<EventShape>, Refusal> {
    let Some(key) = &draft.key else { return Ok(None) };
    let ids = admit::key_ids(tenant, key, api.links.clock.now());
    match timeout(KEY_LOOK_UP, api.links.store.keyed_event(tenant, &ids)).await {
        Ok(Ok(Some(first))) if same(&first, draft) => Ok(Some(EventShape::of_view(&first))),
        Ok(Ok(Some(_))) => Err(Refusal::KeyReused),
        // Not there, or nobody can tell: equal ids see to it that there is one event.
        Ok(Ok(None) | Err(_)) | Err(_) => Ok(None),
    }
}

/// Whether a request says the same as the event that its key stands for.
fn same(first: &EventView, draft: &Draft) -> bool {
    first.summary.endpoint == draft.endpoint
        && first.summary.event_type == draft.event_type
        && first.payload == draft.payload
}

/// Refuses what its endpoint doesn't take, but never from a memory that may be old: Postgres is asked first.
async fn check_endpoint(api: &Api, tenant: &TenantId, draft: &Draft) -> Result<(), Refusal> {
    let Some(wanted) = draft.endpoint else { return Ok(()) };
    let directory = &api.links.directory;
    let fits = || admit::fits(draft, tenant, directory.snapshot().endpoint(wanted).map(|e| &**e));
    if fits().is_ok() {
        return Ok(());
    }
    let fresh = api.refresher.read_through(directory, tenant).await;
    admit::decided(fits(), fresh)
}
