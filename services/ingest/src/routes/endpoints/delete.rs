//! `DELETE /api/v1/endpoints/{endpoint_id}`: deactivates; the endpoint and its history stay.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{CommonProblems, ProblemBody};

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;

/// Deactivate an endpoint
///
/// What waits for it becomes dead letters. Repeating it is fine.
#[utoipa::path(
    delete,
    path = "/api/v1/endpoints/{endpoint_id}",
    tag = "endpoints",
    operation_id = "deactivate_endpoint",
    params(("endpoint_id" = uuid::Uuid, Path)),
    responses(
        (status = 204, description = "Inactive"),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn delete(State(api): State<Api>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let tenant = caller.tenant;
    if !api.links.store.deactivate_endpoint(&tenant, id).await? {
        return Err(Refusal::UnknownEndpoint);
    }
    api.directory_changed(&tenant).await;
    Ok(StatusCode::NO_CONTENT)
}
