//! Servers that go away for a while: what goes on meanwhile, and what comes after.

use anyhow::ensure;
use it::api::PATIENCE;
use it::process::Process;
use it::{Proxy, World};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A system whose services reach one of their servers through a proxy.
struct Behind {
    w: World,
    proxy: Proxy,
    ingest: Process,
    /// Where the ingest listens.
    address: String,
    /// Its only endpoint, at `/hook`.
    endpoint: String,
    _others: [Process; 2],
}

async fn behind(server: &str, endpoint: Value) -> anyhow::Result<Behind> {
    let mut w = World::servers().await?;
    let proxy = w.proxy(server).await?;
    let (ingest, address) = w.service("ingest", "ingest").await?;
    let (dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (deliverer, _) = w.service("deliverer", "deliverer").await?;
    w.use_api(&address);
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), endpoint).await?.text("id");
    Ok(Behind { w, proxy, ingest, address, endpoint, _others: [dispatcher, deliverer] })
}

/// Events are accepted while PostgreSQL is away, also by an ingest that starts meanwhile; all arrive once.
#[tokio::test]
async fn accepting_goes_on_without_postgres() -> anyhow::Result<()> {
    let b = behind("DATABASE_URL", json!({"timeout_seconds": 5})).await?;
    let Behind { w, proxy: postgres, mut ingest, address, endpoint, _others } = b;
    let first = w.api.event(&endpoint, "a.b", json!({"n": 0})).await?;
    w.api.wait_status(&first, "delivered").await?;

    postgres.cut();
    let keyed = json!({"endpoint_id": endpoint, "event_type": "a.b", "payload": {"n": 1}, "idempotency_key": "k"});
    let id = w.api.post("/events", &keyed).await?.expect(202).text("id");
    let again = w.api.post("/events", &keyed).await?.expect(202).text("id");
    assert_eq!(id, again, "equal keys are the same event, also without the table that knows them");
    let unread = w.api.get(&format!("/events/{id}")).await?.expect_problem(503, "service-unavailable");
    assert!(unread.headers.contains_key("retry-after"));

    // It keeps a copy of the endpoints where it ended.
    assert!(ingest.terminate().await?, "{}", ingest.output());
    let _again = w.ingest_at("ingest-again", &address).await?;
    let third = json!({"endpoint_id": endpoint, "event_type": "a.b", "payload": {"n": 2}});
    let third = w.api.post("/events", &third).await?.expect(202).text("id");
    let body = json!({"endpoint_id": uuid::Uuid::nil(), "event_type": "a.b", "payload": 3});
    let unknown = w.api.post("/events", &body).await?.expect(202).text("id");

    postgres.restore();
    for event in [&id, &third] {
        w.api.wait_status(event, "delivered").await?;
    }
    assert_eq!(w.sink.received("/hook").len(), 3, "each once");
    // The dispatcher decides about what nobody could look up, and keeps it.
    w.api.wait_status(&unknown, "dead_lettered").await?;
    Ok(())
}

/// Deliveries go on while Redis is away.
#[tokio::test]
async fn delivering_goes_on_without_redis() -> anyhow::Result<()> {
    let Behind { w, proxy: redis, endpoint, ingest: _ingest, _others, .. } = behind("REDIS_URL", json!({})).await?;
    redis.cut();
    for n in 0..20 {
        let event = w.api.event(&endpoint, "a.b", json!({"n": n})).await?;
        w.api.wait_status(&event, "delivered").await?;
    }
    assert_eq!(w.sink.received("/hook").len(), 20);
    Ok(())
}

/// Without NATS nothing can be accepted, and the producer is told so; then all goes on by itself.
#[tokio::test]
async fn without_nats_producers_are_refused_until_it_is_back() -> anyhow::Result<()> {
    let Behind { w, proxy: nats, endpoint, ingest: _ingest, _others, .. } = behind("NATS_URL", json!({})).await?;
    let first = w.api.event(&endpoint, "a.b", json!({})).await?;
    w.api.wait_status(&first, "delivered").await?;
    nats.cut();
    let body = json!({"endpoint_id": endpoint, "event_type": "a.b", "payload": 1, "idempotency_key": "once"});
    let refused = w.api.post("/events", &body).await?.expect_problem(503, "service-unavailable");
    assert!(refused.headers.contains_key("retry-after"));
    nats.restore();
    let deadline = Instant::now() + PATIENCE;
    let event = loop {
        let answer = w.api.post("/events", &body).await?;
        if answer.status == 202 {
            break answer.text("id");
        }
        assert_eq!(answer.status, 503);
        ensure!(Instant::now() < deadline, "nothing is accepted after NATS came back");
    };
    w.api.wait_status(&event, "delivered").await?;
    Ok(())
}
