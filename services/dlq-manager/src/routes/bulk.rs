//! What replaying and discarding many have in common: the request, its check, the dry run, making the job.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use relay_core::bulk::{JobKind, RATE_MAX};
use relay_core::delivery::DeadReason;
use relay_core::ids::{EndpointId, JobId, uuid_v7};
use relay_core::page::PageRequest;
use relay_runtime::auth::Caller;
use relay_runtime::problem::ProblemResponse;
use relay_runtime::random::bytes10;
use relay_store::{JobSpec, LetterFilter, LetterJob, LetterState, Window};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::filter;
use crate::letter::LetterShape;
use crate::refusal;

/// Letters that a dry run shows.
const EXAMPLES: u32 = 5;

/// Which letters, and how.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct BulkRequest {
    /// Only letters for this endpoint
    endpoint_id: Option<Uuid>,
    /// Only letters of this event type
    #[schema(example = "order.created")]
    event_type: Option<String>,
    /// Only letters with this reason
    #[schema(value_type = Option<String>, example = "exhausted")]
    reason: Option<DeadReason>,
    /// Only letters that came here after this time
    after: Option<DateTime<Utc>>,
    /// Only letters that came here before this time
    before: Option<DateTime<Utc>>,
    /// Replay also those that were replayed less than an hour ago
    #[serde(default)]
    force: bool,
    /// Letters per second, 1 to 10,000; without it as fast as it goes
    #[schema(minimum = 1, maximum = 10000)]
    rate: Option<u32>,
    /// Only say what would be done
    #[serde(default)]
    dry_run: bool,
}

/// What a job would do.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRun {
    /// Always true: nothing was changed.
    dry_run: bool,
    /// Letters that match; null: more than 1,000,000.
    total: Option<i64>,
    /// The newest of them.
    examples: Vec<LetterShape>,
}

impl BulkRequest {
    /// Whether the job has a pace.
    pub fn is_paced(&self) -> bool {
        self.rate.is_some()
    }

    /// Answers a dry run, or makes the job. Its maker runs it for `held`.
    pub async fn begin(
        self,
        api: &Api,
        caller: &Caller,
        kind: JobKind,
        held: Duration,
    ) -> Result<Result<LetterJob, Response>, ProblemResponse> {
        if self.rate.is_some_and(|rate| !(1..=RATE_MAX).contains(&rate)) {
            return Err(ProblemResponse::field("body.rate", format!("must be 1 to {RATE_MAX}")));
        }
        let spec = JobSpec {
            tenant: caller.only_tenant().cloned(),
            kind,
            filter: filter::checked(LetterFilter {
                endpoint: self.endpoint_id.map(EndpointId),
                event_type: self.event_type,
                reason: self.reason,
                state: Some(LetterState::Open),
                after: self.after,
                before: self.before,
            })?,
            force: self.force,
            rate: self.rate,
        };
        let store = &api.links.store;
        if self.dry_run {
            let total = store.count_for_job(&spec).await.map_err(refusal::ledger)?;
            let mut window = Window::page(PageRequest { page: 1, size: EXAMPLES });
            window.with_total = false;
            let listed =
                store.dead_letters(caller.only_tenant(), &spec.filter, &window).await.map_err(refusal::ledger)?;
            let examples = listed.items.into_iter().map(LetterShape::from).collect();
            return Ok(Err(Json(DryRun { dry_run: true, total, examples }).into_response()));
        }
        let id = JobId(uuid_v7(api.links.clock.now(), bytes10()));
        store.create_job(id, &spec, held).await.map(Ok).map_err(refusal::ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_may_be_left_out() {
        let all: BulkRequest = serde_json::from_str("{}").unwrap();
        assert!(!all.force && !all.dry_run && !all.is_paced() && all.reason.is_none());
        let some: BulkRequest =
            serde_json::from_str(r#"{"reason": "gone", "before": "2026-01-01T00:00:00Z", "rate": 5}"#).unwrap();
        assert!(some.is_paced() && some.reason == Some(DeadReason::Gone) && some.before.is_some());
    }
}
