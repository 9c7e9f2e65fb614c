//! Events and jobs over several streams of NATS: the dispatcher is told how many, in a running system, and nothing is lost
//! with more of them nor with fewer.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use it::World;
use serde_json::{Value, json};

use crate::fsck::fsck;
use crate::recover::figures;
use crate::servers::{nats, sql};

const STREAMS: [&str; 5] = ["EVENTS", "EVENTS_1", "EVENTS_2", "JOBS", "JOBS_1"];

/// The last sequence of each stream that there is.
async fn last(w: &World) -> anyhow::Result<BTreeMap<&'static str, u64>> {
    let nats = nats(w).await?;
    let mut all = BTreeMap::new();
    for stream in STREAMS {
        let answer = nats.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await?;
        let info: Value = serde_json::from_slice(&answer.payload)?;
        all.extend(info["state"]["last_seq"].as_u64().map(|last| (stream, last)));
    }
    Ok(all)
}

/// Events over HTTP, one after the other, until so many messages more are in each of these streams; how many were accepted.
async fn send_until(w: &World, kind: &str, more: u64, streams: &[&str]) -> anyhow::Result<usize> {
    let before = last(w).await?;
    let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
    let mut sent = 0;
    loop {
        let event = json!({"event_type": kind, "payload": {"n": sent}});
        w.api.post("/events", &event).await?.expect(202);
        sent += 1;
        let now = last(w).await?;
        if streams.iter().all(|s| now.get(s).is_some_and(|last| *last >= before.get(s).unwrap_or(&0) + more)) {
            return Ok(sent);
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{streams:?} aren't used: {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Exactly `n` deliveries came, each of another event.
async fn each_once(w: &World, n: usize) -> anyhow::Result<()> {
    let came = w.sink.wait("/orders", n).await?;
    let ids: HashSet<_> = came.iter().map(|r| r.header("webhook-id").to_owned()).collect();
    anyhow::ensure!((came.len(), ids.len()) == (n, n), "{} deliveries of {} events, not {n}", came.len(), ids.len());
    Ok(())
}

/// Waits until every accepted event is acknowledged, and all is sound.
async fn sound(w: &World) -> anyhow::Result<String> {
    let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
    loop {
        let (code, report) = fsck(w, &[])?;
        anyhow::ensure!(code == Some(0), "{report:#}");
        let looked_at = report["checks"][0]["looked_at"].as_str().unwrap_or_default();
        if looked_at.contains("; 0 messages are not acknowledged") {
            return Ok(looked_at.to_owned());
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{report:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn more_streams_and_fewer_deliver_every_event_once() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (mut dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let since = sql(&w, "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")?;
    let (_deliverer, _) = w.service("deliverer", "deliverer").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    w.api.endpoint(&w.sink.url("/orders"), json!({})).await?;
    let mut all = send_until(&w, "early", 3, &["EVENTS"]).await?;
    each_once(&w, all).await?;
    assert_eq!(last(&w).await?.into_keys().collect::<Vec<_>>(), ["EVENTS", "JOBS"]);

    // More, while ingest and deliverer run on and are told nothing.
    anyhow::ensure!(dispatcher.terminate().await?, "{}", dispatcher.output());
    let several = ["--event-streams", "3", "--job-streams", "2"].map(str::to_owned);
    let (mut dispatcher, _) = w.service_with("of-three", "dispatcher", &several, &[]).await?;
    all += send_until(&w, "order.created", 5, &["EVENTS_1", "EVENTS_2", "JOBS_1"]).await?;
    let jetstream = async_nats::jetstream::new(async_nats::connect(&w.nats_url).await?);
    for i in 0..20 {
        let ack = jetstream.publish("relay.events.default.order.created", json!({ "direct": i }).to_string().into());
        assert_eq!(ack.await?.await?.stream, "EVENTS", "producers of their own know no others");
        all += 1;
    }
    each_once(&w, all).await?;
    assert_eq!(last(&w).await?.len(), STREAMS.len());
    let looked_at = sound(&w).await?;
    assert!(looked_at.contains("of 3 streams") && !looked_at.contains("not used"), "{looked_at}");

    // Fewer, with accepted events in every stream that no dispatcher has seen.
    anyhow::ensure!(dispatcher.terminate().await?, "{}", dispatcher.output());
    let late = send_until(&w, "late", 4, &["EVENTS", "EVENTS_1", "EVENTS_2"]).await?;
    all += late;
    let (_dispatcher, _) = w.service("of-one", "dispatcher").await?;
    each_once(&w, all).await?;
    let before = last(&w).await?;
    all += send_until(&w, "order.created", 10, &["EVENTS", "JOBS"]).await?;
    each_once(&w, all).await?;
    let after = last(&w).await?;
    for unused in ["EVENTS_1", "EVENTS_2", "JOBS_1"] {
        assert_eq!(before[unused], after[unused], "nothing gets into a stream that isn't used any more");
    }
    let looked_at = sound(&w).await?;
    assert!(looked_at.contains("EVENTS_1 isn't used any more and holds"), "{looked_at}");

    // A database that lacks what came from three streams: it is in all of them, also in those that aren't used any more.
    sql(
        &w,
        "with e as (delete from events where type = 'late' returning id),
              c as (delete from closed_deliveries d using e where d.event_id = e.id)
         delete from attempts a using e where a.event_id = e.id",
    )?;
    let recovered = figures(&w, 0, &["--since", &since])?;
    assert_eq!((&recovered["recovered"], &recovered["gap"]), (&json!(late), &Value::Null), "{recovered}");
    w.sink.wait("/orders", all + late).await?;
    w.api.wait_for("/events?event_type=late&size=1", |a| a.body["total"] == json!(late)).await?;
    sound(&w).await?;
    Ok(())
}
