//! `GET /api/v1/endpoints/{endpoint_id}/attempts`: every POST that was made to an endpoint, newest first.

use axum::Json;
use axum::extract::{Path, State};
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::{CommonProblems, ProblemBody};

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;
use crate::shapes::AttemptShape;

/// List an endpoint's attempts
///
/// Newest first, by the time at which they were sent.
#[utoipa::path(
    get,
    path = "/api/v1/endpoints/{endpoint_id}/attempts",
    tag = "endpoints",
    operation_id = "list_endpoint_attempts",
    params(("endpoint_id" = uuid::Uuid, Path), ListParams),
    responses(
        (status = 200, description = "A part of the list", body = Page<AttemptShape>),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn attempts(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    query: QueryParams,
) -> Result<Json<Page<AttemptShape>>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let listing = query.listing()?;
    api.endpoint(&caller.tenant, id).await?;
    let listed = api.links.store.attempts_of_endpoint(id, &listing.into()).await?;
    Ok(Json(Page::new(listing, listed.items.iter().map(AttemptShape::new).collect(), listed.total, listed.next)))
}
