//! Which letters a request means: the same filters in the query of lists and in the body of jobs. Called by the routes.
//!
//! Invariant: what comes out of here is nothing that Postgres refuses.

use chrono::{DateTime, Datelike, Utc};
use relay_core::delivery::DeadReason;
use relay_runtime::extract::QueryParams;
use relay_runtime::problem::ProblemResponse;
use relay_store::{LetterFilter, LetterState};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// The parameters of lists, for the document: they are read by [`from_query`].
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters in the OpenAPI document")]
pub struct LetterParams {
    /// Only letters for this endpoint
    endpoint_id: Option<Uuid>,
    /// Only letters of this event type
    event_type: Option<String>,
    /// Only letters with this reason: exhausted, permanent, gone, endpoint_inactive, malformed, unknown_tenant,
    /// unknown_endpoint, too_large, expired
    reason: Option<String>,
    /// Only letters in this state: open, replayed, resolved, discarded [default: open and replayed]
    state: Option<String>,
    /// Only letters that came here after this time (RFC 3339)
    after: Option<DateTime<Utc>>,
    /// Only letters that came here before this time (RFC 3339)
    before: Option<DateTime<Utc>>,
}

/// Which open letters a job is about; without any filter, all of them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BulkFilter {
    /// Only letters for this endpoint
    endpoint_id: Option<Uuid>,
    /// Only letters of this event type
    #[schema(example = "order.created")]
    event_type: Option<String>,
    /// Only letters with this reason
    #[schema(value_type = Option<String>, example = "exhausted")]
    reason: Option<DeadReason>,
    /// Only letters that came here after this time
    after: Option<DateTime<Utc>>,
    /// Only letters that came here before this time
    before: Option<DateTime<Utc>>,
}

impl From<&LetterFilter> for BulkFilter {
    fn from(filter: &LetterFilter) -> Self {
        Self {
            endpoint_id: filter.endpoint.map(|endpoint| endpoint.0),
            event_type: filter.event_type.clone(),
            reason: filter.reason,
            after: filter.after,
            before: filter.before,
        }
    }
}

/// The filters of a list.
pub fn from_query(query: &QueryParams) -> Result<LetterFilter, ProblemResponse> {
    let state = match query.text("state") {
        Some(text) => Some(LetterState::parse(text).ok_or_else(|| {
            ProblemResponse::field("query.state", "must be one of open, replayed, resolved, discarded")
        })?),
        None => None,
    };
    let filter = LetterFilter {
        endpoint: query.id("endpoint_id")?,
        event_type: query.text("event_type").map(str::to_owned),
        reason: reason(query)?,
        state,
        after: query.time("after")?,
        before: query.time("before")?,
    };
    check(filter, "query")
}

/// The reason in a query.
pub fn reason(query: &QueryParams) -> Result<Option<DeadReason>, ProblemResponse> {
    let Some(text) = query.text("reason") else { return Ok(None) };
    DeadReason::parse(text).map(Some).ok_or_else(|| {
        let all = DeadReason::ALL.map(DeadReason::as_str).join(", ");
        ProblemResponse::field("query.reason", format!("must be one of {all}"))
    })
}

/// The filter of a job, unless Postgres would refuse it.
pub fn checked(filter: LetterFilter) -> Result<LetterFilter, ProblemResponse> {
    check(filter, "body")
}

fn check(filter: LetterFilter, place: &str) -> Result<LetterFilter, ProblemResponse> {
    if filter.event_type.as_deref().is_some_and(|text| text.contains('\0')) {
        return Err(ProblemResponse::field(format!("{place}.event_type"), "must not contain U+0000"));
    }
    for (name, time) in [("after", filter.after), ("before", filter.before)] {
        if time.is_some_and(|time| !(1..=9999).contains(&time.year())) {
            return Err(ProblemResponse::field(format!("{place}.{name}"), "must be in the years 1 to 9999"));
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_strictly() {
        let read = |raw| from_query(&QueryParams::parse(raw));
        let all = read(
            "endpoint_id=00000000-0000-0000-0000-000000000001&event_type=a.b&reason=gone&state=open&after=2026-01-01T00:00:00Z",
        )
        .unwrap();
        assert!(all.endpoint.is_some() && all.event_type.as_deref() == Some("a.b") && all.after.is_some());
        assert_eq!((all.reason, all.state), (Some(DeadReason::Gone), Some(LetterState::Open)));
        assert!(read("").unwrap().endpoint.is_none());
        for (raw, field) in [
            ("endpoint_id=7", "query.endpoint_id"),
            ("reason=x", "query.reason"),
            ("state=x", "query.state"),
            ("event_type=a%00", "query.event_type"),
            ("before=x", "query.before"),
            ("before=-0004-01-01T00:00:00Z", "query.before"),
        ] {
            assert_eq!(read(raw).unwrap_err().0.errors[0].field, field, "{raw}");
        }
    }

    #[test]
    fn a_jobs_filter_is_checked_and_shown() {
        let filter = LetterFilter { reason: Some(DeadReason::Gone), ..LetterFilter::default() };
        assert_eq!(serde_json::to_value(BulkFilter::from(&checked(filter).unwrap())).unwrap()["reason"], "gone");
        let nul = LetterFilter { event_type: Some("a\0".to_owned()), ..LetterFilter::default() };
        assert_eq!(checked(nul).unwrap_err().0.errors[0].field, "body.event_type");
    }
}
