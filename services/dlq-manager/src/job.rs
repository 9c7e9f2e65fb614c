//! A job as the interface shows it. The field names are part of the interface and stay.

use chrono::{DateTime, Utc};
use relay_store::{JobError, LetterJob};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::filter::BulkFilter;

/// A job on many dead letters.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobShape {
    id: Uuid,
    /// `replay` or `discard`.
    #[schema(example = "replay")]
    kind: &'static str,
    /// `queued`, `running`, `done`, `cancelled`, `failed`.
    #[schema(example = "running")]
    state: &'static str,
    /// Which letters.
    filter: BulkFilter,
    /// Also those that were replayed less than an hour ago, or delivered after all.
    force: bool,
    /// Letters per second; null: as fast as it goes.
    rate: Option<u32>,
    /// Letters that matched at the start; null: not begun yet, or more than 1,000,000.
    total: Option<i64>,
    /// Letters replayed or discarded.
    done: i64,
    /// Letters left as they were: replayed less than an hour ago, in progress, delivered, or gone meanwhile.
    skipped: i64,
    /// Letters that could not be done.
    errors: i64,
    /// The first 20 of them.
    error_examples: Vec<JobErrorShape>,
    /// Why the job failed.
    error: Option<String>,
    /// When it was asked for; letters that came here later are not touched.
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

/// A letter that a job could not do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobError)]
pub struct JobErrorShape {
    dead_letter_id: Uuid,
    /// `endpoint_inactive`, `unknown_endpoint` or `not_replayable`.
    #[schema(example = "endpoint_inactive")]
    why: String,
}

impl From<JobError> for JobErrorShape {
    fn from(error: JobError) -> Self {
        Self { dead_letter_id: error.letter.0, why: error.why }
    }
}

impl From<LetterJob> for JobShape {
    fn from(job: LetterJob) -> Self {
        Self {
            id: job.id.0,
            kind: job.spec.kind.as_str(),
            state: job.state.as_str(),
            filter: BulkFilter::from(&job.spec.filter),
            force: job.spec.force,
            rate: job.spec.rate,
            total: job.total,
            done: job.done,
            skipped: job.skipped,
            errors: job.errors,
            error_examples: job.error_examples.into_iter().map(JobErrorShape::from).collect(),
            error: job.error,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}
