//! `POST /api/v1/dlq/{id}/replay`: one dead letter is sent again, before everything else that waits for its
//! endpoint; where the circuit is open, it is the probe.

use axum::Json;
use axum::extract::State;
use relay_core::ids::DeadLetterId;
use relay_runtime::auth::Caller;
use relay_runtime::extract::{OptionalJsonBody, PathId, QueryParams};
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_runtime::problem::ProblemResponse;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::replay::{ReplayShape, replay_one, wake};
use crate::routes::get::find;

/// How to replay.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct ReplayOptions {
    /// Send it as a new event, with an id of its own
    #[serde(default)]
    as_new_event: bool,
    /// As the parameter of the same name
    #[serde(default)]
    force: bool,
}

/// Replay a dead letter
///
/// The event keeps its id, so that a receiver that had processed it after all can tell. With `as_new_event` it goes to
/// the same endpoint with a new id, for receivers that refuse what they have seen; the letter shows it as `new_event_id`.
/// The body may be left out.
#[utoipa::path(
    post,
    path = "/api/v1/dlq/{id}/replay",
    tag = "dead letters",
    operation_id = "replay_dead_letter",
    params(
        ("id" = uuid::Uuid, Path),
        ("force" = Option<bool>, Query, description = "Also when it was replayed less than an hour ago, or delivered after all"),
    ),
    request_body(content = Option<ReplayOptions>, example = json!({"as_new_event": true})),
    responses(
        (status = 200, description = "Due now", body = ReplayShape),
        (status = 404, description = "There is no such dead letter", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Replayed less than an hour ago, in progress, or not replayable", body = ProblemBody, content_type = "application/problem+json"),
        BodyProblems,
        CommonProblems,
    )
)]
pub async fn replay(
    State(api): State<Api>,
    caller: Caller,
    PathId(id): PathId<DeadLetterId>,
    query: QueryParams,
    OptionalJsonBody(options): OptionalJsonBody<ReplayOptions>,
) -> Result<Json<ReplayShape>, ProblemResponse> {
    let force = query.boolean("force")?.unwrap_or(options.force);
    // A discarded letter is gone for its users, though the ledger could still replay it.
    find(&api, &caller, id).await?;
    let replayed = replay_one(&api.links, caller.only_tenant(), id, force, options.as_new_event).await?;
    if let Some(endpoint) = replayed.endpoint {
        api.links.circuits.half_open(endpoint).await;
        wake(&api.links).await;
    }
    api.counters.replayed.increment(1);
    Ok(Json(replayed.shape))
}
