//! `GET /api/v1/endpoints/{endpoint_id}`.

use axum::Json;
use axum::extract::{Path, State};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{CommonProblems, ProblemBody};

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;
use crate::shapes::EndpointShape;

/// Look an endpoint up
#[utoipa::path(
    get,
    path = "/api/v1/endpoints/{endpoint_id}",
    tag = "endpoints",
    operation_id = "get_endpoint",
    params(("endpoint_id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "The endpoint", body = EndpointShape),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn get(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<EndpointShape>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let endpoint = api.endpoint(&caller.tenant, id).await?;
    Ok(Json(EndpointShape::new(&endpoint, api.links.clock.now())))
}
