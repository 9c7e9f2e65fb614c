//! Publishing straight to NATS: the good, the bad, and what a producer may not do.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use base64::Engine as _;
use futures_util::StreamExt as _;
use it::World;
use serde_json::json;

async fn producer(w: &World) -> anyhow::Result<(async_nats::Client, jetstream::Context)> {
    let client = async_nats::connect(&w.nats_url).await?;
    Ok((client.clone(), jetstream::new(client)))
}

#[tokio::test]
async fn a_published_event_is_delivered_as_it_is() -> anyhow::Result<()> {
    let w = World::start().await?;
    let (_client, js) = producer(&w).await?;
    let endpoint = w.api.endpoint(&w.sink.url("/direct"), json!({"event_types_filter": ["order.*"]})).await?.text("id");
    w.api.endpoint(&w.sink.url("/other"), json!({"event_types_filter": ["order.*"]})).await?;
    js.publish("relay.events.default.order.created", "{\"order_id\":  42}".into()).await?.await?;
    let received = w.sink.wait("/direct", 1).await?.remove(0);
    assert_eq!(&received.body[..], b"{\"order_id\":  42}");
    assert_eq!(received.header("x-webhook-event-type"), "order.created");
    w.sink.wait("/other", 1).await?;
    w.api.wait_status(received.header("webhook-id"), "delivered").await?;

    // One endpoint only, an idempotency key, a trace; a producer's other headers set nothing.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "order-42");
    headers.insert("Relay-Endpoint-Id", endpoint.as_str());
    headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    headers.insert("Relay-Event-Id", "11111111-1111-1111-1111-111111111111");
    headers.insert("Relay-Suspect", "1");
    for _ in 0..3 {
        js.publish_with_headers("relay.events.default.order.paid", headers.clone(), "1".into()).await?.await?;
    }
    let received = w.sink.wait("/direct", 2).await?.remove(1);
    assert_eq!(received.header("traceparent"), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_ne!(received.header("webhook-id"), "11111111-1111-1111-1111-111111111111");
    w.api.wait_status(received.header("webhook-id"), "delivered").await?;
    js.publish("relay.events.default.order.last", "2".into()).await?.await?;
    w.sink.wait("/direct", 3).await?;
    assert_eq!(w.sink.received("/direct").len(), 3, "three equal keys are one event");
    assert_eq!(w.sink.wait("/other", 2).await?.len(), 2);
    Ok(())
}

/// A new tenant publishes with a user of its own, at once, and only below its own subject.
#[tokio::test]
async fn a_new_tenant_has_a_user_of_its_own() -> anyhow::Result<()> {
    let w = World::start().await?;
    let made: serde_json::Value = serde_json::from_str(&w.command(&["tenants", "create", "acme", "--json"])?)?;
    let acme = w.api.with_key(&w.key("acme", "admin", &[])?);
    acme.endpoint(&w.sink.url("/acme"), json!({})).await?;
    let url = reqwest::Url::parse(made["nats_url"].as_str().unwrap())?;
    // This client doesn't take credentials from a URL.
    let options = async_nats::ConnectOptions::with_user_and_password(
        url.username().to_owned(),
        url.password().unwrap().to_owned(),
    );
    let js = jetstream::new(options.connect(&w.nats_url).await?);
    js.publish("relay.events.acme.order.created", "1".into()).await?.await.context("acme's own")?;
    w.sink.wait("/acme", 1).await?;
    let (_client, others) = producer(&w).await?;
    let refused = async { others.publish("relay.events.acme.order.created", "2".into()).await?.await };
    assert!(!matches!(tokio::time::timeout(Duration::from_millis(300), refused).await, Ok(Ok(_))), "not permitted");
    assert_eq!(w.sink.received("/acme").len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_used_becomes_a_dead_letter_and_blocks_nothing() -> anyhow::Result<()> {
    let w = World::start().await?;
    let (_client, js) = producer(&w).await?;
    w.api.endpoint(&w.sink.url("/good"), json!({})).await?;
    js.publish("relay.events.default.bad.json", vec![b'{', 0xff, 0].into()).await?.await?;
    let large = format!("\"{}\"", "x".repeat(1024 * 1024));
    js.publish("relay.events.default.too.large", large.into()).await?.await?;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Relay-Endpoint-Id", uuid::Uuid::from_u128(7).to_string().as_str());
    js.publish_with_headers("relay.events.default.no.endpoint", headers, "1".into()).await?.await?;
    js.publish("relay.events.default.good", "1".into()).await?.await?;
    w.sink.wait("/good", 1).await?;
    let page = w.api.wait_for("/dlq", |a| a.body["items"].as_array().is_some_and(|items| items.len() == 3)).await?;
    let by_reason =
        |reason: &str| page.body["items"].as_array().unwrap().iter().find(|l| l["reason"] == reason).cloned();
    let malformed = by_reason("malformed").expect("a malformed one");
    assert_eq!(malformed["raw_base64"], base64::engine::general_purpose::STANDARD.encode([b'{', 0xff, 0]));
    assert_eq!(malformed["subject"], "relay.events.default.bad.json");
    assert!(malformed["last_error"].as_str().is_some_and(|e| e.contains("JSON")), "{malformed}");
    assert!(by_reason("too_large").is_some());
    let unknown = by_reason("unknown_endpoint").expect("an unknown endpoint");
    assert_eq!(unknown["original_payload"], json!(1));
    Ok(())
}

#[tokio::test]
async fn a_producer_sees_nothing_and_publishes_only_its_own() -> anyhow::Result<()> {
    let w = World::start().await?;
    let (client, js) = producer(&w).await?;
    w.api.endpoint(&w.sink.url("/x"), json!({})).await?;
    let (other, _) = producer(&w).await?;
    let mut spies = Vec::new();
    for subject in [">", "_INBOX.>", "relay.>", "_R_relay.>", "$JS.>"] {
        spies.push(other.subscribe(subject).await?);
    }
    other.flush().await?;
    for i in 0..20 {
        js.publish("relay.events.default.secret", format!("{i}").into()).await?.await?;
    }
    w.sink.wait("/x", 20).await?;
    // What the spy sees arrives before the answer to a publish of its own, which it may see in its inbox.
    for spy in &mut spies {
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(200), spy.next()).await {
            assert!(!message.subject.starts_with("relay."), "{}", message.subject);
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            assert!(text.contains("\"stream\":\"EVENTS\"") || text.is_empty(), "a stranger's message: {text}");
        }
    }
    for subject in
        ["relay.bundles.0", "relay.events.other.x", "relay.jobs.fresh.0", "relay.dlq.default.x", "relay.hint.due"]
    {
        client.publish(subject, "1".into()).await?;
        let answer =
            tokio::time::timeout(Duration::from_millis(300), async { js.publish(subject, "1".into()).await?.await })
                .await;
        assert!(!matches!(answer, Ok(Ok(_))), "{subject} was accepted");
    }
    let read = tokio::time::timeout(Duration::from_millis(500), js.get_stream("EVENTS")).await;
    assert!(!matches!(read, Ok(Ok(_))), "a producer can't look into a stream");
    Ok(())
}
