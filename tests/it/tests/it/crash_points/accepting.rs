//! Rows 1 to 4 and 6: around the accept log.

use anyhow::ensure;
use it::Reply;
use it::api::PATIENCE;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Stage, only};

fn keyed(row: &str, key: &str) -> Value {
    json!({"event_type": format!("row.{row}"), "payload": {"row": row}, "idempotency_key": key})
}

/// Rows 1 to 3. Ingest dies before its publish: nothing is there, and the producer's second try is the first event.
/// It dies after it: with a key both tries are one event, without one they are two. JetStream's word doesn't come: the
/// bundle is published again with the same ids, and is one event.
#[tokio::test]
async fn an_ingest_dies_around_its_publish() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    for row in ["1", "2", "3"] {
        s.hook(row, []).await?;
    }
    s.hook_at("2", "2-plain", [], json!({"event_types_filter": ["plain"]})).await?;
    let (_dispatcher, _deliverer) = (s.run("dispatcher").await?, s.run("deliverer").await?);

    s.ingest_until(Some("ingest.publish")).await?;
    assert!(s.w.api.post("/events", &keyed("1", "one")).await.is_err(), "it is dead");
    s.ingest_until(Some("ingest.published")).await?;
    assert!(s.w.api.post("/events", &keyed("2", "two")).await.is_err());
    s.w.sink.wait("/2", 1).await?;
    assert!(s.w.sink.received("/1").is_empty(), "nothing was published");
    s.ingest_until(Some("ingest.published")).await?;
    let plain = json!({"event_type": "plain", "payload": 1});
    assert!(s.w.api.post("/events", &plain).await.is_err());
    s.ingest_until(Some("ingest.published:fail")).await?;
    let unsure = json!({"event_type": "row.3", "payload": 3});
    let third = s.w.api.post("/events", &unsure).await?.expect(202).text("id");
    s.owe("3", &third, 0);

    for row in ["1", "2"] {
        let key = if row == "1" { "one" } else { "two" };
        let event = s.w.api.post("/events", &keyed(row, key)).await?.expect(202).text("id");
        s.owe(row, &event, 0);
        s.w.sink.wait(&format!("/{row}"), 1).await?;
        assert_eq!(only(&s, row)?, event, "the tries of one key are one event");
    }
    s.w.sink.wait("/2-plain", 1).await?;
    s.w.api.post("/events", &plain).await?.expect(202);
    let both = s.w.sink.wait("/2-plain", 2).await?;
    assert_ne!(both[0].header("webhook-id"), both[1].header("webhook-id"), "without a key they are two events");
    s.verdict().await?.assert_good();
    Ok(())
}

/// Row 4. nats-server is killed while events and jobs are on their way, all of them acknowledged.
#[tokio::test]
async fn nats_is_killed_after_its_acknowledgement() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    s.hook("4", [Reply::status(200).after(std::time::Duration::from_millis(200))]).await?;
    let (_dispatcher, _deliverer) = (s.run("dispatcher").await?, s.run("deliverer").await?);
    for _ in 0..40 {
        s.event("4", 1).await?;
    }
    let pid = std::fs::read_to_string(s.w.data("run/nats.pid"))?;
    ensure!(std::process::Command::new("kill").args(["-9", pid.trim()]).status()?.success(), "no nats-server");
    // Requests open now, or answered in the second before: 4 at once to begin with, some more after each success.
    let came = s.w.sink.received("/4").len();
    let before = s.w.sink.received("/4").iter().filter(|r| r.at.elapsed().as_millis() > 1_200).count();
    s.verdict().await?.assert_good();
    let repeated: usize = s.owed.iter().map(|owed| s.taken("4", &owed.event) - 1).sum();
    assert!(repeated <= came - before, "{repeated} duplicates, {} in flight", came - before);
    Ok(())
}

/// Row 6. The accept log is full: producers are refused and told when to come again, and nothing accepted is lost. It
/// takes more when the dispatcher has worked it off.
#[tokio::test]
async fn a_full_accept_log_refuses() -> anyhow::Result<()> {
    let mut s = Stage::servers(None).await?;
    let dispatcher = s.run_with("dispatcher", &[("RELAY_EVENTS_BYTES_MAX", "300000")]).await?;
    s.ingest_until(None).await?;
    s.hook("6", []).await?;
    let _deliverer = s.run("deliverer").await?;
    super::ends(dispatcher).await?;
    let event = json!({"event_type": "row.6", "payload": "x".repeat(20_000)});
    let mut refused = None;
    for _ in 0..40 {
        let answer = s.w.api.post("/events", &event).await?;
        if answer.status != 202 {
            refused = Some(answer);
            break;
        }
        s.owe("6", &answer.text("id"), 0);
    }
    let refused = refused.expect("40 times 20 kB don't fit").expect_problem(503, "overloaded");
    assert!(refused.headers.contains_key("retry-after"));
    assert!(s.owed.len() > 5, "{} fit", s.owed.len());
    let _dispatcher = s.run("dispatcher").await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = s.w.api.post("/events", &event).await?;
        if answer.status == 202 {
            s.owe("6", &answer.text("id"), 0);
            break;
        }
        ensure!(answer.status == 503 && Instant::now() < deadline, "{}", answer.body);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    s.verdict().await?.assert_good();
    Ok(())
}
