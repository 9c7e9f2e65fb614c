//! `POST /api/v1/dlq/discard/bulk`: a job that gives up the open dead letters that match.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use relay_core::bulk::JobKind;
use relay_runtime::auth::Caller;
use relay_runtime::extract::JsonBody;
use relay_runtime::openapi::{BodyProblems, CommonProblems};
use relay_runtime::problem::ProblemResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::job::JobShape;
use crate::routes::bulk::{BulkRequest, DryRun};

/// The job.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkDiscard {
    job: JobShape,
}

/// Discard many dead letters
///
/// Makes a job that discards the open letters that match and are here now. `dry_run` only says what would be done.
#[utoipa::path(
    post,
    path = "/api/v1/dlq/discard/bulk",
    tag = "dead letters",
    operation_id = "discard_dead_letters",
    request_body(content = BulkRequest, example = json!({"reason": "permanent", "before": "2026-01-31T00:00:00Z"})),
    responses(
        (status = 200, description = "A dry run: nothing was changed", body = DryRun),
        (status = 202, description = "The job", body = BulkDiscard),
        BodyProblems,
        CommonProblems,
    )
)]
pub async fn discard_bulk(
    State(api): State<Api>,
    caller: Caller,
    JsonBody(wanted): JsonBody<BulkRequest>,
) -> Result<Response, ProblemResponse> {
    Ok(match wanted.begin(&api, &caller, JobKind::Discard, Duration::ZERO).await? {
        Ok(job) => (StatusCode::ACCEPTED, Json(BulkDiscard { job: job.into() })).into_response(),
        Err(dry) => dry,
    })
}
