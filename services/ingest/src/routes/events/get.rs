//! `GET /api/v1/events/{event_id}`: an event with its payload, its deliveries and their attempts.

use axum::Json;
use axum::extract::{Path, State};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{CommonProblems, ProblemBody};

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;
use crate::shapes::EventDetail;

/// Look an event up
///
/// Right after the 202 this waits up to two seconds for the event to be stored.
#[utoipa::path(
    get,
    path = "/api/v1/events/{event_id}",
    tag = "events",
    operation_id = "get_event",
    params(("event_id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "The event", body = EventDetail),
        (status = 404, description = "There is no such event", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn get(State(api): State<Api>, caller: Caller, Path(id): Path<String>) -> Result<Json<EventDetail>, Refusal> {
    let view = api.event(&caller.tenant, query::id("event_id", &id)?).await?;
    EventDetail::new(&view).map(Json)
}
