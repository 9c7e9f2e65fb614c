//! What waits, read at the head of each endpoint's queue: no more rows than are named here, however much waits.
//! Called by the statistics' routes.

use chrono::{DateTime, Utc};
use relay_core::ids::{EndpointId, TenantId};

use crate::connect::Store;
use crate::error::StoreError;

/// Due deliveries are counted up to this many.
pub const DUE_MAX: i64 = 10_000;
/// Among so many of an endpoint's deliveries, those that are due first, the oldest pending one is looked for.
const HEAD: i64 = 100;

/// What waits of a tenant or an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Open deliveries that are to be sent now; `None` above [`DUE_MAX`].
    pub due: Option<i64>,
    /// Since when the one that waits longest has been due.
    pub oldest_due_at: Option<DateTime<Utc>>,
    /// When the oldest one without an attempt was accepted, or sent again.
    pub oldest_pending_at: Option<DateTime<Utc>>,
}

impl Store {
    /// What waits; `None` for the whole tenant.
    pub async fn backlog(&self, tenant: &TenantId, endpoint: Option<EndpointId>) -> Result<Backlog, StoreError> {
        let row = self
            .keyed
            .one(sqlx::query_file!("src/sql/backlog.sql", tenant.as_str(), endpoint.map(|e| e.0), HEAD, DUE_MAX + 1))
            .await?;
        Ok(Backlog {
            due: Some(row.due).filter(|n| *n <= DUE_MAX),
            oldest_due_at: row.oldest_due_at,
            oldest_pending_at: row.oldest_pending_at,
        })
    }
}
