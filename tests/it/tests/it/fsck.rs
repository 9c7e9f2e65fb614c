//! `webhook-relay fsck` on a running system: sound after mixed traffic and a kill, and not blind.

use std::time::Duration;

use it::process::binary;
use it::{Reply, World};
use serde_json::{Value, json};

use crate::servers::sql;

/// Exit code and report of `fsck` with these arguments.
pub fn fsck(w: &World, args: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let mut command = std::process::Command::new(binary("webhook-relay")?);
    command.args(["fsck", "--json"]).args(args);
    for name in ["DATABASE_URL", "NATS_URL"] {
        command.env(name, w.link(name)?);
    }
    let output = command.output()?;
    let report = serde_json::from_slice(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    Ok((output.status.code(), report.map_err(|e| anyhow::anyhow!("{e}: {error}"))?))
}

/// How many violations a check has found.
fn violations(report: &Value, name: &str) -> Option<u64> {
    report["checks"].as_array()?.iter().find(|c| c["name"] == name)?["violations"].as_u64()
}

/// Deliveries of every kind, a deliverer and a dispatcher killed in mid-stream: all is sound. What is deleted or changed
/// by hand afterwards is found, repaired, and delivered again where it was not.
#[tokio::test]
async fn a_killed_system_is_sound_and_a_damaged_one_is_repaired() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (mut dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (mut deliverer, _) = w.service("deliverer", "deliverer").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    let short = json!({"timeout_seconds": 5, "event_types_filter": ["good"]});
    w.api.endpoint(&w.sink.url("/good"), short.clone()).await?;
    w.api.endpoint(&w.sink.url("/also"), short).await?;
    w.sink.script("/refuses", vec![Reply::status(400)]);
    w.api.endpoint(&w.sink.url("/refuses"), json!({"event_types_filter": ["refused"]})).await?;
    w.sink.script("/later", vec![Reply::status(500)]);
    let later = json!({"event_types_filter": ["later"], "retry_schedule_seconds": [3600]});
    w.api.endpoint(&w.sink.url("/later"), later).await?;
    let paused = w.api.endpoint(&w.sink.url("/paused"), json!({"event_types_filter": ["paused"]})).await?.text("id");
    w.api.patch(&format!("/endpoints/{paused}"), &json!({"paused": true})).await?.expect(200);

    let nats = async_nats::connect(&w.nats_url).await?;
    let jetstream = async_nats::jetstream::new(nats);
    for i in 0..120 {
        let kind = ["good", "refused", "later", "paused", "nobody"][i % 5];
        if i % 3 == 0 {
            let ack = jetstream.publish(format!("relay.events.default.{kind}"), json!({"i": i}).to_string().into());
            ack.await?.await?;
        } else {
            let key = format!("key-{}", i / 2);
            let event = json!({"event_type": kind, "payload": {"i": i / 2}, "idempotency_key": key});
            let status = w.api.post("/events", &event).await?.status;
            anyhow::ensure!(matches!(status, 202 | 409), "{status}");
        }
        match i {
            40 => deliverer.kill()?,
            60 => dispatcher.kill()?,
            _ => {}
        }
    }
    jetstream.publish("relay.events.default.good", "no JSON".into()).await?.await?;
    let (_dispatcher, _) = w.service("dispatcher-again", "dispatcher").await?;
    let (_deliverer, _) = w.service("deliverer-again", "deliverer").await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    // One more behind all the others: when it is there, they have been taken up.
    w.api.post("/events", &json!({"event_type": "good", "payload": "last"})).await?.expect(202);
    loop {
        let (code, report) = fsck(&w, &[])?;
        assert_eq!(code, Some(0), "{report:#}");
        let waiting = report["checks"][0]["looked_at"].as_str().unwrap_or_default();
        let letters = "select count(*) from dead_letters where reason = 'permanent'";
        if waiting.contains("; 0 messages") && sql(&w, letters)? != "0" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{report:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // An event, with all that hangs on it, that nobody was sent yet; and figures.
    sql(
        &w,
        "with e as (delete from events where id = (select id from events where type = 'paused' order by id desc limit 1) returning id)
            delete from open_deliveries o using e where o.event_id = e.id;
        insert into stats_delta (tenant, endpoint_id, opened) select tenant, id, 3 from endpoints;
        update dead_letters set state = 'resolved' where reason = 'permanent'",
    )?;
    let (code, report) = fsck(&w, &[])?;
    assert_eq!((code, violations(&report, "accepted")), (Some(1), Some(1)), "{report:#}");
    assert!(violations(&report, "letters") > Some(0) && violations(&report, "statistics") > Some(0), "{report:#}");
    let (code, report) = fsck(&w, &["--repair"])?;
    assert_eq!(code, Some(0), "{report:#}");
    loop {
        // The event goes through NATS and a dispatcher again.
        let (code, report) = fsck(&w, &["--repair"])?;
        if code == Some(0) && report["checks"].as_array().unwrap().iter().all(|c| c["violations"] == 0) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline + Duration::from_secs(30), "{report:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// What can't be checked is no good news.
#[test]
fn servers_that_do_not_answer_are_told_from_sound_ones() -> anyhow::Result<()> {
    let nobody = std::env::temp_dir().join(format!("relay-fsck-{}", std::process::id()));
    let mut command = std::process::Command::new(binary("webhook-relay")?);
    let output = command.args(["fsck", "--data-dir"]).arg(&nobody).env_remove("DATABASE_URL").output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("webhook-relay up"));
    Ok(())
}
