//! `GET /api/v1/dlq`: dead letters, newest first. Replayed ones stay listed; discarded ones and those that were
//! delivered after all are shown on request.

use axum::Json;
use axum::extract::State;
use relay_core::delivery::DeadReason;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;
use relay_runtime::problem::ProblemResponse;
use relay_store::{LetterFilter, LetterState};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::api::Api;
use crate::letter::LetterShape;
use crate::refusal;

/// The parameters, for the document: they are read by [`filter`].
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
}

/// List dead letters
///
/// Newest first.
#[utoipa::path(
    get,
    path = "/api/v1/dlq",
    tag = "dead letters",
    operation_id = "list_dead_letters",
    params(ListParams, LetterParams),
    responses((status = 200, description = "A page of dead letters", body = Page<LetterShape>), CommonProblems)
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: QueryParams,
) -> Result<Json<Page<LetterShape>>, ProblemResponse> {
    let (filter, listing) = (filter(&query)?, query.listing()?);
    let listed =
        api.links.store.dead_letters(caller.only_tenant(), &filter, &listing.into()).await.map_err(refusal::ledger)?;
    let items = listed.items.into_iter().map(LetterShape::from).collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}

fn filter(query: &QueryParams) -> Result<LetterFilter, ProblemResponse> {
    let reason = match query.text("reason") {
        Some(text) => Some(DeadReason::parse(text).ok_or_else(|| {
            let all = DeadReason::ALL.map(DeadReason::as_str).join(", ");
            ProblemResponse::field("query.reason", format!("must be one of {all}"))
        })?),
        None => None,
    };
    let state = match query.text("state") {
        Some(text) => Some(LetterState::parse(text).ok_or_else(|| {
            ProblemResponse::field("query.state", "must be one of open, replayed, resolved, discarded")
        })?),
        None => None,
    };
    Ok(LetterFilter {
        endpoint: query.id("endpoint_id")?,
        event_type: query.text("event_type").map(str::to_owned),
        reason,
        state,
        ..LetterFilter::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_strictly() {
        let read = |raw| filter(&QueryParams::parse(raw));
        let all =
            read("endpoint_id=00000000-0000-0000-0000-000000000001&event_type=a.b&reason=gone&state=open").unwrap();
        assert!(all.endpoint.is_some() && all.event_type.as_deref() == Some("a.b"));
        assert_eq!((all.reason, all.state), (Some(DeadReason::Gone), Some(LetterState::Open)));
        assert!(read("").unwrap().endpoint.is_none());
        for (raw, field) in
            [("endpoint_id=7", "query.endpoint_id"), ("reason=x", "query.reason"), ("state=x", "query.state")]
        {
            assert_eq!(read(raw).unwrap_err().0.errors[0].field, field);
        }
    }
}
