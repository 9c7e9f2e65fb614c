//! `GET /api/v1/events`: the tenant's events, newest first.

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;
use relay_store::EventFilter;

use crate::api::Api;
use crate::refusal::Refusal;
use crate::shapes::EventShape;

/// List events
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "events",
    operation_id = "list_events",
    params(ListParams),
    responses(
        (status = 200, description = "A page, newest first", body = Page<EventShape>),
        CommonProblems,
    )
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: QueryParams,
) -> Result<Json<Page<EventShape>>, Refusal> {
    let listing = query.listing()?;
    let events = api.links.store.list_events(&caller.tenant, &EventFilter::default(), &listing.into()).await?;
    let items = events.items.iter().map(EventShape::of_summary).collect();
    Ok(Json(Page::new(listing, items, events.total, events.next)))
}
