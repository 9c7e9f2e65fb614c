//! The circuit breaker, shared by deliverers.

use std::time::Duration;

use it::{Reply, World};
use serde_json::json;

/// Failures open the circuit; nothing goes out meanwhile; after the recovery time exactly one probe goes, from one of
/// two deliverers; success closes it and the backlog drains.
#[tokio::test]
async fn opens_probes_once_and_closes() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (_one, _) = w.service("deliverer-1", "deliverer").await?;
    let (_two, _) = w.service("deliverer-2", "deliverer").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    w.sink.script("/down", [Reply::status(500)]);
    let rule = json!({"circuit_failure_threshold": 3, "circuit_window_seconds": 60, "circuit_recovery_seconds": 4,
        "retry_schedule_seconds": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]});
    let endpoint = w.api.endpoint(&w.sink.url("/down"), rule).await?.text("id");
    let mut events = Vec::new();
    for i in 0..3 {
        events.push(w.api.event(&endpoint, "a", json!(i)).await?);
    }
    w.api.wait_for(&format!("/endpoints/{endpoint}/stats"), |a| a.body["circuit_state"] == "open").await?;
    w.sink.wait_until(|all| all.len() >= 3).await.map_err(|_| anyhow::anyhow!("fewer than 3 requests"))?;
    let at_opening = w.sink.received("/down").len();
    // Held back: no request, no attempt used.
    for i in 3..10 {
        events.push(w.api.event(&endpoint, "a", json!(i)).await?);
    }
    let slow = Reply::status(500).after(Duration::from_millis(1500));
    w.sink.script("/down", [slow, Reply::status(200)]);
    let came = w.sink.wait("/down", at_opening + 1).await?;
    // The probe takes 1.5 s; nothing else may come meanwhile, from either deliverer.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(w.sink.received("/down").len(), at_opening + 1, "exactly one probe");
    assert!(came[at_opening].at - came[at_opening - 1].at >= Duration::from_millis(3500));
    // The probe failed: open again, then the next one succeeds and everything drains.
    for event in &events {
        w.api.wait_status(event, "delivered").await?;
    }
    w.api.wait_for(&format!("/endpoints/{endpoint}/stats"), |a| a.body["circuit_state"] == "closed").await?;
    let last = w.api.get(&format!("/events/{}", events[9])).await?;
    assert_eq!(last.body["attempt_count"], 1, "being held back uses up no attempt");
    Ok(())
}

/// Answers that are the producer's fault don't count.
#[tokio::test]
async fn refusals_do_not_open_it() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/picky", [Reply::status(422)]);
    let endpoint = w.api.endpoint(&w.sink.url("/picky"), json!({"circuit_failure_threshold": 2})).await?.text("id");
    for i in 0..6 {
        let event = w.api.event(&endpoint, "a", json!(i)).await?;
        w.api.wait_status(&event, "dead_lettered").await?;
    }
    let stats = w.api.get(&format!("/endpoints/{endpoint}/stats")).await?;
    assert_eq!(stats.body["circuit_state"], "closed");
    assert_eq!(w.sink.received("/picky").len(), 6);
    Ok(())
}
