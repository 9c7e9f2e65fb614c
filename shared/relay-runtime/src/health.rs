//! Health and metrics of a process: `GET /health/live` (it runs), `GET /health/ready` (its dependencies answer),
//! `GET /metrics`. The checks come in as closures; each is bounded by a second, and an answer is kept for a moment
//! so that probes can't become load.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::join_all;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How long a check may take.
const CHECK_MAX: Duration = Duration::from_secs(1);
/// How long an answer is kept.
const KEPT: Duration = Duration::from_millis(500);

type Check = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// The checks of this process. Cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    checks: Mutex<Vec<(&'static str, Check)>>,
    kept: tokio::sync::Mutex<Option<(Instant, Report)>>,
    metrics: Metrics,
    stopping: CancellationToken,
    is_starting: AtomicBool,
}

/// What the checks said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `ready` or `unready`.
    pub status: &'static str,
    /// By name: `ok`, or what is wrong.
    pub checks: BTreeMap<&'static str, String>,
}

impl Report {
    /// Whether traffic may come.
    pub fn is_ready(&self) -> bool {
        self.status == "ready"
    }
}

impl Health {
    /// No checks yet. From `stopping` on it is unready, so that traffic goes elsewhere.
    pub fn new(metrics: Metrics, stopping: CancellationToken) -> Self {
        let health = Self::starting(metrics, stopping);
        health.started();
        health
    }

    /// The same of a process that still waits for what it needs: unready until [`Health::started`].
    fn starting(metrics: Metrics, stopping: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            checks: Mutex::default(),
            kept: tokio::sync::Mutex::default(),
            metrics,
            stopping,
            is_starting: AtomicBool::new(true),
        }))
    }

    /// That of a service, served on `listener` from now on and until everything else has ended: unready until
    /// [`Health::started`].
    pub fn serving(metrics: Metrics, listener: TcpListener, shutdown: &Shutdown) -> Self {
        let health = Self::starting(metrics, shutdown.soft());
        let probes = shutdown.last_group("health");
        probes.spawn("health", health.clone().serve(listener, probes.stop()));
        health
    }

    /// The start is over, and all checks are registered.
    pub fn started(&self) {
        self.0.is_starting.store(false, Ordering::Release);
    }

    /// Adds a check; the error says what is wrong, in words without secrets.
    pub fn register<C, F>(&self, name: &'static str, check: C)
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let check: Check = Arc::new(move || Box::pin(check()));
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).push((name, check));
    }

    /// Runs all checks at once, or repeats what they said a moment ago.
    pub async fn report(&self) -> Report {
        if self.0.is_starting.load(Ordering::Acquire) {
            let why = "the process waits for its servers; its log says for which".to_owned();
            return Report { status: "unready", checks: BTreeMap::from([("start", why)]) };
        }
        // One caller checks, the others wait for its answer.
        let mut kept = self.0.kept.lock().await;
        let fresh = kept.as_ref().filter(|(at, _)| at.elapsed() < KEPT).map(|(_, report)| report.clone());
        let mut report = match fresh {
            Some(report) => report,
            None => {
                let report = self.check().await;
                *kept = Some((Instant::now(), report.clone()));
                report
            }
        };
        if self.0.stopping.is_cancelled() {
            report.status = "unready";
            report.checks.insert("shutdown", "the process is ending".to_owned());
        }
        report
    }

    async fn check(&self) -> Report {
        let checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = join_all(checks.iter().map(|(name, check)| async {
            let said = match timeout(CHECK_MAX, check()).await {
                Ok(Ok(())) => "ok".to_owned(),
                Ok(Err(why)) => why,
                Err(_) => format!("no answer within {} s", CHECK_MAX.as_secs()),
            };
            (*name, said)
        }));
        let checks: BTreeMap<_, _> = all.await.into_iter().collect();
        let status = if checks.values().all(|said| said == "ok") { "ready" } else { "unready" };
        Report { status, checks }
    }

    /// The three routes.
    pub fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self.clone())
    }

    /// Serves the routes on a listener of their own until `stop` fires, and keeps the metrics.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let upkeep = self.0.metrics.clone().upkeep(stop.clone());
        tokio::join!(crate::http::serve(listener, self.router(), stop), upkeep);
    }
}

async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({"status": "live"}))
}

async fn ready(State(health): State<Health>) -> Response {
    let report = health.report().await;
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

async fn metrics(State(health): State<Health>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], health.0.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::extract::Request;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tower::ServiceExt;

    fn health() -> (Health, CancellationToken) {
        let stop = CancellationToken::new();
        (Health::new(crate::metrics::install().unwrap(), stop.clone()), stop)
    }

    async fn get(health: &Health, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = health.router::<()>().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_named_and_hanging_checks_are_bounded() {
        let (health, _) = health();
        health.register("redis", || async { Ok(()) });
        assert_eq!(get(&health, "/health/ready").await.0, 200);
        health.register("postgres", || async { Err("connection refused".to_owned()) });
        health.register("nats", std::future::pending);
        tokio::time::sleep(KEPT).await;
        let (status, body) = get(&health, "/health/ready").await;
        assert_eq!(status, 503);
        let said: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(said["status"], "unready");
        assert_eq!(said["checks"]["redis"], "ok");
        assert_eq!(said["checks"]["postgres"], "connection refused");
        assert_eq!(said["checks"]["nats"], "no answer within 1 s");
        assert_eq!(get(&health, "/health/live").await.0, 200);
        assert_eq!(get(&health, "/metrics").await.0, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_a_moment() {
        let (health, stop) = health();
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        health.register("it", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok(()) }
        });
        for _ in 0..10 {
            assert!(health.report().await.is_ready());
        }
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        stop.cancel();
        assert!(!health.report().await.is_ready(), "a process that ends is not ready");
    }
}
