//! `GET /api/v1/tenants`.

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;

use crate::access::TenantShape;
use crate::api::Api;
use crate::refusal::Refusal;

/// List tenants
#[utoipa::path(
    get,
    path = "/api/v1/tenants",
    tag = "access",
    operation_id = "list_tenants",
    params(ListParams),
    security(("api_key" = ["operator"])),
    responses((status = 200, description = "A page, newest first", body = Page<TenantShape>), CommonProblems)
)]
pub async fn list(State(api): State<Api>, _: Caller, query: QueryParams) -> Result<Json<Page<TenantShape>>, Refusal> {
    let listing = query.listing()?;
    let listed = api.links.store.list_tenants(&listing.into()).await?;
    let items = listed.items.iter().map(TenantShape::from).collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}
