//! Restarts in mid-stream: each service killed or stopped while events flow; nothing is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use it::{Api, World};
use serde_json::{Value, json};

/// Events sent in a steady stream around a restart.
const EVENTS: usize = 300;

async fn send(api: &Api, i: usize) -> anyhow::Result<String> {
    // A producer that retries with its key until it is told "accepted".
    let body = json!({"event_type": "r.e", "payload": {"i": i}, "idempotency_key": format!("event-{i}")});
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok(answer) = api.post("/events", &body).await
            && answer.status == 202
        {
            return Ok(answer.text("id"));
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "event {i} is never accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn received(w: &World) -> BTreeMap<i64, usize> {
    let mut times = BTreeMap::new();
    for request in w.sink.received("/r") {
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        *times.entry(body["i"].as_i64().expect("a number")).or_insert(0) += 1;
    }
    times
}

/// Runs the services on their own, restarts one of them in mid-stream, and compares.
async fn restart(role: &str, kill: bool) -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (mut dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (mut deliverer, _) = w.service("deliverer", "deliverer").await?;
    let (mut ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    // Time-outs of 5 s keep leases short: a job that only its lease brings back comes after 35 s.
    w.api.endpoint(&w.sink.url("/r"), json!({"timeout_seconds": 5})).await?;
    let api = w.api.clone();
    let producer = tokio::spawn(async move {
        for i in 0..EVENTS {
            send(&api, i).await?;
        }
        anyhow::Ok(())
    });
    w.sink.wait("/r", EVENTS / 4).await?;
    let process = match role {
        "dispatcher" => &mut dispatcher,
        "deliverer" => &mut deliverer,
        _ => &mut ingest,
    };
    if kill {
        process.kill()?;
    } else {
        assert!(process.terminate().await?, "{role} ends with success");
    }
    let name = format!("{role}-again");
    let _again = match role {
        "ingest" => w.ingest_at(&name, &address).await?,
        _ => w.service(&name, role).await?.0,
    };
    producer.await??;
    w.sink
        .wait_until(|all| {
            let distinct: std::collections::BTreeSet<&[u8]> = all.iter().map(|r| &r.body[..]).collect();
            distinct.len() >= EVENTS
        })
        .await
        .map_err(|got| anyhow::anyhow!("only {} requests after the restart of {role}", got.len()))?;
    let times = received(&w);
    assert_eq!(times.len(), EVENTS);
    let twice = times.values().filter(|n| **n > 1).count();
    if !kill {
        assert_eq!(twice, 0, "a clean restart of {role} duplicates nothing");
    }
    // In flight of a pod: what was open or just answered at the kill, plus a batch.
    assert!(twice <= 100, "{twice} duplicates after a kill of {role}");
    Ok(())
}

#[tokio::test]
async fn dispatcher_killed() -> anyhow::Result<()> {
    restart("dispatcher", true).await
}

#[tokio::test]
async fn deliverer_killed() -> anyhow::Result<()> {
    restart("deliverer", true).await
}

#[tokio::test]
async fn ingest_killed() -> anyhow::Result<()> {
    restart("ingest", true).await
}

#[tokio::test]
async fn dispatcher_stopped() -> anyhow::Result<()> {
    restart("dispatcher", false).await
}

#[tokio::test]
async fn deliverer_stopped() -> anyhow::Result<()> {
    restart("deliverer", false).await
}

#[tokio::test]
async fn ingest_stopped() -> anyhow::Result<()> {
    restart("ingest", false).await
}
