//! Publishes an event straight to NATS.
//!
//! usage: publish [nats url]

use async_nats::{HeaderMap, jetstream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "nats://127.0.0.1:42220".to_owned());
    let stream = jetstream::new(async_nats::connect(url).await?);
    let mut headers = HeaderMap::new();
    // The idempotency key: the same key is the same event.
    headers.insert("Nats-Msg-Id", "order-43-created");
    let subject = "relay.events.default.order.created";
    let ack = stream.publish_with_headers(subject, headers, r#"{"order_id": 43, "total": 1.5}"#.into()).await?.await?;
    println!("accepted at position {}", ack.sequence);
    Ok(())
}
