//! `GET /api/v1/dlq/{id}`: one dead letter with its attempts. A discarded one is gone for this route, as for replay.

use axum::Json;
use axum::extract::State;
use relay_core::ids::DeadLetterId;
use relay_runtime::auth::Caller;
use relay_runtime::extract::PathId;
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_runtime::problem::ProblemResponse;
use relay_store::{DeadLetter, LetterState};

use crate::api::Api;
use crate::letter::LetterShape;
use crate::refusal;

/// Show a dead letter
///
/// With its attempts; a message that never became an event with its raw bytes and subject.
#[utoipa::path(
    get,
    path = "/api/v1/dlq/{id}",
    tag = "dead letters",
    operation_id = "get_dead_letter",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "The dead letter", body = LetterShape),
        (status = 404, description = "There is no such dead letter", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn get(
    State(api): State<Api>,
    caller: Caller,
    PathId(id): PathId<DeadLetterId>,
) -> Result<Json<LetterShape>, ProblemResponse> {
    let letter = find(&api, &caller, id).await?;
    let attempts = match letter.endpoint {
        Some(endpoint) => {
            api.links.store.attempts_of_delivery(letter.event, endpoint).await.map_err(refusal::ledger)?
        }
        None => Vec::new(),
    };
    Ok(Json(LetterShape::from(letter).with_attempts(attempts)))
}

/// The letter, unless it is discarded.
pub async fn find(api: &Api, caller: &Caller, id: DeadLetterId) -> Result<DeadLetter, ProblemResponse> {
    let letter = api.links.store.dead_letter(caller.only_tenant(), id).await.map_err(refusal::ledger)?;
    letter.filter(|letter| letter.state != LetterState::Discarded).ok_or_else(refusal::unknown_letter)
}
