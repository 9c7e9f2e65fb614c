//! Step 6 of an event's way: one statement writes a batch of events with everything that hangs on them: open
//! deliveries, aliases of keys, dead letters, statistics. Called by the dispatcher; safe to repeat whole.
//!
//! Invariants: an event that is there already inserts nothing; all deliveries of one event are in the
//! statement that writes the event; nothing is written for a tenant whose directory has moved on since the
//! matching (the fence).

use std::collections::HashMap;

use chrono::{DateTime, NaiveDate, Utc};
use relay_core::ids::{DeadLetterId, EventId, TenantId};
use relay_core::protocol::PlannedEvent;
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Map;
use tracing::warn;
use uuid::Uuid;

use crate::bisect::{Piece, bisect};
use crate::connect::Store;
use crate::error::{ErrorKind, StoreError};
use crate::partitions::days_of;
use crate::run::{CONFLICT_RETRIES, DEADLINE, Held};

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DispatchOutcome {
    /// Written now, with its deliveries.
    Inserted,
    /// It was there: nothing was written.
    Present,
    /// The event of the same key, with a neighbouring day's id, was there: its id now is an alias of that one.
    Alias(EventId),
    /// Its tenant's directory has moved on (or the tenant doesn't exist): match again. Nothing was written.
    Stale,
    /// The statement with this one event fails with a data error (these words): it is to become a dead letter.
    Poison(String),
    /// Its day has no partition and gets none, too old or too far ahead: it is to become a dead letter.
    Expired(String),
}

/// The answer to a batch.
#[derive(Clone, Debug)]
pub struct Dispatched {
    /// Postgres's `now()` of the (first) statement: the claim time of the jobs.
    pub now: DateTime<Utc>,
    /// One per event of the batch, in its order.
    pub outcomes: Vec<DispatchOutcome>,
}

struct Answer {
    now: DateTime<Utc>,
    outcomes: Vec<DispatchOutcome>,
}

struct Row {
    now: DateTime<Utc>,
    stale: Vec<i64>,
    inserted: Vec<Uuid>,
    alias_n: Vec<i64>,
    alias_of: Vec<Uuid>,
}

impl Row {
    /// Ordinals count from 1, as Postgres counts them.
    fn outcomes(self, batch: &[&PlannedEvent]) -> Result<Answer, StoreError> {
        let mut outcomes = vec![DispatchOutcome::Present; batch.len()];
        let mut set =
            |n: i64, outcome: DispatchOutcome| match usize::try_from(n - 1).ok().and_then(|n| outcomes.get_mut(n)) {
                Some(place) => {
                    *place = outcome;
                    Ok(())
                }
                None => Err(StoreError::Inconsistent(format!("the dispatch statement answered for row {n}"))),
            };
        for n in self.stale {
            set(n, DispatchOutcome::Stale)?;
        }
        for (n, of) in self.alias_n.into_iter().zip(self.alias_of) {
            set(n, DispatchOutcome::Alias(EventId(of)))?;
        }
        let places: HashMap<Uuid, usize> = batch.iter().enumerate().map(|(n, p)| (p.event.id.0, n)).collect();
        for id in self.inserted {
            let n = places
                .get(&id)
                .ok_or_else(|| StoreError::Inconsistent(format!("the dispatch statement wrote event {id}")))?;
            outcomes[*n] = DispatchOutcome::Inserted;
        }
        Ok(Answer { now: self.now, outcomes })
    }
}

/// The statement for a batch, with its arguments. `batch` is sorted by event id.
fn statement(
    batch: &[&PlannedEvent],
) -> Map<'static, Postgres, impl FnMut(PgRow) -> Result<Row, sqlx::Error> + Send + use<>, PgArguments> {
    let mut fence: HashMap<(&TenantId, i64), i32> = HashMap::new();
    let (mut tenants, mut versions) = (Vec::new(), Vec::new());
    let fence_index: Vec<i32> = batch
        .iter()
        .map(|p| {
            *fence.entry((&p.event.tenant, p.directory_version)).or_insert_with(|| {
                tenants.push(p.event.tenant.as_str());
                versions.push(p.directory_version);
                i32::try_from(tenants.len()).unwrap_or(i32::MAX)
            })
        })
        .collect();

    let ids: Vec<Uuid> = batch.iter().map(|p| p.event.id.0).collect();
    let tenant: Vec<&str> = batch.iter().map(|p| p.event.tenant.as_str()).collect();
    let types: Vec<&str> = batch.iter().map(|p| p.event.event_type.as_str()).collect();
    let endpoints: Vec<Option<Uuid>> = batch.iter().map(|p| p.event.endpoint.map(|e| e.0)).collect();
    let accepted: Vec<DateTime<Utc>> = batch.iter().map(|p| p.event.accepted_at).collect();
    let keys: Vec<Option<&[u8]>> = batch.iter().map(|p| p.event.key.as_ref().map(|k| k.as_str().as_bytes())).collect();
    let traces: Vec<Option<&[u8]>> = batch.iter().map(|p| p.event.trace.as_ref().map(|t| t.as_bytes())).collect();
    let fanout: Vec<i32> = batch
        .iter()
        .map(|p| i32::try_from(p.deliveries.len() + usize::from(p.dead.is_some())).unwrap_or(i32::MAX))
        .collect();
    let payloads: Vec<&[u8]> = batch.iter().map(|p| &p.event.payload[..]).collect();
    let neighbours: Vec<Option<[EventId; 2]>> = batch
        .iter()
        .map(|p| p.event.key.as_ref().map(|k| EventId::keyed_neighbours(&p.event.tenant, k, p.event.accepted_at)))
        .collect();
    let before: Vec<Option<Uuid>> = neighbours.iter().map(|n| n.map(|n| n[0].0)).collect();
    let after: Vec<Option<Uuid>> = neighbours.iter().map(|n| n.map(|n| n[1].0)).collect();

    let (mut alias_n, mut alias_id) = (Vec::new(), Vec::new());
    for (n, planned) in (1i64..).zip(batch) {
        for alias in &planned.aliases {
            alias_n.push(n);
            alias_id.push(alias.0);
        }
    }

    let count = batch.iter().map(|p| p.deliveries.len()).sum();
    let (mut d_event, mut d_endpoint): (Vec<Uuid>, Vec<Uuid>) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut d_leased, mut d_lease, mut d_lane): (Vec<bool>, Vec<i64>, Vec<i16>) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    for planned in batch {
        for delivery in &planned.deliveries {
            d_event.push(planned.event.id.0);
            d_endpoint.push(delivery.endpoint.0);
            d_leased.push(delivery.leased);
            // Not leased: due now.
            d_lease.push(if delivery.leased { micros(delivery.lease) } else { 0 });
            d_lane.push(i16::from(delivery.lane as u8));
        }
    }

    let dead: Vec<_> = batch.iter().filter_map(|p| p.dead.as_ref().map(|d| (p.event.id, d))).collect();
    let x_event: Vec<Uuid> = dead.iter().map(|(e, _)| e.0).collect();
    let x_endpoint: Vec<Uuid> = dead.iter().map(|(_, d)| d.endpoint.0).collect();
    let x_letter: Vec<Uuid> = dead.iter().map(|(e, d)| DeadLetterId::of_delivery(*e, d.endpoint).0).collect();
    let x_reason: Vec<&str> = dead.iter().map(|(_, d)| d.reason.as_str()).collect();
    let x_error: Vec<&[u8]> = dead.iter().map(|(_, d)| d.error.as_bytes()).collect();

    sqlx::query_file_as!(
        Row,
        "src/sql/dispatch.sql",
        &tenants as _,
        &versions,
        &ids,
        &fence_index,
        &tenant as _,
        &types as _,
        &endpoints as _,
        &accepted,
        &keys as _,
        &traces as _,
        &fanout,
        &payloads as _,
        &before as _,
        &after as _,
        &alias_n,
        &alias_id,
        &d_event,
        &d_endpoint,
        &d_leased,
        &d_lease,
        &d_lane,
        &x_event,
        &x_endpoint,
        &x_letter,
        &x_reason as _,
        &x_error as _
    )
}

/// A time span as the statements take it.
pub(crate) fn micros(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn days(batch: &[&PlannedEvent]) -> std::collections::BTreeSet<NaiveDate> {
    days_of(batch.iter().flat_map(|p| p.aliases.iter().map(|a| a.0).chain([p.event.id.0])))
}

impl Store {
    /// Writes a batch. An event that can't be stored doesn't disturb the others; its outcome says so.
    /// Ids must be distinct (copies are folded before).
    pub async fn dispatch(&self, batch: &[PlannedEvent]) -> Result<Dispatched, StoreError> {
        // In the order of their keys: statements that meet wait for each other in one direction only.
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_unstable_by_key(|n| batch[*n].event.id);
        let sorted: Vec<&PlannedEvent> = order.iter().map(|n| &batch[*n]).collect();

        let pieces = bisect(sorted.len(), |range| self.dispatch_piece(&sorted[range])).await?;

        let mut now = None;
        let mut outcomes = vec![DispatchOutcome::Stale; batch.len()];
        for piece in pieces {
            match piece {
                Piece::Done(range, answer) => {
                    now = Some(now.map_or(answer.now, |n: DateTime<Utc>| n.min(answer.now)));
                    for (n, outcome) in range.zip(answer.outcomes) {
                        outcomes[order[n]] = outcome;
                    }
                }
                Piece::Refused(n, error) => {
                    warn!(event = %sorted[n].event.id, %error, "the ledger can't hold an event");
                    // Nobody's event is given up while the server is unwell.
                    self.ping().await?;
                    outcomes[order[n]] = match error.kind() {
                        ErrorKind::MissingPartition => DispatchOutcome::Expired(error.to_string()),
                        _ => DispatchOutcome::Poison(error.to_string()),
                    };
                }
            }
        }
        let now = match now {
            Some(now) => now,
            None => self.clock().await?,
        };
        Ok(Dispatched { now, outcomes })
    }

    async fn dispatch_piece(&self, batch: &[&PlannedEvent]) -> Result<Answer, StoreError> {
        let mut made_partitions = false;
        let mut conflicts = 0;
        loop {
            let answer = self.dispatch.one(statement(batch)).await;
            match answer {
                Ok(row) => return row.outcomes(batch),
                Err(e) if e.kind() == ErrorKind::Conflict && conflicts < CONFLICT_RETRIES => conflicts += 1,
                Err(e) if e.kind() == ErrorKind::MissingPartition && !made_partitions => {
                    self.ensure_partitions(days(batch)).await?;
                    made_partitions = true;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// For tenants whose directory changes so often that three matchings in a row were stale: holds their
    /// versions still. Take it, refresh the directory, match, dispatch; nothing of that can be stale.
    pub async fn lock_versions(&self, tenants: &[TenantId]) -> Result<VersionLock, StoreError> {
        let mut names: Vec<String> = tenants.iter().map(|t| t.as_str().to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        let mut held = self.queries.hold().await?;
        // Not the driver's transaction: dropping it half-way would give a connection back with its locks.
        tokio::time::timeout(DEADLINE, async {
            sqlx::raw_sql("begin").execute(held.conn()).await?;
            sqlx::query!("select t.id from tenants t where t.id = any($1) order by t.id for share", &names)
                .fetch_all(held.conn())
                .await
        })
        .await
        .map_err(|_| StoreError::Timeout)??;
        Ok(VersionLock(held))
    }
}

/// Holds tenants' directory versions still, for at most as long as the server lets a transaction idle (10 s).
/// Dropping it closes its connection, which lets go too.
pub struct VersionLock(Held);

impl VersionLock {
    /// Lets go.
    pub async fn release(mut self) -> Result<(), StoreError> {
        tokio::time::timeout(DEADLINE, sqlx::raw_sql("commit").execute(self.0.conn()))
            .await
            .map_err(|_| StoreError::Timeout)??;
        self.0.give_back();
        Ok(())
    }
}
