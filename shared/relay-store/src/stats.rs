//! Statistics: read as folded totals and what isn't folded yet, never by counting. Counters are net: a replayed
//! dead letter takes its one back. The nil endpoint stands for the whole tenant.
//! Read by the interface; folded by a leader every few seconds. Times of day and percentiles: `series`; what waits:
//! `backlog`.

use relay_core::ids::{EndpointId, TenantId};

use crate::connect::Store;
use crate::error::StoreError;

/// Rows that one folding takes: it stays far below its deadline however much has piled up.
const FOLD_ROWS_MAX: i64 = 10_000;
/// And batches of deltas, so many and until their arrays have so many bytes: some twenty thousand deltas, each of
/// which may be of another endpoint and minute.
const FOLD_BATCHES_MAX: i64 = 2_000;
const FOLD_BYTES_MAX: i64 = 2 * 1024 * 1024;
/// From this length on the samples of a minute or an hour are merged by their buckets.
const SAMPLES_MAX: i32 = 256;

/// What a folding did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folded {
    /// Deltas that it folded.
    pub deltas: u64,
    /// It took as many rows as it may, so there are likely more.
    pub more: bool,
}

/// The counters of an endpoint or a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events accepted (of a tenant only).
    pub events: i64,
    /// Of them, those that matched no endpoint.
    pub unmatched: i64,
    /// Deliveries.
    pub opened: i64,
    /// Of them, delivered.
    pub delivered: i64,
    /// Of them, dead-lettered.
    pub dead_lettered: i64,
    /// Of them, discarded.
    pub discarded: i64,
    /// Of them, waiting for a retry.
    pub retrying: i64,
    /// Attempts that were answered 2xx.
    pub attempts_ok: i64,
    /// Attempts that weren't.
    pub attempts_failed: i64,
    /// Sum of the successful attempts' times, in microseconds.
    pub latency_us_sum: i64,
}

impl Counters {
    /// Deliveries that are open without a failure in this life.
    pub fn pending(&self) -> i64 {
        (self.opened - self.delivered - self.dead_lettered - self.discarded - self.retrying).max(0)
    }

    /// Delivered of delivered and dead-lettered, in percent; `None` without either.
    pub fn success_rate(&self) -> Option<f64> {
        let ended = self.delivered + self.dead_lettered;
        (ended > 0).then(|| self.delivered as f64 * 100.0 / ended as f64)
    }

    /// Mean time of successful attempts in milliseconds; `None` without any.
    pub fn avg_latency_ms(&self) -> Option<f64> {
        (self.attempts_ok > 0).then(|| self.latency_us_sum as f64 / 1000.0 / self.attempts_ok as f64)
    }
}

macro_rules! counters {
    ($row:expr) => {
        Counters {
            events: $row.events,
            unmatched: $row.unmatched,
            opened: $row.opened,
            delivered: $row.delivered,
            dead_lettered: $row.dead_lettered,
            discarded: $row.discarded,
            retrying: $row.retrying,
            attempts_ok: $row.attempts_ok,
            attempts_failed: $row.attempts_failed,
            latency_us_sum: $row.latency_us_sum,
        }
    };
}

pub(crate) use counters;

impl Store {
    /// An endpoint's counters.
    pub async fn endpoint_stats(&self, tenant: &TenantId, endpoint: EndpointId) -> Result<Counters, StoreError> {
        let row = self
            .queries
            .one(sqlx::query!(
                r#"select coalesce(sum(x.events), 0)::bigint as "events!", coalesce(sum(x.unmatched), 0)::bigint as "unmatched!",
                    coalesce(sum(x.opened), 0)::bigint as "opened!", coalesce(sum(x.delivered), 0)::bigint as "delivered!",
                    coalesce(sum(x.dead_lettered), 0)::bigint as "dead_lettered!", coalesce(sum(x.discarded), 0)::bigint as "discarded!",
                    coalesce(sum(x.retrying), 0)::bigint as "retrying!", coalesce(sum(x.attempts_ok), 0)::bigint as "attempts_ok!",
                    coalesce(sum(x.attempts_failed), 0)::bigint as "attempts_failed!", coalesce(sum(x.latency_us_sum), 0)::bigint as "latency_us_sum!"
                from (
                    select t.events, t.unmatched, t.opened, t.delivered, t.dead_lettered, t.discarded, t.retrying, t.attempts_ok, t.attempts_failed, t.latency_us_sum
                    from stats_totals t where t.tenant = $1 and t.endpoint_id = $2
                    union all
                    select d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum
                    from stats_pending d where d.tenant = $1 and d.endpoint_id = $2
                ) x"#,
                tenant.as_str(),
                endpoint.0
            ))
            .await?;
        Ok(counters!(row))
    }

    /// A tenant's counters: the folded sum over its endpoints, and what isn't folded yet.
    pub async fn tenant_stats(&self, tenant: &TenantId) -> Result<Counters, StoreError> {
        let row = self
            .queries
            .one(sqlx::query!(
                r#"select coalesce(sum(x.events), 0)::bigint as "events!", coalesce(sum(x.unmatched), 0)::bigint as "unmatched!",
                    coalesce(sum(x.opened), 0)::bigint as "opened!", coalesce(sum(x.delivered), 0)::bigint as "delivered!",
                    coalesce(sum(x.dead_lettered), 0)::bigint as "dead_lettered!", coalesce(sum(x.discarded), 0)::bigint as "discarded!",
                    coalesce(sum(x.retrying), 0)::bigint as "retrying!", coalesce(sum(x.attempts_ok), 0)::bigint as "attempts_ok!",
                    coalesce(sum(x.attempts_failed), 0)::bigint as "attempts_failed!", coalesce(sum(x.latency_us_sum), 0)::bigint as "latency_us_sum!"
                from (
                    select t.events, t.unmatched, t.opened, t.delivered, t.dead_lettered, t.discarded, t.retrying, t.attempts_ok, t.attempts_failed, t.latency_us_sum
                    from stats_totals t where t.tenant = $1 and t.endpoint_id = '00000000-0000-0000-0000-000000000000'
                    union all
                    select d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum
                    from stats_pending d where d.tenant = $1
                ) x"#,
                tenant.as_str()
            ))
            .await?;
        Ok(counters!(row))
    }

    /// Folds deltas into minutes, hours and totals, of each endpoint and of each tenant.
    pub async fn fold(&self) -> Result<Folded, StoreError> {
        let row = self
            .queries
            .one(sqlx::query_file!("src/sql/fold.sql", FOLD_ROWS_MAX, FOLD_BATCHES_MAX, SAMPLES_MAX, FOLD_BYTES_MAX))
            .await?;
        Ok(Folded { deltas: u64::try_from(row.deltas).unwrap_or(0), more: row.more })
    }
}
