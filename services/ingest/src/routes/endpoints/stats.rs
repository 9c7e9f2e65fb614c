//! `GET /api/v1/endpoints/{endpoint_id}/stats` and `…/stats/series`. Reading them changes nothing.

use axum::Json;
use axum::extract::{Path, State};
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::figures::{Details, Series, SeriesParams, range};
use crate::query;
use crate::refusal::Refusal;
use crate::shapes::two_decimals;

/// An endpoint's counters.
#[derive(Serialize, ToSchema)]
pub struct EndpointStats {
    endpoint_id: Uuid,
    /// Events that were matched with it.
    total_events: i64,
    /// Of them, those that wait for their first attempt.
    pending: i64,
    delivered: i64,
    /// Of them, those that wait for a retry.
    failed: i64,
    dead_lettered: i64,
    /// Delivered of delivered and dead-lettered, in percent; null without either.
    success_rate: Option<f64>,
    /// Mean time of successful attempts.
    avg_latency_ms: Option<f64>,
    /// `closed`, `open` or `half_open`.
    circuit_state: &'static str,
    #[serde(flatten)]
    details: Details,
}

/// Statistics of an endpoint
#[utoipa::path(
    get,
    path = "/api/v1/endpoints/{endpoint_id}/stats",
    description = "Kept up to date by everything that changes a delivery, never counted when asked. Percentiles are those of the last 24 hours.",
    tag = "endpoints",
    operation_id = "get_endpoint_stats",
    params(("endpoint_id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "Counters", body = EndpointStats),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn stats(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<EndpointStats>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let tenant = caller.tenant;
    api.endpoint(&tenant, id).await?;
    let counters = api.links.store.endpoint_stats(&tenant, id).await?;
    let details = Details::read(&api, &tenant, Some(id), &counters).await?;
    Ok(Json(EndpointStats {
        endpoint_id: id.0,
        total_events: counters.opened,
        pending: counters.pending(),
        delivered: counters.delivered,
        failed: counters.retrying,
        dead_lettered: counters.dead_lettered,
        success_rate: counters.success_rate().map(two_decimals),
        avg_latency_ms: counters.avg_latency_ms().map(two_decimals),
        circuit_state: api.links.circuits.state(id).state.as_str(),
        details,
    }))
}

/// Statistics of an endpoint by minute or hour
#[utoipa::path(
    get,
    path = "/api/v1/endpoints/{endpoint_id}/stats/series",
    description = "For plots: a point for each minute or hour, up to date within the second.",
    tag = "endpoints",
    operation_id = "get_endpoint_stats_series",
    params(("endpoint_id" = uuid::Uuid, Path), SeriesParams),
    responses(
        (status = 200, description = "The points, oldest first", body = Series),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn series(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    parameters: QueryParams,
) -> Result<Json<Series>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let range = range(&parameters, api.links.clock.now())?;
    api.endpoint(&caller.tenant, id).await?;
    Series::read(&api, &caller.tenant, Some(id), range).await
}
