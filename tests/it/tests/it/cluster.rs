//! A cluster of three NATS servers with three copies of each stream: whichever server is killed, also the leader of a stream,
//! nothing that was accepted is lost.

use std::collections::HashSet;
use std::time::Duration;

use it::cluster::{Cluster, SIZE};
use it::{Received, World};
use serde_json::{Value, json};

use crate::servers;

/// Events that are sent with all servers there, and as many while one is away.
const EVENTS: usize = 60;

#[tokio::test]
async fn a_killed_server_of_a_cluster_loses_nothing() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let mut cluster = Cluster::start(&mut w)?;
    let small = ["--stream-replicas", "3", "--events-bytes-max", "268435456", "--jobs-bytes-max", "134217728"];
    let small: Vec<String> = small.map(str::to_owned).to_vec();
    let (_dispatcher, _) = w.service_with("dispatcher", "dispatcher", &small, &[]).await?;
    let (_deliverer, _) = w.service("deliverer", "deliverer").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({})).await?.text("id");
    for stream in ["EVENTS", "JOBS", "DLQ"] {
        let info = all_current(&cluster, 0, stream).await?;
        assert_eq!(info["config"]["num_replicas"], 3, "{info}");
    }

    let mut accepted = HashSet::new();
    for n in 0..SIZE {
        for i in 0..EVENTS {
            accepted.insert(send(&w, &endpoint, json!([n, i])).await?);
        }
        cluster.kill(n)?;
        for i in EVENTS..EVENTS * 2 {
            accepted.insert(send(&w, &endpoint, json!([n, i])).await?);
        }
        all_there(&w, &accepted).await?;
        cluster.start_again(n)?;
        for stream in ["EVENTS", "JOBS", "DLQ"] {
            all_current(&cluster, n, stream).await?;
        }
    }
    assert_eq!(accepted.len(), 2 * SIZE * EVENTS);
    for event in &accepted {
        w.api.wait_status(event, "delivered").await?;
    }
    Ok(())
}

/// Sends an event until it is accepted: while a stream has no leader it is refused with the advice to come again.
async fn send(w: &World, endpoint: &str, payload: Value) -> anyhow::Result<String> {
    let body = json!({ "event_type": "cluster.event", "endpoint_id": endpoint, "payload": payload });
    let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
    loop {
        let answer = w.api.post("/events", &body).await?;
        if answer.status == 202 {
            return Ok(answer.text("id"));
        }
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert!(answer.headers.contains_key("retry-after"), "{}", answer.body);
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "not accepted: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn all_there(w: &World, accepted: &HashSet<String>) -> anyhow::Result<()> {
    let is_there = |all: &[Received]| {
        let came: HashSet<&str> = all.iter().map(|received| received.header("webhook-id")).collect();
        accepted.iter().all(|event| came.contains(event.as_str()))
    };
    w.sink.wait_until(is_there).await.map_err(|all| anyhow::anyhow!("{} came for {}", all.len(), accepted.len()))?;
    Ok(())
}

/// A stream as server `n` shows it, once each of its copies is as new as its leader's.
async fn all_current(cluster: &Cluster, n: usize, stream: &str) -> anyhow::Result<Value> {
    let nats = servers::nats_at(&cluster.url(n)).await?;
    let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
    loop {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let info: Value = match nats.request(subject, "".into()).await {
            Ok(answer) => serde_json::from_slice(&answer.payload)?,
            Err(_) => Value::Null,
        };
        let copies = info["cluster"]["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
        if copies.len() == SIZE - 1 && copies.iter().all(|copy| copy["current"] == true && copy["offline"] != true) {
            return Ok(info);
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{stream} is not whole: {info}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
