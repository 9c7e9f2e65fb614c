//! `POST /api/v1/dlq/replay/bulk`: the open dead letters that match are sent again, a thousand a statement. What was
//! replayed before is not: a second call finds nothing twice.

use axum::Json;
use axum::extract::State;
use relay_core::delivery::DeadReason;
use relay_core::ids::EndpointId;
use relay_core::page::Cursor;
use relay_runtime::auth::Caller;
use relay_runtime::extract::JsonBody;
use relay_runtime::openapi::{BodyProblems, CommonProblems};
use relay_runtime::problem::ProblemResponse;
use relay_store::{LetterFilter, LetterState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::refusal;
use crate::replay::{ReplayShape, settle, wake};

/// Letters of one statement.
const STATEMENT_LETTERS: i64 = 1000;
/// Letters of one request.
const REQUEST_LETTERS: usize = 10_000;

/// Which letters; without any filter, all that are open.
#[derive(Debug, Deserialize, ToSchema)]
pub struct BulkReplay {
    /// Only letters for this endpoint
    endpoint_id: Option<Uuid>,
    /// Only letters of this event type
    event_type: Option<String>,
    /// Only letters with this reason
    #[schema(value_type = Option<String>)]
    reason: Option<DeadReason>,
    /// Also those that were replayed less than an hour ago
    #[serde(default)]
    force: bool,
}

/// What became of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkReplayed {
    /// How many are open again.
    replayed: usize,
    /// How many could not be.
    errors: usize,
    /// Those that are open again.
    results: Vec<ReplayShape>,
    /// More than 10,000 match: send the request again.
    remaining: bool,
}

/// Replay many dead letters
///
/// Handles up to 10,000 open letters a request; `remaining` says whether there are more.
#[utoipa::path(
    post,
    path = "/api/v1/dlq/replay/bulk",
    tag = "dead letters",
    operation_id = "replay_dead_letters",
    request_body = BulkReplay,
    responses((status = 200, description = "What became of them", body = BulkReplayed), BodyProblems, CommonProblems)
)]
pub async fn replay_bulk(
    State(api): State<Api>,
    caller: Caller,
    JsonBody(wanted): JsonBody<BulkReplay>,
) -> Result<Json<BulkReplayed>, ProblemResponse> {
    let filter = LetterFilter {
        endpoint: wanted.endpoint_id.map(EndpointId),
        event_type: wanted.event_type,
        reason: wanted.reason,
        state: Some(LetterState::Open),
        ..LetterFilter::default()
    };
    let mut answer = BulkReplayed { replayed: 0, errors: 0, results: Vec::new(), remaining: false };
    let mut after: Option<Cursor> = None;
    loop {
        let page =
            api.links.store.replay_many(caller.only_tenant(), &filter, wanted.force, after, STATEMENT_LETTERS).await;
        let (outcomes, next) = match page {
            Ok(page) => page,
            // What is done is done and must be told; the rest is left.
            Err(error) if answer.replayed > 0 => {
                tracing::warn!(%error, replayed = answer.replayed, "a replay of many stopped half-way");
                answer.remaining = true;
                break;
            }
            Err(error) => return Err(refusal::ledger(error)),
        };
        for (letter, outcome) in outcomes {
            match settle(&api.links, letter, outcome).await {
                Ok(replayed) => answer.results.push(replayed.shape),
                Err(problem) => {
                    tracing::debug!(%letter, problem = problem.0.detail, "not replayed");
                    answer.errors += 1;
                }
            }
        }
        answer.replayed = answer.results.len();
        wake(&api.links).await;
        after = next;
        if after.is_none() {
            break;
        }
        if answer.replayed + answer.errors >= REQUEST_LETTERS {
            answer.remaining = true;
            break;
        }
    }
    api.counters.replayed.increment(u64::try_from(answer.replayed).unwrap_or(u64::MAX));
    Ok(Json(answer))
}
