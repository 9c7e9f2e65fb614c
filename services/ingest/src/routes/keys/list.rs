//! `GET /api/v1/keys`.

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;

use crate::access::KeyShape;
use crate::api::Api;
use crate::refusal::Refusal;

/// List API keys
///
/// Those of the tenant, of an operator those of all; expired and revoked ones are among them. The keys themselves are
/// not: only their first characters are kept.
#[utoipa::path(
    get,
    path = "/api/v1/keys",
    tag = "access",
    operation_id = "list_keys",
    params(ListParams),
    security(("api_key" = ["admin"])),
    responses((status = 200, description = "A page, newest first", body = Page<KeyShape>), CommonProblems)
)]
pub async fn list(State(api): State<Api>, caller: Caller, query: QueryParams) -> Result<Json<Page<KeyShape>>, Refusal> {
    let listing = query.listing()?;
    let listed = api.links.store.list_keys(caller.only_tenant(), &listing.into()).await?;
    let now = api.links.clock.now();
    let items = listed.items.iter().map(|key| KeyShape::new(key, now)).collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}
