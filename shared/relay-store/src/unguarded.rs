//! What check and record do in a process that breaks their safety on purpose (see [`relay_core::mutation`]): the check
//! only looks, and results are written as if claim and attempts were those of the row. Builds with debug assertions only.

use chrono::{DateTime, Utc};
use relay_core::ids::{EndpointId, EventId};
use relay_core::mutation::{self, Safety};
use relay_core::protocol::FoldedResult;
use uuid::Uuid;

use crate::check::{TakeKey, Taken};
use crate::connect::Store;
use crate::error::StoreError;

/// What guards an open row, and Postgres's `now()`.
struct Guard {
    claim: i32,
    attempts: i32,
    now: DateTime<Utc>,
}

impl Store {
    async fn guards(&self, keys: &[(EventId, EndpointId)]) -> Result<Vec<Option<Guard>>, StoreError> {
        let events: Vec<Uuid> = keys.iter().map(|(event, _)| event.0).collect();
        let endpoints: Vec<Uuid> = keys.iter().map(|(_, endpoint)| endpoint.0).collect();
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select x.n as "n!", o.claim, o.attempts, now() as "now!"
                from unnest($1::uuid[], $2::uuid[]) with ordinality as x (event_id, endpoint_id, n)
                join open_deliveries o on o.event_id = x.event_id and o.endpoint_id = x.endpoint_id"#,
                &events,
                &endpoints
            ))
            .await?;
        let mut guards: Vec<Option<Guard>> = keys.iter().map(|_| None).collect();
        for row in rows {
            if let Some(place) = usize::try_from(row.n - 1).ok().and_then(|n| guards.get_mut(n)) {
                *place = Some(Guard { claim: row.claim, attempts: row.attempts, now: row.now });
            }
        }
        Ok(guards)
    }

    /// A check that takes nothing.
    pub(crate) async fn look(&self, keys: &[TakeKey]) -> Result<Vec<Option<Taken>>, StoreError> {
        let rows: Vec<_> = keys.iter().map(|k| (k.event, k.endpoint)).collect();
        let guards = self.guards(&rows).await?;
        let is_its = |key: &TakeKey, guard: &Guard| (guard.claim, guard.attempts) == (key.claim, key.attempts);
        Ok(keys
            .iter()
            .zip(guards)
            .map(|(key, guard)| guard.filter(|g| is_its(key, g)))
            .map(|guard| guard.map(|g| Taken { claim: g.claim, claimed_at: g.now }))
            .collect())
    }

    /// The same results, each as if it were of the row's claim; `None` where nothing is broken.
    pub(crate) async fn unguarded(&self, batch: &[FoldedResult]) -> Result<Option<Vec<FoldedResult>>, StoreError> {
        if !mutation::is_broken(Safety::ResultGuards) {
            return Ok(None);
        }
        let rows: Vec<_> = batch.iter().map(|r| (r.decisive.event, r.decisive.endpoint)).collect();
        let mut batch = batch.to_vec();
        for (result, guard) in batch.iter_mut().zip(self.guards(&rows).await?) {
            if let Some(guard) = guard {
                (result.decisive.claim, result.decisive.attempts) = (guard.claim, guard.attempts);
            }
        }
        Ok(Some(batch))
    }
}
