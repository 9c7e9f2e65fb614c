//! `POST /api/v1/events/batch`: up to a thousand events in one request, each accepted or refused for itself. They go to
//! the accept log together, through the same bundles as all others.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use relay_core::event::payload_digest;
use relay_core::ids::{EventId, TenantId};
use relay_core::problem::{FieldError, Problem, ProblemType};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_runtime::problem::ProblemResponse;
use relay_store::KnownEvent;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;
use uuid::Uuid;

use super::post::{EventRequest, Head, KEY_LOOK_UP, Taken};
use crate::admit::{self, Draft};
use crate::api::Api;
use crate::batch::{self, BODY_BYTES_MAX};
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};

/// Body of `POST /events/batch`, for the documentation: the request itself is read by [`batch::drafts`].
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct BatchRequest {
    #[schema(min_items = 1, max_items = 1000)]
    events: Vec<EventRequest>,
}

/// What became of the events of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Batch)]
pub struct BatchShape {
    accepted: usize,
    rejected: usize,
    /// One per event, in their order.
    results: Vec<BatchResult>,
}

/// What became of one event.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResult {
    /// Its place in the request, from 0.
    index: usize,
    /// The status that `POST /events` would have answered.
    #[schema(example = 202)]
    status: u16,
    /// The event; that of the first request with this idempotency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ProblemBody>)]
    error: Option<Problem>,
}

/// A problem that says what became of each event.
#[derive(Serialize)]
struct NothingAccepted<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    #[serde(flatten)]
    batch: BatchShape,
}

/// Send many events
///
/// Up to 1000 events and 16 MiB. Each event is accepted or refused for itself, with its own idempotency key: a batch
/// that is sent again with its keys gives the same events. 202 when at least one was accepted.
#[utoipa::path(
    post,
    path = "/api/v1/events/batch",
    tag = "events",
    operation_id = "send_events",
    params(("traceparent" = Option<String>, Header, description = "W3C trace context, sent on to the endpoints")),
    request_body = BatchRequest,
    security(("api_key" = ["events:write"])),
    responses(
        (status = 202, description = "What became of each event; those with an id are on disk. With `Retry-After` where some may be sent again", body = BatchShape),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn batch(
    _taken: Taken,
    State(api): State<Api>,
    caller: Caller,
    head: Head,
    said: SaysJson,
    sent: Sent,
) -> Result<Response, Refusal> {
    let body = body::json(said, sent, BODY_BYTES_MAX)?;
    if head.key.is_some() {
        let field = "header.Idempotency-Key".to_owned();
        let message = "is for one event; give each event of a batch its own idempotency_key".to_owned();
        return Err(FieldError { field, message }.into());
    }
    let payload_max = api.payload_bytes_max;
    // Reading 16 MiB of JSON would hold up everybody on this thread.
    let drafts = tokio::task::spawn_blocking(move || {
        batch::drafts(&body, head.trace.as_ref().map(|v| v.as_bytes()), payload_max)
    });
    let drafts = drafts.await.map_err(|e| Refusal::Internal(format!("reading a batch: {e}")))??;
    Ok(answer(accept(&api, &caller.tenant, drafts).await))
}

/// Where an event of a batch stands.
enum Standing {
    Open(Draft),
    Done(Result<EventId, Refusal>),
}

impl Standing {
    fn draft(&self) -> Option<&Draft> {
        match self {
            Self::Open(draft) => Some(draft),
            Self::Done(_) => None,
        }
    }
}

async fn accept(api: &Api, tenant: &TenantId, drafts: Vec<Result<Draft, Refusal>>) -> Vec<Result<EventId, Refusal>> {
    let mut events: Vec<Standing> =
        drafts.into_iter().map(|d| d.map_or_else(|refusal| Standing::Done(Err(refusal)), Standing::Open)).collect();
    settle_known(api, tenant, &mut events).await;
    settle_misaddressed(api, tenant, &mut events).await;

    // A microsecond apart, so that lists show them in the order of the request.
    let now = admit::accept_time(api.links.clock.now());
    let count = i64::try_from(events.len()).unwrap_or(0);
    let mut handed_over = Vec::new();
    let mut outcomes: Vec<Result<EventId, Refusal>> = Vec::with_capacity(events.len());
    let mut places = Vec::new();
    for (standing, behind) in events.into_iter().zip((0..count).rev()) {
        outcomes.push(match standing {
            Standing::Done(outcome) => {
                count_settled(api, &outcome);
                outcome
            }
            Standing::Open(draft) => {
                let accepted_at = now - chrono::Duration::microseconds(behind);
                let event = admit::event(draft, tenant.clone(), accepted_at, relay_runtime::random::bytes10());
                let id = event.id;
                places.push(outcomes.len());
                handed_over.push(event);
                Ok(id)
            }
        });
    }
    for (place, outcome) in places.into_iter().zip(api.committer.submit_all(handed_over).await) {
        match outcome {
            Ok(()) => api.counters.accepted.increment(1),
            Err(error) => {
                api.counters.unavailable.increment(1);
                outcomes[place] = Err(error.into());
            }
        }
    }
    outcomes
}

/// Counts an event that didn't go to the accept log.
fn count_settled(api: &Api, outcome: &Result<EventId, Refusal>) {
    match outcome {
        Ok(_) => api.counters.repeated.increment(1),
        Err(refusal) => api.counters.refusal(refusal),
    }
}

/// Settles events whose key was used before, where Postgres shows it in time.
async fn settle_known(api: &Api, tenant: &TenantId, events: &mut [Standing]) {
    let now = api.links.clock.now();
    let keyed: Vec<(usize, [EventId; 3])> = events
        .iter()
        .enumerate()
        .filter_map(|(place, standing)| {
            let key = standing.draft()?.key.as_ref()?;
            Some((place, admit::key_ids(tenant, key, now)))
        })
        .collect();
    if keyed.is_empty() {
        return;
    }
    let ids: Vec<EventId> = keyed.iter().flat_map(|(_, ids)| *ids).collect();
    // Not there, or nobody can tell: equal ids see to it that there is one event.
    let Ok(Ok(known)) = timeout(KEY_LOOK_UP, api.links.store.known_events(tenant, &ids)).await else { return };
    let known: HashMap<EventId, KnownEvent> = known.into_iter().map(|event| (event.asked, event)).collect();
    for (place, ids) in keyed {
        let Some(first) = ids.iter().find_map(|id| known.get(id)) else { continue };
        let is_same = events[place].draft().is_some_and(|draft| {
            first.endpoint == draft.endpoint
                && first.event_type == draft.event_type
                && first.digest == payload_digest(&draft.payload)
        });
        events[place] = Standing::Done(if is_same { Ok(first.id) } else { Err(Refusal::KeyReused) });
    }
}

/// Settles events whose endpoint doesn't take them, but never from a memory that may be old: Postgres is asked first, once.
async fn settle_misaddressed(api: &Api, tenant: &TenantId, events: &mut [Standing]) {
    let directory = &api.links.directory;
    let fits = |draft: &Draft| {
        let snapshot = directory.snapshot();
        admit::fits(draft, tenant, draft.endpoint.and_then(|wanted| snapshot.endpoint(wanted)).map(|e| &**e))
    };
    if events.iter().filter_map(Standing::draft).all(|draft| fits(draft).is_ok()) {
        return;
    }
    let fresh = api.refresher.read_through(directory, tenant).await;
    for standing in events {
        if let Some(Err(refusal)) = standing.draft().map(|draft| admit::decided(fits(draft), fresh)) {
            *standing = Standing::Done(Err(refusal));
        }
    }
}

fn answer(outcomes: Vec<Result<EventId, Refusal>>) -> Response {
    let accepted = outcomes.iter().filter(|o| o.is_ok()).count();
    let rejected = outcomes.len() - accepted;
    let mut ours = None;
    let results = outcomes
        .into_iter()
        .enumerate()
        .map(|(index, outcome)| match outcome {
            Ok(id) => BatchResult { index, status: StatusCode::ACCEPTED.as_u16(), id: Some(id.0), error: None },
            Err(refusal) => {
                let is_ours = !refusal.is_the_clients();
                let problem = Problem::from(refusal);
                if is_ours && ours.is_none() {
                    ours = Some(problem.clone());
                }
                BatchResult { index, status: problem.status(), id: None, error: Some(problem) }
            }
        })
        .collect();
    let batch = BatchShape { accepted, rejected, results };
    if accepted > 0 {
        let mut response = (StatusCode::ACCEPTED, Json(batch)).into_response();
        // A part is to be sent again, later.
        if let Some(wait) = ours.and_then(|problem| problem.retry_after) {
            response.headers_mut().insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
        }
        return response;
    }
    let problem = ours.unwrap_or_else(|| {
        Problem::new(ProblemType::NothingAccepted, format!("None of the {rejected} events was accepted"))
    });
    let body =
        serde_json::to_vec(&NothingAccepted { problem: &problem, batch }).expect("it has only texts and numbers");
    let mut response = ProblemResponse(problem).into_response();
    *response.body_mut() = body.into();
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn read(response: Response) -> (u16, Option<String>, serde_json::Value) {
        let (parts, body) = response.into_parts();
        let wait = parts.headers.get("retry-after").map(|v| v.to_str().unwrap().to_owned());
        let body = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap();
        (parts.status.as_u16(), wait, body)
    }

    #[tokio::test]
    async fn one_accepted_event_makes_it_202() {
        let id = EventId(Uuid::from_u128(1));
        let (status, _, body) = read(answer(vec![Ok(id), Err(Refusal::KeyReused)])).await;
        assert_eq!((status, &body["accepted"], &body["rejected"]), (202, &1.into(), &1.into()));
        assert_eq!(body["results"][0], serde_json::json!({"index": 0, "status": 202, "id": id.0}));
        assert_eq!((&body["results"][1]["status"], &body["results"][1]["error"]["status"]), (&409.into(), &409.into()));
        let (status, wait, _) = read(answer(vec![Ok(id), Err(Refusal::overloaded("full"))])).await;
        assert_eq!((status, wait.as_deref()), (202, Some("1")), "a part may come again");
    }

    #[tokio::test]
    async fn none_accepted_is_a_problem_that_says_whose() {
        let (status, wait, body) = read(answer(vec![Err(Refusal::KeyReused)])).await;
        assert_eq!((status, wait, &body["results"][0]["status"]), (422, None, &409.into()));
        assert_eq!(body["type"], "urn:webhook-relay:problem:nothing-accepted");
        let (status, wait, body) = read(answer(vec![Err(Refusal::KeyReused), Err(Refusal::overloaded("full"))])).await;
        assert_eq!((status, wait.as_deref(), &body["rejected"]), (503, Some("1"), &2.into()));
        assert_eq!(body["type"], "urn:webhook-relay:problem:overloaded");
    }
}
