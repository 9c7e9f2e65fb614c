//! The check before the send: a suspect job takes its delivery's row, or is dropped. Called by the deliverer
//! just before it sends; step 8 of an event's way.
//!
//! Invariant: of all copies of a job, one takes the row. An unknown outcome is for the caller to drop unacked.

use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::ids::{EndpointId, EventId};
#[cfg(debug_assertions)]
use relay_core::mutation::{self, Safety};
use uuid::Uuid;

use crate::connect::Store;
use crate::dispatch::micros;
use crate::error::StoreError;

/// What a suspect job knows of its row.
#[derive(Clone, Copy, Debug)]
pub struct TakeKey {
    /// The event.
    pub event: EventId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The job's claim.
    pub claim: i32,
    /// The job's attempts.
    pub attempts: i32,
    /// For how long the row is taken.
    pub lease: Duration,
}

/// The row is the job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The claim to go on with.
    pub claim: i32,
    /// Postgres's `now()` of the claim.
    pub claimed_at: DateTime<Utc>,
}

impl Store {
    /// Takes the rows that are open with the job's claim and attempts; `None` for the others: drop the job.
    pub async fn take(&self, keys: &[TakeKey]) -> Result<Vec<Option<Taken>>, StoreError> {
        #[cfg(debug_assertions)]
        if mutation::is_broken(Safety::CheckTakes) {
            return self.look(keys).await;
        }
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|n| (keys[*n].event, keys[*n].endpoint));
        let events: Vec<Uuid> = order.iter().map(|n| keys[*n].event.0).collect();
        let endpoints: Vec<Uuid> = order.iter().map(|n| keys[*n].endpoint.0).collect();
        let claims: Vec<i32> = order.iter().map(|n| keys[*n].claim).collect();
        let attempts: Vec<i32> = order.iter().map(|n| keys[*n].attempts).collect();
        let leases: Vec<i64> = order.iter().map(|n| micros(keys[*n].lease)).collect();
        let rows = self
            .keyed
            .all(sqlx::query_file!("src/sql/take.sql", &events, &endpoints, &claims, &attempts, &leases))
            .await?;
        let mut taken = vec![None; keys.len()];
        for row in rows {
            let place = usize::try_from(row.n - 1).ok().and_then(|n| order.get(n)).copied();
            let place =
                place.ok_or_else(|| StoreError::Inconsistent(format!("the check answered for row {}", row.n)))?;
            taken[place] = Some(Taken { claim: row.claim, claimed_at: row.now });
        }
        Ok(taken)
    }
}
