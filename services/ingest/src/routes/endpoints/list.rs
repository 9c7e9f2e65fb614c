//! `GET /api/v1/endpoints`.

use axum::Json;
use axum::extract::{RawQuery, State};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::CommonProblems;
use relay_store::Window;

use crate::api::Api;
use crate::query::Query;
use crate::refusal::Refusal;
use crate::shapes::{EndpointShape, Page};

/// List endpoints
#[utoipa::path(
    get,
    path = "/api/v1/endpoints",
    tag = "endpoints",
    operation_id = "list_endpoints",
    params(("page" = Option<u32>, Query, minimum = 1), ("size" = Option<u32>, Query, minimum = 1, maximum = 200),
        ("is_active" = Option<bool>, Query)),
    responses(
        (status = 200, description = "A page, newest first", body = Page<EndpointShape>),
        CommonProblems,
    )
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Json<Page<EndpointShape>>, Refusal> {
    let query = Query::parse(raw.as_deref());
    let page = query.page()?;
    let is_active = query.boolean("is_active")?;
    let listed = api.links.store.list_endpoints(&caller.tenant, is_active, &Window::page(page)).await?;
    let now = api.links.clock.now();
    Ok(Json(Page::new(listed.items.iter().map(|e| EndpointShape::new(e, now)).collect(), listed.total, page)))
}
