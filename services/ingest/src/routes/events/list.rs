//! `GET /api/v1/events`: the tenant's events, newest first.

use axum::Json;
use axum::extract::{RawQuery, State};

use relay_runtime::auth::Caller;
use relay_runtime::openapi::CommonProblems;
use relay_store::{EventFilter, Window};

use crate::api::Api;
use crate::query::Query;
use crate::refusal::Refusal;
use crate::shapes::{EventShape, Page};

/// List events
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "events",
    operation_id = "list_events",
    params(("page" = Option<u32>, Query, minimum = 1), ("size" = Option<u32>, Query, minimum = 1, maximum = 200)),
    responses(
        (status = 200, description = "A page, newest first", body = Page<EventShape>),
        CommonProblems,
    )
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Json<Page<EventShape>>, Refusal> {
    let page = Query::parse(raw.as_deref()).page()?;
    let events = api.links.store.list_events(&caller.tenant, &EventFilter::default(), &Window::page(page)).await?;
    Ok(Json(Page::new(events.items.iter().map(EventShape::of_summary).collect(), events.total, page)))
}
