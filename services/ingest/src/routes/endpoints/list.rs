//! `GET /api/v1/endpoints`.

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;

use crate::api::Api;
use crate::refusal::Refusal;
use crate::shapes::EndpointShape;

/// List endpoints
#[utoipa::path(
    get,
    path = "/api/v1/endpoints",
    tag = "endpoints",
    operation_id = "list_endpoints",
    params(ListParams, ("is_active" = Option<bool>, Query)),
    responses(
        (status = 200, description = "A page, newest first", body = Page<EndpointShape>),
        CommonProblems,
    )
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: QueryParams,
) -> Result<Json<Page<EndpointShape>>, Refusal> {
    let listing = query.listing()?;
    let is_active = query.boolean("is_active")?;
    let listed = api.links.store.list_endpoints(&caller.tenant, is_active, &listing.into()).await?;
    let now = api.links.clock.now();
    let items = listed.items.iter().map(|e| EndpointShape::new(e, now)).collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}
