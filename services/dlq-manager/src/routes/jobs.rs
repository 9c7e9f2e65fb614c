//! `GET /api/v1/jobs`, `GET /api/v1/jobs/{id}`, `POST /api/v1/jobs/{id}/cancel`: how far the jobs on many dead letters
//! are, and their end.

use axum::Json;
use axum::extract::State;
use relay_core::ids::JobId;
use relay_core::problem::ProblemType;
use relay_runtime::auth::Caller;
use relay_runtime::extract::{PathId, QueryParams};
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_runtime::problem::ProblemResponse;

use crate::api::Api;
use crate::job::JobShape;
use crate::refusal;

/// List jobs
///
/// Newest first. Those that are over are kept as long as dead letters are.
#[utoipa::path(
    get,
    path = "/api/v1/jobs",
    tag = "jobs",
    operation_id = "list_jobs",
    params(ListParams),
    responses((status = 200, description = "A page of jobs", body = Page<JobShape>), CommonProblems)
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: QueryParams,
) -> Result<Json<Page<JobShape>>, ProblemResponse> {
    let listing = query.listing()?;
    let listed = api.links.store.jobs(caller.only_tenant(), &listing.into()).await.map_err(refusal::ledger)?;
    let items = listed.items.into_iter().map(JobShape::from).collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}

/// Show a job
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}",
    tag = "jobs",
    operation_id = "get_job",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "The job", body = JobShape),
        (status = 404, description = "There is no such job", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn get(
    State(api): State<Api>,
    caller: Caller,
    PathId(id): PathId<JobId>,
) -> Result<Json<JobShape>, ProblemResponse> {
    find(&api, &caller, id).await.map(Json)
}

/// Cancel a job
///
/// What is done stays done, and nothing more is. A job that is over stays as it is.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/cancel",
    tag = "jobs",
    operation_id = "cancel_job",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "The job as it is now", body = JobShape),
        (status = 404, description = "There is no such job", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn cancel(
    State(api): State<Api>,
    caller: Caller,
    PathId(id): PathId<JobId>,
) -> Result<Json<JobShape>, ProblemResponse> {
    api.links.store.cancel_job(caller.only_tenant(), id).await.map_err(refusal::ledger)?;
    find(&api, &caller, id).await.map(Json)
}

async fn find(api: &Api, caller: &Caller, id: JobId) -> Result<JobShape, ProblemResponse> {
    let job = api.links.store.letter_job(caller.only_tenant(), id).await.map_err(refusal::ledger)?;
    job.map(JobShape::from).ok_or_else(|| ProblemResponse::new(ProblemType::JobNotFound, "Job not found"))
}
