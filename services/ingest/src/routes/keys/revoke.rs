//! `DELETE /api/v1/keys/{key_id}`: the key is void, on every pod within a second; its row stays.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{CommonProblems, ProblemBody};

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;

/// Revoke an API key
///
/// For good; every part of the system refuses it within a second. Repeating it is fine.
#[utoipa::path(
    delete,
    path = "/api/v1/keys/{key_id}",
    tag = "access",
    operation_id = "revoke_key",
    params(("key_id" = uuid::Uuid, Path)),
    responses(
        (status = 204, description = "Void"),
        (status = 404, description = "There is no such key", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn revoke(State(api): State<Api>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    let id = query::id("key_id", &id)?;
    let revoked = api.links.store.revoke_key(caller.only_tenant(), id).await?;
    let key = revoked.ok_or(Refusal::UnknownKey)?;
    tracing::info!(key = %key.id, tenant = %key.tenant, "an API key was revoked");
    api.directory_changed(&key.tenant).await;
    Ok(StatusCode::NO_CONTENT)
}
