//! Servers that go away for a while: what goes on meanwhile, and what comes after.

use it::World;
use serde_json::json;

/// Events are accepted while PostgreSQL is away, also by an ingest that starts meanwhile; all arrive once.
#[tokio::test]
async fn accepting_goes_on_without_postgres() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let postgres = w.proxy("DATABASE_URL").await?;
    let (mut ingest, address) = w.service("ingest", "ingest").await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (_deliverer, _) = w.service("deliverer", "deliverer").await?;
    w.use_api(&address);
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({"timeout_seconds": 5})).await?.text("id");
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
    let inactive = json!({"endpoint_id": uuid::Uuid::nil(), "event_type": "a.b", "payload": 3});
    let unknown = w.api.post("/events", &inactive).await?.expect(202).text("id");

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
    let mut w = World::servers().await?;
    let redis = w.proxy("REDIS_URL").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (_deliverer, _) = w.service("deliverer", "deliverer").await?;
    w.use_api(&address);
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({})).await?.text("id");
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
    let mut w = World::servers().await?;
    let nats = w.proxy("NATS_URL").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (_deliverer, _) = w.service("deliverer", "deliverer").await?;
    w.use_api(&address);
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({})).await?.text("id");
    let first = w.api.event(&endpoint, "a.b", json!({})).await?;
    w.api.wait_status(&first, "delivered").await?;
    nats.cut();
    let body = json!({"endpoint_id": endpoint, "event_type": "a.b", "payload": 1, "idempotency_key": "once"});
    let refused = w.api.post("/events", &body).await?.expect_problem(503, "service-unavailable");
    assert!(refused.headers.contains_key("retry-after"));
    nats.restore();
    let event = loop {
        let answer = w.api.post("/events", &body).await?;
        if answer.status == 202 {
            break answer.text("id");
        }
        assert_eq!(answer.status, 503);
    };
    w.api.wait_status(&event, "delivered").await?;
    Ok(())
}
