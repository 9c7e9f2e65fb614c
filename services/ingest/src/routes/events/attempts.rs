//! `GET /api/v1/events/{event_id}/attempts`: every POST that was made for an event, oldest first.

use axum::Json;
use axum::extract::{Path, State};
use relay_core::ids::EventId;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::{CommonProblems, ProblemBody};

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;
use crate::shapes::AttemptShape;

/// List an event's attempts
///
/// Oldest first, over all its endpoints.
#[utoipa::path(
    get,
    path = "/api/v1/events/{event_id}/attempts",
    tag = "events",
    operation_id = "list_attempts",
    params(("event_id" = uuid::Uuid, Path), ListParams),
    responses(
        (status = 200, description = "A part of the list", body = Page<AttemptShape>),
        (status = 404, description = "There is no such event", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn attempts(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    query: QueryParams,
) -> Result<Json<Page<AttemptShape>>, Refusal> {
    let id: EventId = query::id("event_id", &id)?;
    let listing = query.listing()?;
    let tenant = caller.tenant;
    let window = listing.into();
    let listed = api.stored(id, || api.links.store.attempts_of_event(&tenant, id, &window)).await?;
    Ok(Json(Page::new(listing, listed.items.iter().map(AttemptShape::new).collect(), listed.total, listed.next)))
}
