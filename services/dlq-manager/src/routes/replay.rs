//! `POST /api/v1/dlq/{id}/replay`: one dead letter is sent again, before everything else that waits for its
//! endpoint; where the circuit is open, it is the probe.

use axum::Json;
use axum::extract::State;
use relay_core::ids::DeadLetterId;
use relay_runtime::auth::Caller;
use relay_runtime::extract::{PathId, QueryParams};
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_runtime::problem::ProblemResponse;

use crate::api::Api;
use crate::refusal;
use crate::replay::{ReplayShape, settle, wake};
use crate::routes::get::find;

/// Replay a dead letter
///
/// The event keeps its id, so that a receiver that had processed it after all can tell.
#[utoipa::path(
    post,
    path = "/api/v1/dlq/{id}/replay",
    tag = "dead letters",
    operation_id = "replay_dead_letter",
    params(
        ("id" = uuid::Uuid, Path),
        ("force" = Option<bool>, Query, description = "Also when it was replayed less than an hour ago, or delivered after all"),
    ),
    responses(
        (status = 200, description = "Open again and due now", body = ReplayShape),
        (status = 404, description = "There is no such dead letter", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Replayed less than an hour ago, in progress, or not replayable", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn replay(
    State(api): State<Api>,
    caller: Caller,
    PathId(id): PathId<DeadLetterId>,
    query: QueryParams,
) -> Result<Json<ReplayShape>, ProblemResponse> {
    let force = query.boolean("force")?.unwrap_or(false);
    // A discarded letter is gone for its users, though the ledger could still replay it.
    find(&api, &caller, id).await?;
    let outcome = api.links.store.replay_one(caller.only_tenant(), id, force).await.map_err(refusal::ledger)?;
    let replayed = settle(&api.links, id, outcome).await?;
    if let Some(endpoint) = replayed.endpoint {
        api.links.circuits.half_open(endpoint).await;
        wake(&api.links).await;
    }
    api.counters.replayed.increment(1);
    Ok(Json(replayed.shape))
}
