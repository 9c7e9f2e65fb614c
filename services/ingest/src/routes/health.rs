//! `GET /api/v1/health`: always 200; says how the servers are and what they promise. Probes use `/health/ready`.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use relay_runtime::auth::Caller;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::api::Api;

/// How long a server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How the service is.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `healthy`, or `degraded` where a server doesn't answer or doesn't keep what it promises.
    status: &'static str,
    /// Postgres: `ok` or `error`.
    database: &'static str,
    /// `ok` or `error`.
    redis: &'static str,
    /// `ok` or `error`.
    nats: &'static str,
    durability: Durability,
}

/// What survives a power cut.
#[derive(Serialize, ToSchema)]
pub struct Durability {
    /// Whether an accepted event is on disk before it is answered; null where the server doesn't say.
    nats_sync_always: Option<bool>,
    /// Whether the accept log stores equal message ids of two tenants, as it must.
    nats_duplicate_window_zero: Option<bool>,
    nats_version: Option<String>,
    postgres_fsync: Option<bool>,
    postgres_full_page_writes: Option<bool>,
    postgres_synchronous_commit: Option<bool>,
    postgres_version: Option<String>,
}

/// How the service is
#[utoipa::path(
    get,
    path = "/api/v1/health",
    tag = "operations",
    operation_id = "get_health",
    responses((status = 200, description = "Always", body = Health))
)]
pub async fn health(State(api): State<Api>, _: Caller) -> Json<Health> {
    let links = &api.links;
    let (postgres, redis, nats) =
        tokio::join!(answer(links.store.durability()), answer(links.circuits.ping()), answer(links.bus.durability()),);
    let database = ok(postgres.is_some());
    let durability = Durability {
        nats_sync_always: nats.as_ref().and_then(|n| n.sync_always),
        nats_duplicate_window_zero: nats.as_ref().map(|n| n.duplicate_window_zero),
        postgres_fsync: postgres.as_ref().map(|p| p.fsync),
        postgres_full_page_writes: postgres.as_ref().map(|p| p.full_page_writes),
        postgres_synchronous_commit: postgres.as_ref().map(|p| p.synchronous_commit),
        postgres_version: postgres.map(|p| p.server_version),
        nats_version: nats.as_ref().map(|n| n.server_version.clone()),
    };
    let all_answer = database == "ok" && redis.is_some() && nats.is_some();
    let status = if all_answer && durability.holds() { "healthy" } else { "degraded" };
    Json(Health { status, database, redis: ok(redis.is_some()), nats: ok(nats.is_some()), durability })
}

impl Durability {
    /// Whether no promise is known to be broken.
    fn holds(&self) -> bool {
        let promises = [
            self.nats_sync_always,
            self.nats_duplicate_window_zero,
            self.postgres_fsync,
            self.postgres_full_page_writes,
            self.postgres_synchronous_commit,
        ];
        !promises.contains(&Some(false))
    }
}

async fn answer<T, E>(asked: impl Future<Output = Result<T, E>>) -> Option<T> {
    timeout(ANSWER_WITHIN, asked).await.ok()?.ok()
}

fn ok(is_ok: bool) -> &'static str {
    if is_ok { "ok" } else { "error" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_broken_promise_degrades() {
        let durability = |sync, fsync| Durability {
            nats_sync_always: sync,
            nats_duplicate_window_zero: Some(true),
            nats_version: None,
            postgres_fsync: fsync,
            postgres_full_page_writes: None,
            postgres_synchronous_commit: None,
            postgres_version: None,
        };
        assert!(durability(None, None).holds());
        assert!(durability(Some(true), Some(true)).holds());
        assert!(!durability(Some(false), Some(true)).holds());
        assert!(!durability(None, Some(false)).holds());
    }
}
