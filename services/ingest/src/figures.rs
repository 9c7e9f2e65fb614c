//! Statistics as the interface shows them: percentiles, points of a series, what waits. Used by the statistics' routes.

use axum::Json;
use chrono::{DateTime, Utc};
use relay_core::histogram::{ERROR_MAX, Histogram, Latencies};
use relay_core::ids::{EndpointId, TenantId};
use relay_core::problem::FieldError;
use relay_core::series::{SeriesError, SeriesRange, Step};
use relay_runtime::extract::QueryParams;
use relay_store::{Backlog, Counters, SeriesPoint};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::api::Api;
use crate::refusal::Refusal;
use crate::shapes::two_decimals;

/// Percentiles beside the counters are those of so many hours, and of the one that has begun.
const PERCENTILES_HOURS: i32 = 24;

/// Percentiles in milliseconds, from logarithmic buckets: off by at most 6 % of the true value, or 0.03 ms.
#[derive(Serialize, ToSchema)]
pub struct Percentiles {
    /// Half of the times are no longer than this.
    #[schema(example = 12.34)]
    p50: Option<f64>,
    #[schema(example = 48.19)]
    p95: Option<f64>,
    #[schema(example = 96.38)]
    p99: Option<f64>,
    /// How many times were measured.
    #[schema(example = 1042)]
    samples: u64,
}

impl Percentiles {
    fn of(histogram: &Histogram) -> Self {
        let ms = |percent| histogram.percentile_us(percent).map(|us| two_decimals(us / 1000.0));
        Self { p50: ms(50), p95: ms(95), p99: ms(99), samples: histogram.samples() }
    }
}

/// What attempts and times show.
#[derive(Serialize, ToSchema)]
pub struct Times {
    /// Attempts in all.
    attempts: i64,
    /// Of them, those that were not answered 2xx.
    attempts_failed: i64,
    /// How long the endpoint took to answer, whatever it answered; over the last 24 hours where no other time is named.
    latency_ms: Percentiles,
    /// From the acceptance of the event (or from when it was sent again) to its delivery, likewise. Without those that were
    /// given up before the 2xx came.
    accept_to_delivered_ms: Percentiles,
}

impl Times {
    fn new(counters: &Counters, latencies: &Latencies) -> Self {
        Self {
            attempts: counters.attempts_ok + counters.attempts_failed,
            attempts_failed: counters.attempts_failed,
            latency_ms: Percentiles::of(&latencies.answered),
            accept_to_delivered_ms: Percentiles::of(&latencies.delivered),
        }
    }
}

/// What waits, and what the last day was like.
#[derive(Serialize, ToSchema)]
pub struct Details {
    discarded: i64,
    #[serde(flatten)]
    times: Times,
    /// Open deliveries that could be sent now but for a pause, an open circuit or a full queue; null above 10,000.
    due: Option<i64>,
    /// Since when the one of them that waits longest has been due.
    oldest_due_at: Option<DateTime<Utc>>,
    /// When the oldest delivery without an attempt was accepted (or sent again), looked for among the hundred of each endpoint that
    /// are due first.
    oldest_pending_at: Option<DateTime<Utc>>,
}

impl Details {
    /// Reads what goes with these counters; `None` for the whole tenant.
    pub async fn read(
        api: &Api,
        tenant: &TenantId,
        endpoint: Option<EndpointId>,
        counters: &Counters,
    ) -> Result<Self, Refusal> {
        let range = SeriesRange::last_hours(PERCENTILES_HOURS, api.links.clock.now())
            .map_err(|e| Refusal::Internal(e.to_string()))?;
        let mut latencies = Latencies::default();
        for point in api.links.store.series(tenant, endpoint, range).await? {
            latencies.merge(&point.latencies);
        }
        let Backlog { due, oldest_due_at, oldest_pending_at } = api.links.store.backlog(tenant, endpoint).await?;
        let times = Times::new(counters, &latencies);
        Ok(Self { discarded: counters.discarded, times, due, oldest_due_at, oldest_pending_at })
    }
}

/// Which points of a series are wanted, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters in the OpenAPI document")]
pub struct SeriesParams {
    /// `minute` or `hour`
    #[param(default = "minute", pattern = "^(minute|hour)$", example = "minute")]
    step: Option<String>,
    /// The first point, as RFC 3339 has times; without it an hour's minutes or a day's hours. At most 1440 points.
    from: Option<DateTime<Utc>>,
    /// Where points end; now without it
    to: Option<DateTime<Utc>>,
}

/// One step of a series. Counts are what changed in it: a replay takes back what it makes open again.
#[derive(Serialize, ToSchema)]
pub struct Point {
    /// When it begins.
    at: DateTime<Utc>,
    /// Events accepted; 0 in an endpoint's series.
    total_events: i64,
    /// Deliveries that came to be.
    deliveries: i64,
    delivered: i64,
    dead_lettered: i64,
    discarded: i64,
    /// Delivered of delivered and dead-lettered in this step, in percent; null without either.
    success_rate: Option<f64>,
    #[serde(flatten)]
    times: Times,
}

impl Point {
    fn new(point: &SeriesPoint) -> Self {
        let counters = &point.counters;
        let is_share = counters.delivered >= 0 && counters.dead_lettered >= 0;
        Self {
            at: point.at,
            total_events: counters.events,
            deliveries: counters.opened,
            delivered: counters.delivered,
            dead_lettered: counters.dead_lettered,
            discarded: counters.discarded,
            success_rate: counters.success_rate().filter(|_| is_share).map(two_decimals),
            times: Times::new(counters, &point.latencies),
        }
    }
}

/// A time series.
#[derive(Serialize, ToSchema)]
pub struct Series {
    /// `minute` or `hour`.
    #[schema(example = "minute")]
    step: &'static str,
    /// The first point.
    from: DateTime<Utc>,
    /// Where points end.
    to: DateTime<Utc>,
    /// Percentiles are off by so many percent of the true value at most.
    #[schema(example = 5.88)]
    percentile_error_percent: f64,
    /// One for each step, oldest first, also where nothing happened.
    points: Vec<Point>,
}

impl Series {
    /// Reads the series that the query asks for; `None` for the whole tenant.
    pub async fn read(
        api: &Api,
        tenant: &TenantId,
        endpoint: Option<EndpointId>,
        range: SeriesRange,
    ) -> Result<Json<Self>, Refusal> {
        let points = api.links.store.series(tenant, endpoint, range).await?;
        Ok(Json(Self {
            step: range.step.as_str(),
            from: range.from,
            to: range.to,
            percentile_error_percent: two_decimals(ERROR_MAX * 100.0),
            points: points.iter().map(Point::new).collect(),
        }))
    }
}

/// The range that a query asks for.
pub fn range(query: &QueryParams, now: DateTime<Utc>) -> Result<SeriesRange, FieldError> {
    let step = query.value("step", "be minute or hour")?.unwrap_or(Step::Minute);
    let (from, to) = (query.time("from")?, query.time("to")?);
    SeriesRange::new(step, from, to, now).map_err(|e| {
        let field = if from.is_none() && e == SeriesError::OutOfRange { "query.to" } else { "query.from" };
        FieldError { field: field.to_owned(), message: e.to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn ranges_name_the_field_at_fault() {
        let now = Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        let read = |raw| range(&QueryParams::parse(raw), now);
        assert_eq!(read("").unwrap().points().count(), 60);
        assert_eq!(read("step=hour").unwrap().points().count(), 24);
        for (raw, field) in [
            ("step=day", "query.step"),
            ("step=", "query.step"),
            ("from=yesterday", "query.from"),
            ("to=1", "query.to"),
            ("from=2030-01-01T00:00:00Z", "query.from"),
            ("from=2020-01-01T00:00:00Z", "query.from"),
            ("from=2023-11-14T00:00:00Z&to=2023-11-13T00:00:00Z", "query.from"),
        ] {
            assert_eq!(read(raw).unwrap_err().field, field, "{raw}");
        }
    }
}
