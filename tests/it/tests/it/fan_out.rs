//! Fan-out: an event without an endpoint goes to every active endpoint whose filter matches.

use it::World;
use serde_json::json;

async fn fans_out(n: usize) -> anyhow::Result<()> {
    let w = World::start().await?;
    for i in 0..n {
        w.api.endpoint(&w.sink.url(&format!("/{i}")), json!({"event_types_filter": ["order.>"]})).await?;
    }
    w.api.endpoint(&w.sink.url("/other"), json!({"event_types_filter": ["user.*"]})).await?;
    let accepted =
        w.api.post("/events", &json!({"event_type": "order.created", "payload": {"n": n}})).await?.expect(202);
    assert!(accepted.body["endpoint_id"].is_null());
    let event = w.api.wait_status(&accepted.text("id"), "delivered").await?;
    assert_eq!(event.body["deliveries"].as_array().unwrap().len(), n);
    for i in 0..n {
        assert_eq!(w.sink.received(&format!("/{i}")).len(), 1, "path {i}");
    }
    assert!(w.sink.received("/other").is_empty());
    Ok(())
}

#[tokio::test]
async fn to_one() -> anyhow::Result<()> {
    fans_out(1).await
}

#[tokio::test]
async fn to_ten() -> anyhow::Result<()> {
    fans_out(10).await
}

#[tokio::test]
async fn to_two_hundred() -> anyhow::Result<()> {
    fans_out(200).await
}

/// Nothing accepted is unseen.
#[tokio::test]
async fn an_event_that_matches_nothing_is_stored_as_unmatched() -> anyhow::Result<()> {
    let w = World::start().await?;
    let accepted = w.api.post("/events", &json!({"event_type": "nobody.wants", "payload": [1, 2]})).await?.expect(202);
    let event = w.api.wait_status(&accepted.text("id"), "unmatched").await?;
    assert_eq!(event.body["payload"], json!([1, 2]));
    assert_eq!(event.body["deliveries"], json!([]));
    Ok(())
}

/// A poison answer and a poison event among good ones: each is recorded once and sent once.
#[tokio::test]
async fn poison_answers_do_not_spoil_their_batch() -> anyhow::Result<()> {
    let w = World::start().await?;
    let nul = b"a\0b\xff".to_vec();
    w.sink.script("/nul", [it::Reply::status(200).body(nul).header("x-odd", vec![b'a', 0xe9])]);
    let good = w.api.endpoint(&w.sink.url("/good"), json!({"event_types_filter": ["good"]})).await?.text("id");
    let odd = w.api.endpoint(&w.sink.url("/nul"), json!({"event_types_filter": ["good"]})).await?.text("id");
    let mut events = Vec::new();
    for i in 0..50 {
        let body = json!({"event_type": "good", "payload": {"i": i, "text": "nul \u{0} and \u{1F600}"}});
        events.push(w.api.post("/events", &body).await?.expect(202).text("id"));
    }
    for event in &events {
        w.api.wait_status(event, "delivered").await?;
    }
    assert_eq!(w.sink.received("/good").len(), 50);
    assert_eq!(w.sink.received("/nul").len(), 50);
    for endpoint in [good, odd] {
        let stats = w.api.wait_for(&format!("/endpoints/{endpoint}/stats"), |a| a.body["delivered"] == 50).await?;
        assert_eq!(stats.body["failed"], 0);
    }
    Ok(())
}
