//! Step 12 of an event's way: what is due becomes jobs again. Called by the scheduler.
//!
//! Due work is found endpoint by endpoint, so that a pass costs in proportion to endpoints and not to the rows
//! of those that are held. Claims are leases: an unknown outcome is left to lapse.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::event::EventType;
use relay_core::ids::{EndpointId, EventId, TenantId};
use relay_core::job::{Job, PAYLOAD_BYTES_MAX};
use relay_core::subject::Lane;
use uuid::Uuid;

use crate::connect::Store;
use crate::dispatch::micros;
use crate::error::StoreError;

/// What is due: the kinds are found by different indexes, as lapsed leases are rare and what is leased is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Rows that wait for their time, and whose time has come.
    Waiting,
    /// Leases that lapsed: nobody said what became of them. To look for them costs the more, the more rows were leased
    /// since the oldest snapshot that anybody holds.
    Lapsed,
}

/// An endpoint with work that is due.
#[derive(Clone, Debug)]
pub struct DueEndpoint {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub tenant: TenantId,
    /// When its oldest due row was due.
    pub oldest: DateTime<Utc>,
}

struct DueRow {
    endpoint_id: Uuid,
    tenant: String,
    due_at: DateTime<Utc>,
}

/// How much may be claimed for one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct ClaimBudget {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Rows at most.
    pub limit: i32,
    /// For how long they are claimed.
    pub lease: Duration,
    /// The directory version that the decision knew; jobs carry it.
    pub version: i64,
    /// The claim is the circuit's probe.
    pub probe: bool,
}

impl Store {
    /// Endpoints that have rows of this kind.
    pub async fn due(&self, kind: Due) -> Result<Vec<DueEndpoint>, StoreError> {
        let rows = match kind {
            Due::Waiting => self.keyed.all(sqlx::query_file_as!(DueRow, "src/sql/due_waiting.sql")).await?,
            Due::Lapsed => self.keyed.all(sqlx::query_file_as!(DueRow, "src/sql/due_lapsed.sql")).await?,
        };
        Ok(rows
            .into_iter()
            .map(|r| DueEndpoint {
                endpoint: EndpointId(r.endpoint_id),
                tenant: TenantId::trusted(&r.tenant),
                oldest: r.due_at,
            })
            .collect())
    }

    /// Claims due rows of this kind within the budgets and makes jobs of them, oldest first for each endpoint, with the lane
    /// that each belongs into: replay, where an operator opened the delivery again; retry after a failure in
    /// this life; else fresh. Rows that another claim or record has locked are left to the next pass. At most
    /// `rows_max` in all: the budgets are used up in their order, and the jobs come in it.
    pub async fn claim(
        &self,
        budgets: &[ClaimBudget],
        kind: Due,
        rows_max: i32,
    ) -> Result<Vec<(Lane, Job)>, StoreError> {
        if budgets.is_empty() {
            return Ok(Vec::new());
        }
        let endpoints: Vec<Uuid> = budgets.iter().map(|b| b.endpoint.0).collect();
        let limits: Vec<i32> = budgets.iter().map(|b| b.limit).collect();
        let leases: Vec<i64> = budgets.iter().map(|b| micros(b.lease)).collect();
        let payload_max = i32::try_from(PAYLOAD_BYTES_MAX).unwrap_or(i32::MAX);
        let rows = self
            .keyed
            .all(sqlx::query_file!(
                "src/sql/claim.sql",
                &endpoints,
                &limits,
                &leases,
                kind == Due::Lapsed,
                payload_max,
                i64::from(rows_max)
            ))
            .await?;
        rows.into_iter()
            .map(|r| {
                let budget = usize::try_from(r.n - 1).ok().and_then(|n| budgets.get(n));
                let budget = budget.ok_or_else(|| StoreError::Inconsistent(format!("a claim for budget {}", r.n)))?;
                let lane = if r.lane == Lane::Replay as i16 {
                    Lane::Replay
                } else if r.attempts > r.base {
                    Lane::Retry
                } else {
                    Lane::Fresh
                };
                let job = Job {
                    event: EventId(r.event_id),
                    endpoint: EndpointId(r.endpoint_id),
                    tenant: TenantId::trusted(&r.tenant),
                    event_type: EventType::trusted(&r.event_type),
                    claim: r.claim,
                    attempts: r.attempts,
                    base: r.base,
                    claimed_at: r.now,
                    accepted_at: r.accepted_at,
                    directory_version: budget.version,
                    probe: budget.probe,
                    trace: r.trace.map(|t| Arc::from(String::from_utf8_lossy(&t))),
                    payload: r.payload.map(Bytes::from),
                };
                Ok((lane, job))
            })
            .collect()
    }

    /// Payloads that are too large for jobs. Events that aren't there are missing from the answer.
    pub async fn payloads(&self, events: &[EventId]) -> Result<HashMap<EventId, Bytes>, StoreError> {
        let ids: Vec<Uuid> = events.iter().map(|e| e.0).collect();
        let rows = self
            .keyed
            .all(sqlx::query!(
                "select e.id, e.payload from unnest($1::uuid[]) as x (id) join events e on e.id = x.id",
                &ids
            ))
            .await?;
        Ok(rows.into_iter().map(|r| (EventId(r.id), Bytes::from(r.payload))).collect())
    }
}
