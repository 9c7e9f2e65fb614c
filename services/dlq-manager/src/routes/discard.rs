//! `DELETE /api/v1/dlq/{id}`: an operator gives a delivery up. The letter and the delivery keep their rows, as
//! discarded.

use axum::extract::State;
use axum::http::StatusCode;
use relay_core::ids::DeadLetterId;
use relay_runtime::auth::Caller;
use relay_runtime::extract::PathId;
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_runtime::problem::ProblemResponse;

use crate::api::Api;
use crate::refusal;

/// Discard a dead letter
#[utoipa::path(
    delete,
    path = "/api/v1/dlq/{id}",
    tag = "dead letters",
    operation_id = "discard_dead_letter",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 204, description = "Discarded"),
        (status = 404, description = "There is no such dead letter", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn discard(
    State(api): State<Api>,
    caller: Caller,
    PathId(id): PathId<DeadLetterId>,
) -> Result<StatusCode, ProblemResponse> {
    if !api.links.store.discard(caller.only_tenant(), id).await.map_err(refusal::ledger)? {
        return Err(refusal::unknown_letter());
    }
    api.counters.discarded.increment(1);
    Ok(StatusCode::NO_CONTENT)
}
