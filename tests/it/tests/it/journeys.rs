//! The journeys of a user, with the requests as they are documented.

use std::time::Duration;

use it::{Reply, World};
use serde_json::json;

/// Register, send, look it up until it is delivered, verify the signature at the receiver.
#[tokio::test]
async fn first_delivery() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = w.api.endpoint(&w.sink.url("/hooks"), json!({"name": "My Service"})).await?;
    let secret = endpoint.text("signing_secret");
    assert!(secret.starts_with("whsec_"));
    assert!(
        w.api
            .get(&format!("/endpoints/{}", endpoint.text("id")))
            .await?
            .expect(200)
            .body
            .get("signing_secret")
            .is_none()
    );
    let raw = format!(
        r#"{{"endpoint_id":"{}","event_type":"order.created","payload":{{"order_id": 42,  "total": 99.990, "b":1,"a":2}}}}"#,
        endpoint.text("id")
    );
    let accepted = w.api.post_raw("/events", raw).await?.expect(202);
    assert_eq!(accepted.body["status"], "pending");
    assert_eq!(accepted.body["event_type"], "order.created");
    assert_eq!(accepted.body["attempt_count"], 0);
    assert!(accepted.body["created_at"].is_string());

    let event = w.api.wait_status(&accepted.text("id"), "delivered").await?;
    assert_eq!(event.body["attempt_count"], 1);
    assert!(event.body["delivered_at"].is_string());
    assert_eq!(event.body["payload"]["order_id"], 42);
    let delivery = &event.body["deliveries"][0];
    assert_eq!(delivery["endpoint_id"], endpoint.body["id"]);
    assert_eq!(delivery["status"], "delivered");
    assert_eq!(delivery["attempts"][0]["http_status_code"], 200);

    let received = &w.sink.wait("/hooks", 1).await?[0];
    // Byte for byte as it came: blanks, order and number format.
    assert_eq!(&received.body[..], br#"{"order_id": 42,  "total": 99.990, "b":1,"a":2}"#);
    assert_eq!(received.header("content-type"), "application/json");
    assert!(received.header("user-agent").starts_with("WebhookRelay/"));
    assert_eq!(received.header("x-webhook-event-id"), accepted.text("id"));
    assert_eq!(received.header("webhook-id"), accepted.text("id"));
    assert_eq!(received.header("x-webhook-event-type"), "order.created");
    let verdict = w
        .api
        .request(
            "POST",
            "/api/v1/inbound/verify",
            &[("x-webhook-signature", received.header("x-webhook-signature")), ("x-webhook-secret", &secret)],
            Some(String::from_utf8(received.body.to_vec())?),
        )
        .await?
        .expect(200);
    assert_eq!(verdict.body["valid"], true, "{}", verdict.body);
    Ok(())
}

/// The endpoint answers 500 twice, then 200: two retries at the right times, three attempts on record.
#[tokio::test]
async fn retries_until_it_works() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/flaky", [Reply::status(500).body("first"), Reply::status(503), Reply::status(200)]);
    let endpoint = w.api.endpoint(&w.sink.url("/flaky"), json!({"retry_schedule_seconds": [1, 2, 3]})).await?;
    assert_eq!(endpoint.body["max_retries"], 4);
    let event = w.api.event(&endpoint.text("id"), "a.b", json!({"n": 1})).await?;
    let failed = w.api.wait_status(&event, "failed").await?;
    assert!(failed.body["next_retry_at"].is_string());
    let came = w.sink.wait("/flaky", 3).await?;
    // Never early; how late is a matter of speed and belongs to the benchmark.
    assert!(came[1].at - came[0].at >= Duration::from_millis(990));
    assert!(came[2].at - came[1].at >= Duration::from_millis(1990));
    let event = w.api.wait_status(&event, "delivered").await?;
    let attempts = event.body["attempts"].as_array().unwrap();
    assert_eq!(attempts.iter().map(|a| a["attempt_number"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(attempts.iter().map(|a| a["http_status_code"].as_i64().unwrap()).collect::<Vec<_>>(), [500, 503, 200]);
    assert_eq!(attempts[0]["response_body"], "first");
    // Each attempt is signed anew, under the same id.
    assert_eq!(came[0].header("webhook-id"), came[2].header("webhook-id"));
    let page = w.api.get(&format!("/events/{}/attempts?size=2&page=2", event.text("id"))).await?.expect(200);
    assert_eq!(page.body["total"], 3);
    assert_eq!(page.body["items"].as_array().unwrap().len(), 1);
    Ok(())
}

/// 400: dead letter at once. 410: the same, and the endpoint inactive. 429 with Retry-After: not before that.
#[tokio::test]
async fn answers_are_understood() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/bad", [Reply::status(400)]);
    w.sink.script("/gone", [Reply::status(410)]);
    w.sink.script("/busy", [Reply::status(429).header("retry-after", "3"), Reply::status(204)]);
    let bad = w.api.endpoint(&w.sink.url("/bad"), json!({})).await?.text("id");
    let gone = w.api.endpoint(&w.sink.url("/gone"), json!({})).await?.text("id");
    let busy = w.api.endpoint(&w.sink.url("/busy"), json!({"retry_schedule_seconds": [0, 0]})).await?.text("id");

    let event = w.api.event(&bad, "a", json!(1)).await?;
    let dead = w.api.wait_status(&event, "dead_lettered").await?;
    assert_eq!(dead.body["attempt_count"], 1);
    let letter = w.api.get(&format!("/dlq?endpoint_id={bad}")).await?.expect(200).body["items"][0].clone();
    assert_eq!((letter["reason"].as_str(), letter["last_http_status"].as_i64()), (Some("permanent"), Some(400)));

    let event = w.api.event(&gone, "a", json!(1)).await?;
    w.api.wait_status(&event, "dead_lettered").await?;
    w.api.wait_for(&format!("/endpoints/{gone}"), |a| a.body["is_active"] == false).await?;
    w.api
        .post("/events", &json!({"endpoint_id": gone, "event_type": "a", "payload": 1}))
        .await?
        .expect_problem(422, "endpoint-inactive");
    // And it can be brought back.
    w.sink.script("/gone", [Reply::status(200)]);
    w.api.patch(&format!("/endpoints/{gone}"), &json!({"is_active": true})).await?.expect(200);
    let event = w.api.event(&gone, "a", json!(2)).await?;
    w.api.wait_status(&event, "delivered").await?;

    let event = w.api.event(&busy, "a", json!(1)).await?;
    let came = w.sink.wait("/busy", 2).await?;
    assert!(came[1].at - came[0].at >= Duration::from_millis(2900), "{:?}", came[1].at - came[0].at);
    w.api.wait_status(&event, "delivered").await?;
    Ok(())
}

/// Rotation: during the overlap a receiver verifies with either secret.
#[tokio::test]
async fn rotation_keeps_the_old_secret_for_a_while() -> anyhow::Result<()> {
    let w = World::start().await?;
    let created = w.api.endpoint(&w.sink.url("/rotated"), json!({})).await?;
    let (id, old) = (created.text("id"), created.text("signing_secret"));
    let rotated = w.api.post(&format!("/endpoints/{id}/rotate-secret"), &json!({})).await?.expect(200);
    let new = rotated.text("signing_secret");
    assert_ne!(old, new);
    w.api.event(&id, "a", json!({})).await?;
    let received = w.sink.wait("/rotated", 1).await?.remove(0);
    for secret in [&old, &new] {
        let headers =
            [("x-webhook-signature", received.header("x-webhook-signature")), ("x-webhook-secret", secret.as_str())];
        let verdict = w.api.request("POST", "/api/v1/inbound/verify", &headers, Some("{}".to_owned())).await?;
        assert_eq!(verdict.body["valid"], true, "{}", verdict.body);
    }
    assert_eq!(received.header("webhook-signature").split(' ').count(), 2);
    // The overlap can be ended early.
    w.api.delete(&format!("/endpoints/{id}/previous-secret")).await?.expect(204);
    w.api.event(&id, "a", json!({})).await?;
    let received = w.sink.wait("/rotated", 2).await?.remove(1);
    assert_eq!(received.header("webhook-signature").split(' ').count(), 1);
    Ok(())
}

/// Settings change at once: retries go to the endpoint's current URL.
#[tokio::test]
async fn retries_go_to_the_current_url() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/old", [Reply::status(500)]);
    let id = w.api.endpoint(&w.sink.url("/old"), json!({"retry_schedule_seconds": [1, 1, 1]})).await?.text("id");
    let event = w.api.event(&id, "a", json!({})).await?;
    w.sink.wait("/old", 1).await?;
    let url = w.sink.url("/new");
    w.api
        .patch(&format!("/endpoints/{id}"), &json!({"url": url, "custom_headers": {"X-Token": "abc"}}))
        .await?
        .expect(200);
    let received = w.sink.wait("/new", 1).await?.remove(0);
    assert_eq!(received.header("x-token"), "abc");
    w.api.wait_status(&event, "delivered").await?;
    Ok(())
}

/// Pausing holds the work; resuming lets it go.
#[tokio::test]
async fn a_paused_endpoint_holds_its_work() -> anyhow::Result<()> {
    let w = World::start().await?;
    let id = w.api.endpoint(&w.sink.url("/paused"), json!({})).await?.text("id");
    w.api.patch(&format!("/endpoints/{id}"), &json!({"paused": true})).await?.expect(200);
    let event = w.api.event(&id, "a", json!({})).await?;
    w.api.wait_status(&event, "pending").await?;
    assert!(w.sink.received("/paused").is_empty());
    w.api.patch(&format!("/endpoints/{id}"), &json!({"paused": false})).await?.expect(200);
    w.api.wait_status(&event, "delivered").await?;
    Ok(())
}

/// Deactivation: what waits becomes dead letters.
#[tokio::test]
async fn a_deactivated_endpoints_work_becomes_dead_letters() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/leaving", [Reply::status(500)]);
    let id = w.api.endpoint(&w.sink.url("/leaving"), json!({"retry_schedule_seconds": [600]})).await?.text("id");
    let event = w.api.event(&id, "a", json!({})).await?;
    w.api.wait_status(&event, "failed").await?;
    w.api.delete(&format!("/endpoints/{id}")).await?.expect(204);
    w.api.delete(&format!("/endpoints/{id}")).await?.expect(204);
    let dead = w.api.wait_status(&event, "dead_lettered").await?;
    assert_eq!(dead.body["attempt_count"], 1);
    let letter = w.api.get(&format!("/dlq?endpoint_id={id}")).await?.body["items"][0].clone();
    assert_eq!(letter["reason"], "endpoint_inactive");
    assert_eq!(letter["last_error"], "Endpoint is inactive");
    Ok(())
}

/// Statistics are those of a known history.
#[tokio::test]
async fn statistics_add_up() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/ok", [Reply::status(200)]);
    w.sink.script("/no", [Reply::status(400)]);
    w.sink.script("/later", [Reply::status(500)]);
    let ok = w.api.endpoint(&w.sink.url("/ok"), json!({})).await?.text("id");
    let no = w.api.endpoint(&w.sink.url("/no"), json!({})).await?.text("id");
    let later = w.api.endpoint(&w.sink.url("/later"), json!({"retry_schedule_seconds": [600]})).await?.text("id");
    for (endpoint, n) in [(&ok, 3), (&no, 2), (&later, 1)] {
        for i in 0..n {
            w.api.event(endpoint, "a", json!(i)).await?;
        }
    }
    w.api
        .wait_for("/stats", |a| a.body["delivered"] == 3 && a.body["dead_lettered"] == 2 && a.body["failed"] == 1)
        .await?;
    let stats = w.api.get("/stats").await?.expect(200);
    assert_eq!(stats.body["total_events"], 6);
    assert_eq!(stats.body["pending"], 0);
    assert_eq!(stats.body["dlq_count"], 2);
    assert_eq!(stats.body["success_rate"], 60.0);
    let stats = w.api.get(&format!("/endpoints/{ok}/stats")).await?.expect(200);
    assert_eq!((stats.body["delivered"].as_i64(), stats.body["success_rate"].as_f64()), (Some(3), Some(100.0)));
    assert!(stats.body["avg_latency_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!(stats.body["circuit_state"], "closed");
    Ok(())
}
