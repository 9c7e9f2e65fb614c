//! `GET /api/v1/stats`: the tenant's counters, and which circuits are open.

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::CommonProblems;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::refusal::Refusal;
use crate::shapes::two_decimals;

/// A tenant's counters.
#[derive(Serialize, ToSchema)]
pub struct Stats {
    /// Events accepted.
    total_events: i64,
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
}

/// Statistics of all endpoints
#[utoipa::path(
    get,
    path = "/api/v1/stats",
    tag = "operations",
    operation_id = "get_stats",
    responses((status = 200, description = "Counters", body = Stats), CommonProblems)
)]
pub async fn stats(State(api): State<Api>, caller: Caller) -> Result<Json<Stats>, Refusal> {
    let tenant = caller.tenant;
    let counters = api.links.store.tenant_stats(&tenant).await?;
    let directory = api.links.directory.snapshot();
    let is_ours = |id: &relay_core::ids::EndpointId| directory.endpoint(*id).is_some_and(|e| e.tenant == tenant);
    Ok(Json(Stats {
        total_events: counters.events,
        pending: counters.pending(),
        delivered: counters.delivered,
        failed: counters.retrying,
        dead_lettered: counters.dead_lettered,
        dlq_count: counters.dead_lettered,
        success_rate: counters.success_rate().map(two_decimals),
        open_circuits: api.links.circuits.open_endpoints().into_iter().filter(is_ours).map(|id| id.0).collect(),
    }))
}
