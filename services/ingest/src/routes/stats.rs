//! `GET /api/v1/stats` and `/api/v1/stats/series`: the tenant's counters, which circuits are open, and figures by minute
//! or hour.

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::openapi::CommonProblems;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::figures::{Details, Series, SeriesParams, range};
use crate::refusal::Refusal;
use crate::shapes::two_decimals;

/// A tenant's counters.
#[derive(Serialize, ToSchema)]
pub struct Stats {
    /// Events accepted.
    total_events: i64,
    /// Of them, those that matched no endpoint.
    unmatched: i64,
    /// Deliveries that wait for their first attempt.
    pending: i64,
    delivered: i64,
    /// Deliveries that wait for a retry.
    failed: i64,
    dead_lettered: i64,
    /// Open dead letters.
    dlq_count: i64,
    /// Delivered of delivered and dead-lettered, in percent; null without either.
    success_rate: Option<f64>,
    /// Endpoints whose circuit is open.
    open_circuits: Vec<Uuid>,
    #[serde(flatten)]
    details: Details,
}

/// Statistics of all endpoints
#[utoipa::path(
    get,
    path = "/api/v1/stats",
    description = "Kept up to date by everything that changes a delivery, never counted when asked. Percentiles are those of the last 24 hours.",
    tag = "operations",
    operation_id = "get_stats",
    responses((status = 200, description = "Counters", body = Stats), CommonProblems)
)]
pub async fn stats(State(api): State<Api>, caller: Caller) -> Result<Json<Stats>, Refusal> {
    let tenant = caller.tenant;
    let counters = api.links.store.tenant_stats(&tenant).await?;
    let details = Details::read(&api, &tenant, None, &counters).await?;
    let directory = api.links.directory.snapshot();
    let is_ours = |id: &relay_core::ids::EndpointId| directory.endpoint(*id).is_some_and(|e| e.tenant == tenant);
    Ok(Json(Stats {
        total_events: counters.events,
        unmatched: counters.unmatched,
        pending: counters.pending(),
        delivered: counters.delivered,
        failed: counters.retrying,
        dead_lettered: counters.dead_lettered,
        dlq_count: counters.dead_lettered,
        success_rate: counters.success_rate().map(two_decimals),
        open_circuits: api.links.circuits.open_endpoints().into_iter().filter(is_ours).map(|id| id.0).collect(),
        details,
    }))
}

/// Statistics of all endpoints by minute or hour
#[utoipa::path(
    get,
    path = "/api/v1/stats/series",
    description = "For plots: a point for each minute or hour, up to date within the second.",
    tag = "operations",
    operation_id = "get_stats_series",
    params(SeriesParams),
    responses((status = 200, description = "The points, oldest first", body = Series), CommonProblems)
)]
pub async fn series(State(api): State<Api>, caller: Caller, query: QueryParams) -> Result<Json<Series>, Refusal> {
    let range = range(&query, api.links.clock.now())?;
    Series::read(&api, &caller.tenant, None, range).await
}
