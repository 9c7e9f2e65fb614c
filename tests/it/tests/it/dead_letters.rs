//! The DLQ: what ends there, looking, replaying, discarding.

use it::{Reply, World};
use serde_json::json;

#[tokio::test]
async fn used_up_replayed_refused_forced_bulk_discarded() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/down", [Reply::status(500).body("no")]);
    let settings = json!({"retry_schedule_seconds": [0, 0], "circuit_failure_threshold": 100});
    let endpoint = w.api.endpoint(&w.sink.url("/down"), settings).await?.text("id");
    let mut events = Vec::new();
    for i in 0..4 {
        let event = w.api.event(&endpoint, "order.created", json!({"i": i})).await?;
        w.api.wait_status(&event, "dead_lettered").await?;
        events.push(event);
    }
    let page = w.api.get(&format!("/dlq?endpoint_id={endpoint}&event_type=order.created")).await?.expect(200);
    let items = page.body["items"].as_array().unwrap().clone();
    assert_eq!(items.len(), 4);
    let newest = &items[0];
    assert_eq!(newest["event_id"], json!(events[3]));
    assert_eq!(newest["reason"], "exhausted");
    assert_eq!(newest["total_attempts"], 3);
    assert_eq!(newest["last_http_status"], 500);
    assert_eq!(newest["original_payload"], json!({"i": 3}));
    assert_eq!(newest["replay_count"], 0);
    assert!(newest["replayed_at"].is_null());
    let id = |i: usize| items[3 - i]["id"].as_str().unwrap().to_owned();

    w.sink.script("/down", [Reply::status(200)]);
    let replayed = w.api.post(&format!("/dlq/{}/replay", id(0)), &json!({})).await?.expect(200);
    assert_eq!(replayed.body["original_dlq_id"], json!(id(0)));
    assert_eq!(replayed.body["new_event_id"], json!(events[0]), "the id is kept, so that receivers can tell");
    assert_eq!(replayed.body["enqueued"], true);
    let event = w.api.wait_status(&events[0], "delivered").await?;
    assert_eq!(event.body["attempt_count"], 4, "attempts count on");

    // Within the hour only by force.
    w.sink.script("/down", [Reply::status(400)]);
    w.api.post(&format!("/dlq/{}/replay", id(1)), &json!({})).await?.expect(200);
    w.api
        .wait_for(&format!("/dlq/{}", id(1)), |a| a.body["replay_count"] == 1 && a.body["reason"] == "permanent")
        .await?;
    w.api.post(&format!("/dlq/{}/replay", id(1)), &json!({})).await?.expect_problem(409, "replayed-recently");
    w.sink.script("/down", [Reply::status(200)]);
    w.api.post(&format!("/dlq/{}/replay?force=true", id(1)), &json!({})).await?.expect(200);
    w.api.wait_status(&events[1], "delivered").await?;

    w.api.delete(&format!("/dlq/{}", id(3))).await?.expect(204);
    w.api.wait_status(&events[3], "discarded").await?;
    let bulk = w.api.post("/dlq/replay/bulk", &json!({"endpoint_id": endpoint})).await?;
    assert!(matches!(bulk.status, 200 | 202), "{}", bulk.body);
    assert_eq!(bulk.body["replayed"], 1, "{}", bulk.body);
    w.api.wait_status(&events[2], "delivered").await?;
    let again = w.api.post("/dlq/replay/bulk", &json!({"endpoint_id": endpoint})).await?;
    assert_eq!(again.body["replayed"], 0, "what was delivered is not sent again");

    w.api.get(&format!("/dlq/{}", uuid::Uuid::nil())).await?.expect_problem(404, "dead-letter-not-found");
    w.api.delete(&format!("/dlq/{}", uuid::Uuid::nil())).await?.expect_problem(404, "dead-letter-not-found");
    Ok(())
}

/// "Your endpoint went down at 2 am": nobody listens, attempts run out, it comes back, the letters are replayed.
#[tokio::test]
async fn an_endpoint_that_was_away() -> anyhow::Result<()> {
    let w = World::start().await?;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], it::process::free_port()));
    let settings = json!({"retry_schedule_seconds": [0], "circuit_failure_threshold": 100});
    let endpoint = w.api.endpoint(&format!("http://{address}/h"), settings).await?.text("id");
    let event = w.api.event(&endpoint, "a", json!({})).await?;
    let dead = w.api.wait_status(&event, "dead_lettered").await?;
    assert_eq!(dead.body["attempts"][0]["error_class"], "connect", "{}", dead.body["attempts"]);
    let letter = w.api.get("/dlq").await?.body["items"][0]["id"].as_str().unwrap().to_owned();
    let sink = it::Sink::start_on(address).await?;
    w.api.post(&format!("/dlq/{letter}/replay"), &json!({})).await?.expect(200);
    sink.wait("/h", 1).await?;
    w.api.wait_status(&event, "delivered").await?;
    w.api.wait_for(&format!("/dlq/{letter}"), |a| a.body["state"] == "resolved").await?;
    Ok(())
}

/// Two replays at once: one goes.
#[tokio::test]
async fn two_replays_at_once_are_one() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/bad", [Reply::status(400), Reply::status(200)]);
    let endpoint = w.api.endpoint(&w.sink.url("/bad"), json!({})).await?.text("id");
    let event = w.api.event(&endpoint, "a", json!({})).await?;
    w.api.wait_status(&event, "dead_lettered").await?;
    let letter = w.api.get("/dlq").await?.body["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/dlq/{letter}/replay");
    let body = json!({});
    let (a, b) = tokio::join!(w.api.post(&path, &body), w.api.post(&path, &body));
    let mut statuses = [a?.status, b?.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    w.api.wait_status(&event, "delivered").await?;
    assert_eq!(w.sink.received("/bad").len(), 2);
    Ok(())
}
