//! `DELETE /api/v1/endpoints/{endpoint_id}/previous-secret`: ends a rotation's overlap early.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{CommonProblems, ProblemBody};

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;

/// End the overlap of a rotation
///
/// From now on deliveries are signed with the current secret only.
#[utoipa::path(
    delete,
    path = "/api/v1/endpoints/{endpoint_id}/previous-secret",
    tag = "endpoints",
    operation_id = "end_secret_overlap",
    params(("endpoint_id" = uuid::Uuid, Path)),
    responses(
        (status = 204, description = "The previous secret is gone"),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn end_overlap(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let tenant = caller.tenant;
    if !api.links.store.end_overlap(&tenant, id).await? {
        return Err(Refusal::UnknownEndpoint);
    }
    api.directory_changed(&tenant).await;
    Ok(StatusCode::NO_CONTENT)
}
