//! `POST /api/v1/endpoints/{endpoint_id}/resume`: the end of a pause, with or without what waited.
//!
//! Without it, the endpoint stays paused until the backlog is discarded; a request works on that for a moment, a leader
//! does the rest.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use chrono::{DateTime, Utc};
use relay_core::ids::{EndpointId, TenantId};
use relay_core::subject::HINT_DUE;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_store::{EndpointChange, ResumeStep, Resuming};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::BODY_BYTES_MAX;
use crate::api::Api;
use crate::fields::{self, Faults, is_null};
use crate::query;
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};
use crate::shapes::EndpointShape;

/// How long one request discards; the rest is done behind its back.
const DISCARD_FOR: Duration = Duration::from_secs(2);
/// Deliveries of one statement.
const ROWS: i64 = 1000;

const FIELDS: &[&str; 2] = &["deliver", "since"];

/// Body of a resume; may be left out: all.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct ResumeRequest {
    /// `all`: what waits is delivered. `none`: it is discarded. `since`: what was accepted before the time in `since` is.
    #[schema(default = "all", pattern = "^(all|none|since)$")]
    deliver: Option<String>,
    /// With `deliver: since`.
    since: Option<DateTime<Utc>>,
}

/// The endpoint after a resume.
#[derive(Serialize, ToSchema)]
pub struct Resumed {
    #[serde(flatten)]
    endpoint: EndpointShape,
    /// Deliveries that were discarded so far. While `discard_before` isn't null, there are more.
    discarded: u64,
}

/// Resume a paused endpoint
///
/// With `all` (the default), everything that waited starts at once. With `none` or `since`, what is left out becomes
/// `discarded`, visible at its event; the endpoint stays paused until that is done (`discard_before` is null then), which
/// for a large backlog takes longer than the request. An endpoint that isn't paused stays as it is.
#[utoipa::path(
    post,
    path = "/api/v1/endpoints/{endpoint_id}/resume",
    tag = "endpoints",
    operation_id = "resume_endpoint",
    params(("endpoint_id" = uuid::Uuid, Path)),
    request_body(content = Option<ResumeRequest>, example = json!({"deliver": "since", "since": "2026-01-31T12:00:00Z"})),
    responses(
        (status = 200, description = "The endpoint as it is now", body = Resumed),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn resume(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    said: SaysJson,
    sent: Sent,
) -> Result<Json<Resumed>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let deliver = match sent {
        Sent(Ok(body)) if body.is_empty() => Deliver::All,
        sent => read(&body::json(said, sent, BODY_BYTES_MAX)?)?,
    };
    let tenant = caller.tenant;
    let store = &api.links.store;
    let discarded = match deliver {
        Deliver::All => {
            let change = EndpointChange { paused: Some(false), ..EndpointChange::default() };
            store.update_endpoint(&tenant, id, &change).await?.ok_or(Refusal::UnknownEndpoint)?;
            0
        }
        Deliver::Since(before) => discard(&api, &tenant, id, before).await?,
    };
    let endpoint = api.endpoint(&tenant, id).await?;
    api.directory_changed(&tenant).await;
    if !endpoint.paused {
        // What waits for the endpoint starts at once instead of at the scheduler's next look.
        api.links.bus.hint(HINT_DUE, Bytes::from(id.to_string())).await;
    }
    Ok(Json(Resumed { endpoint: EndpointShape::new(&endpoint, api.links.clock.now()), discarded }))
}

/// Discards for a moment; how many.
async fn discard(api: &Api, tenant: &TenantId, id: EndpointId, before: Option<DateTime<Utc>>) -> Result<u64, Refusal> {
    let store = &api.links.store;
    let Some(resuming): Option<Resuming> = store.begin_resume(tenant, id, before).await? else { return Ok(0) };
    let end = Instant::now() + DISCARD_FOR;
    let mut discarded = 0;
    while Instant::now() < end {
        match store.step_resume(&resuming, ROWS).await? {
            ResumeStep::Discarded(rows) => discarded += rows as u64,
            ResumeStep::Waits | ResumeStep::Done => break,
        }
    }
    Ok(discarded)
}

/// What is delivered of what waits.
#[derive(Debug, PartialEq)]
enum Deliver {
    All,
    /// What was accepted since then; `None`: since now.
    Since(Option<DateTime<Utc>>),
}

fn read(body: &[u8]) -> Result<Deliver, Refusal> {
    let [deliver, since] = fields::read(body, FIELDS)?.map(|value| value.filter(|v| !is_null(v)));
    let mut faults = Faults::default();
    let deliver = deliver.map_or(Some("all".into()), |value| faults.string("deliver", value));
    let since = since.and_then(|value| {
        let text = faults.string("since", value)?;
        let time = DateTime::parse_from_rfc3339(&text).map(|t| t.to_utc());
        time.map_err(|_| faults.add("since", "must be an RFC 3339 time")).ok()
    });
    let read = match (deliver.as_deref(), since) {
        (Some("since"), Some(time)) => Deliver::Since(Some(time)),
        (Some("since"), None) => {
            if faults.is_empty() {
                faults.add("since", "is required with deliver: since");
            }
            Deliver::All
        }
        (Some("all" | "none"), Some(_)) => {
            faults.add("since", "goes with deliver: since only");
            Deliver::All
        }
        (Some("all"), None) => Deliver::All,
        (Some("none"), None) => Deliver::Since(None),
        (Some(_), _) => {
            faults.add("deliver", "must be all, none or since");
            Deliver::All
        }
        (None, _) => Deliver::All,
    };
    if faults.is_empty() { Ok(read) } else { Err(Refusal::Invalid(faults.0)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_is_read_strictly() {
        assert_eq!(read(b"{}"), Ok(Deliver::All));
        assert_eq!(read(br#"{"deliver":null,"since":null}"#), Ok(Deliver::All));
        assert_eq!(read(br#"{"deliver":"all"}"#), Ok(Deliver::All));
        assert_eq!(read(br#"{"deliver":"none"}"#), Ok(Deliver::Since(None)));
        let since = read(br#"{"deliver":"since","since":"2026-01-31T12:00:00+01:00"}"#).unwrap();
        assert_eq!(since, Deliver::Since(Some("2026-01-31T11:00:00Z".parse().unwrap())));
        let wrong = |body: &str| match read(body.as_bytes()) {
            Err(Refusal::Invalid(errors)) => errors.into_iter().map(|e| e.field).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(wrong(r#"{"deliver":"some"}"#), ["body.deliver"]);
        assert_eq!(wrong(r#"{"deliver":7}"#), ["body.deliver"]);
        assert_eq!(wrong(r#"{"deliver":"since"}"#), ["body.since"]);
        assert_eq!(wrong(r#"{"deliver":"since","since":"yesterday"}"#), ["body.since"]);
        assert_eq!(wrong(r#"{"deliver":"none","since":"2026-01-31T12:00:00Z"}"#), ["body.since"]);
        assert_eq!(wrong("[]"), ["body"]);
    }
}
