//! `GET /api/v1/dlq`: dead letters, newest first. Replayed ones stay listed; discarded ones and those that were
//! delivered after all are shown on request.

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;
use relay_runtime::problem::ProblemResponse;

use crate::api::Api;
use crate::filter::{self, LetterParams};
use crate::letter::LetterShape;
use crate::refusal;

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
    let (filter, listing) = (filter::from_query(&query)?, query.listing()?);
    let listed =
        api.links.store.dead_letters(caller.only_tenant(), &filter, &listing.into()).await.map_err(refusal::ledger)?;
    let items = listed.items.into_iter().map(LetterShape::from).collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}
