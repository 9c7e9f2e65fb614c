//! Idempotency keys: the same key and body is the same event and one delivery.

use futures_util::future::join_all;
use it::{Api, World};
use serde_json::json;

async fn race(apis: Vec<Api>, endpoint: &str) -> anyhow::Result<String> {
    let requests = (0..100).map(|i| {
        let (api, endpoint) = (apis[i % apis.len()].clone(), endpoint.to_owned());
        async move {
            let body =
                json!({"endpoint_id": endpoint, "event_type": "a", "payload": {"n": 1}, "idempotency_key": "order-1"});
            api.post("/events", &body).await.map(|a| a.expect(202).text("id"))
        }
    });
    let mut ids = Vec::new();
    for id in join_all(requests).await {
        ids.push(id?);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    Ok(ids.remove(0))
}

#[tokio::test]
async fn a_hundred_equal_requests_at_once_are_one_event() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = w.api.endpoint(&w.sink.url("/once"), json!({})).await?.text("id");
    let id = race(vec![w.api.clone()], &endpoint).await?;
    w.api.wait_status(&id, "delivered").await?;
    // A later event on the same endpoint arrives after whatever would have been sent twice.
    let last = w.api.event(&endpoint, "b", json!({})).await?;
    w.api.wait_status(&last, "delivered").await?;
    assert_eq!(w.sink.received("/once").iter().filter(|r| r.header("x-webhook-event-type") == "a").count(), 1);
    Ok(())
}

#[tokio::test]
async fn header_and_field_are_the_same_key_and_another_body_is_refused() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = w.api.endpoint(&w.sink.url("/k"), json!({})).await?.text("id");
    let body = json!({"endpoint_id": endpoint, "event_type": "a", "payload": 1});
    let json_type = ("content-type", "application/json");
    let by_header = w
        .api
        .request("POST", "/api/v1/events", &[json_type, ("idempotency-key", "k1")], Some(body.to_string()))
        .await?
        .expect(202);
    w.api.wait_status(&by_header.text("id"), "delivered").await?;
    let mut with_field = body.clone();
    with_field["idempotency_key"] = json!("k1");
    let by_field = w.api.post("/events", &with_field).await?.expect(202);
    assert_eq!(by_header.text("id"), by_field.text("id"));
    with_field["payload"] = json!(2);
    w.api.post("/events", &with_field).await?.expect_problem(409, "idempotency-conflict");
    with_field["idempotency_key"] = json!("");
    w.api.post("/events", &with_field).await?.expect_problem(422, "validation-failed");
    with_field["idempotency_key"] = json!("k2");
    w.api
        .request("POST", "/api/v1/events", &[json_type, ("idempotency-key", "k3")], Some(with_field.to_string()))
        .await?
        .expect_problem(422, "validation-failed");
    assert_eq!(w.sink.received("/k").len(), 1);
    Ok(())
}

#[tokio::test]
async fn two_ingests_agree() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (_deliverer, _) = w.service("deliverer", "deliverer").await?;
    let (_one, first) = w.service("ingest-1", "ingest").await?;
    let (_two, second) = w.service("ingest-2", "ingest").await?;
    w.use_api(&first);
    let other = Api::new(&format!("http://{second}"));
    // Created on one, used at once through the other.
    let endpoint = w.api.endpoint(&w.sink.url("/once"), json!({})).await?.text("id");
    let direct = other.event(&endpoint, "b", json!({})).await?;
    let fanned = other.post("/events", &json!({"event_type": "c", "payload": {}})).await?.expect(202).text("id");
    let id = race(vec![w.api.clone(), other.clone()], &endpoint).await?;
    for event in [&id, &direct, &fanned] {
        other.wait_status(event, "delivered").await?;
    }
    assert_eq!(w.sink.received("/once").iter().filter(|r| r.header("x-webhook-event-type") == "a").count(), 1);
    Ok(())
}
