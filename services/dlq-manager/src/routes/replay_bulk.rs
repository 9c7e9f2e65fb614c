//! `POST /api/v1/dlq/replay/bulk`: a job that sends the open dead letters that match again. Without a pace it is run
//! at once, and the answer of a short one says what became of each letter; the leader goes on with a long one.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use relay_core::bulk::JobKind;
use relay_core::ids::{DeadLetterId, JobId};
use relay_runtime::auth::Caller;
use relay_runtime::extract::JsonBody;
use relay_runtime::openapi::{BodyProblems, CommonProblems};
use relay_runtime::problem::ProblemResponse;
use relay_store::{ReplayOutcome, Stepped};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::api::Api;
use crate::job::JobShape;
use crate::refusal;
use crate::replay::ReplayShape;
use crate::routes::bulk::{BulkRequest, DryRun};
use crate::runner::step;

/// How long a request runs its job.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long the leader leaves a job to its request: that may be gone.
const HELD: Duration = Duration::from_secs(20);
/// Letters that an answer names.
const RESULTS_MAX: usize = 10_000;

/// The job, and what became of the letters so far.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkReplayed {
    /// How many are replayed so far.
    replayed: i64,
    /// How many were skipped or could not be replayed so far.
    errors: i64,
    /// Those that are replayed.
    results: Vec<ReplayShape>,
    /// Whether the job goes on.
    remaining: bool,
    /// The job; see `GET /jobs/{id}`.
    job: JobShape,
}

/// Replay many dead letters
///
/// Makes a job that replays the open letters that match and are here now, each once. Without `rate` the request waits
/// for it up to 5 seconds; `remaining` says whether it goes on. `dry_run` only says what would be done.
#[utoipa::path(
    post,
    path = "/api/v1/dlq/replay/bulk",
    tag = "dead letters",
    operation_id = "replay_dead_letters",
    request_body(content = BulkRequest, example = json!({"reason": "exhausted", "after": "2026-01-31T02:00:00Z", "rate": 50})),
    responses(
        (status = 200, description = "A dry run: nothing was changed", body = DryRun),
        (status = 202, description = "The job, and what became of the letters so far", body = BulkReplayed),
        BodyProblems,
        CommonProblems,
    )
)]
pub async fn replay_bulk(
    State(api): State<Api>,
    caller: Caller,
    JsonBody(wanted): JsonBody<BulkRequest>,
) -> Result<Response, ProblemResponse> {
    let held = if wanted.is_paced() { Duration::ZERO } else { HELD };
    let mut job = match wanted.begin(&api, &caller, JobKind::Replay, held).await? {
        Ok(job) => job,
        Err(dry) => return Ok(dry),
    };
    let mut results = Vec::new();
    if !held.is_zero() {
        run(&api, job.id, &mut results).await;
        let store = &api.links.store;
        // It is made: whatever the ledger says now, the job goes on.
        if let Err(error) = store.release_job(job.id).await {
            tracing::warn!(job = %job.id, %error, "a job waits until its request's time is over");
        }
        if let Some(now) = store.letter_job(None, job.id).await.map_err(refusal::ledger)? {
            job = now;
        }
    }
    let answer = BulkReplayed {
        replayed: job.done,
        errors: job.skipped + job.errors,
        results,
        remaining: !job.state.is_over(),
        job: job.into(),
    };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Runs a job for a while.
async fn run(api: &Api, job: JobId, results: &mut Vec<ReplayShape>) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && results.len() < RESULTS_MAX {
        match step(api, job).await {
            Ok(Stepped::Took { outcomes, .. }) => {
                results.extend(outcomes.iter().filter_map(|(letter, outcome)| shape(*letter, outcome)));
            }
            Ok(Stepped::Began) => {}
            Ok(Stepped::Over | Stepped::Wait(_) | Stepped::NewEvents { .. }) => return,
            Err(error) => {
                tracing::warn!(%job, %error, "a job is left to the leader");
                return;
            }
        }
    }
}

fn shape(letter: DeadLetterId, outcome: &ReplayOutcome) -> Option<ReplayShape> {
    match outcome {
        ReplayOutcome::Replayed { event, delivery, .. } => Some(ReplayShape::new(letter, *event, Some(*delivery))),
        ReplayOutcome::SentAsNewEvent(event) => Some(ReplayShape::new(letter, *event, None)),
        _ => None,
    }
}
