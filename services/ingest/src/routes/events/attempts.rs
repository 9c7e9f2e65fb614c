//! `GET /api/v1/events/{event_id}/attempts`: every POST that was made for an event, oldest first.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use relay_core::ids::EventId;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_store::Window;

use crate::api::Api;
use crate::query::{self, Query};
use crate::refusal::Refusal;
use crate::shapes::{AttemptShape, Page};

/// List an event's attempts
#[utoipa::path(
    get,
    path = "/api/v1/events/{event_id}/attempts",
    tag = "events",
    operation_id = "list_attempts",
    params(("event_id" = uuid::Uuid, Path), ("page" = Option<u32>, Query, minimum = 1),
        ("size" = Option<u32>, Query, minimum = 1, maximum = 200)),
    responses(
        (status = 200, description = "A page, by number", body = Page<AttemptShape>),
        (status = 404, description = "There is no such event", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn attempts(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Json<Page<AttemptShape>>, Refusal> {
    let id: EventId = query::id("event_id", &id)?;
    let page = Query::parse(raw.as_deref()).page()?;
    let tenant = caller.tenant;
    let event = api.stored_id(&tenant, id).await?;
    let listed =
        api.links.store.attempts_of_event(&tenant, event, &Window::page(page)).await?.ok_or(Refusal::UnknownEvent)?;
    Ok(Json(Page::new(listed.items.iter().map(|a| AttemptShape::new(event, a)).collect(), listed.total, page)))
}
