//! Statistics by minute or hour, with percentiles: folded rows and what isn't folded yet, in one statement. Called by
//! the statistics' routes; never touches a table that grows with the events.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use relay_core::histogram::Latencies;
use relay_core::ids::{EndpointId, TenantId};
use relay_core::series::SeriesRange;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::stats::{Counters, counters};

/// One step of a series: what changed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesPoint {
    /// Its start.
    pub at: DateTime<Utc>,
    /// The changes; net, so a replay may make one negative.
    pub counters: Counters,
    /// The times that were measured.
    pub latencies: Latencies,
}

impl Store {
    /// All points of the range, oldest first, those without a change too; `None` for the whole tenant.
    pub async fn series(
        &self,
        tenant: &TenantId,
        endpoint: Option<EndpointId>,
        range: SeriesRange,
    ) -> Result<Vec<SeriesPoint>, StoreError> {
        let rows = self
            .queries
            .all(sqlx::query_file!(
                "src/sql/series.sql",
                tenant.as_str(),
                endpoint.map_or(Uuid::nil(), |e| e.0),
                range.from,
                range.to,
                range.step.as_str()
            ))
            .await?;
        let mut known: HashMap<DateTime<Utc>, (Counters, Latencies)> =
            rows.into_iter().map(|r| (r.at, (counters!(r), Latencies::unpack(&r.buckets)))).collect();
        let point = |at| {
            let (counters, latencies) = known.remove(&at).unwrap_or_default();
            SeriesPoint { at, counters, latencies }
        };
        Ok(range.points().map(point).collect())
    }
}
