//! Retention with time shifted: what is stored is moved into the past, and the leader's duty finds it there.

use anyhow::Context as _;
use base64::Engine as _;
use it::{Reply, World};
use serde_json::{Value, json};

use crate::fsck::fsck;
use crate::recover::figures;
use crate::servers::{nats, purge, sql};

/// Moves ids, and times, of the events whose types begin with `old` 40 days into the past.
const SHIFT: &str = "
    create function pg_temp.back(id uuid) returns uuid language sql immutable as $$
        select (lpad(to_hex(('x' || left(h, 12))::bit(48)::bigint - 40 * 86400000::bigint), 12, '0') || substr(h, 13))::uuid
        from replace(id::text, '-', '') h
    $$;
    select relay_make_partitions((id_day.d - 40)::date)
        from (select distinct (accepted_at at time zone 'utc')::date as d from events union select current_date) id_day;
    create temp table old as select id from events where type like 'old.%';
    update attempts t set event_id = pg_temp.back(event_id), attempted_at = attempted_at - interval '40 days' where event_id in (select id from old);
    update closed_deliveries t set event_id = pg_temp.back(event_id), finished_at = finished_at - interval '40 days' where event_id in (select id from old);
    update open_deliveries t set event_id = pg_temp.back(event_id) where event_id in (select id from old);
    update dead_letters t set event_id = pg_temp.back(event_id), dead_lettered_at = dead_lettered_at - interval '40 days' where event_id in (select id from old);
    update events t set id = pg_temp.back(id), accepted_at = accepted_at - interval '40 days' where id in (select id from old)";
/// Partitions of more than 10 days ago.
const OLD_PARTITIONS: &str = "select count(*) from pg_class where relkind = 'r' and relname ~ '^(events|closed_deliveries|attempts|event_aliases)_[0-9]{8}$'
    and right(relname, 8) < to_char(now() at time zone 'utc' - interval '10 days', 'YYYYMMDD')";
/// What is stored of newer events: events, attempts, closed and open deliveries.
const NEWER: &str = "with e as (select id from events where type like 'new.%')
    select (select count(*) from e), (select count(*) from attempts join e on e.id = event_id),
        (select count(*) from closed_deliveries join e on e.id = event_id), (select count(*) from open_deliveries join e on e.id = event_id)";

#[tokio::test]
async fn an_expired_day_is_dropped_and_what_was_open_there_becomes_letters() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let mut up = w.all("before", &[]).await?;
    w.api.endpoint(&w.sink.url("/good"), json!({"event_types_filter": ["old.good", "new.good"]})).await?;
    w.sink.script("/refuses", vec![Reply::status(400)]);
    w.api.endpoint(&w.sink.url("/refuses"), json!({"event_types_filter": ["old.refused", "new.refused"]})).await?;
    w.sink.script("/later", vec![Reply::status(500)]);
    let later = json!({"event_types_filter": ["old.later", "new.later"], "retry_schedule_seconds": [36000],
        "circuit_failure_threshold": 100});
    w.api.endpoint(&w.sink.url("/later"), later).await?;
    for (age, n) in [("old", 6), ("new", 3)] {
        for i in 0..n {
            for (kind, status) in [("good", "delivered"), ("refused", "dead_lettered"), ("later", "failed")] {
                let event =
                    json!({"event_type": format!("{age}.{kind}"), "payload": {"age": age, "kind": kind, "i": i}});
                let id = w.api.post("/events", &event).await?.expect(202).text("id");
                w.api.wait_status(&id, status).await?;
            }
        }
    }
    anyhow::ensure!(up.terminate().await?, "{}", up.output());
    // What NATS still holds has the ids from before.
    purge(&w, "EVENTS", None).await?;
    sql(&w, SHIFT)?;
    assert_eq!(sql(&w, OLD_PARTITIONS)?, "4");
    assert_eq!(sql(&w, "select count(*) from events where accepted_at < now() - interval '39 days'")?, "18");
    let newer = sql(&w, NEWER)?;
    assert_eq!(newer, "9|9|6|3");

    let up = w.all("after", &["--retention-days", "10", "--dead-letter-days", "90"]).await?;
    up.wait_said("dropped").await?;
    let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
    while sql(&w, OLD_PARTITIONS)? != "0" {
        assert!(tokio::time::Instant::now() < deadline, "{}", up.output());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(sql(&w, "select count(*) from events where type like 'old.%'")?, "0");
    let letters = "select reason, state, count(*), bool_and(convert_from(payload, 'UTF8')::jsonb ->> 'age' = 'old')
        from dead_letters where event_type like 'old.%' group by 1, 2 order by 1";
    assert_eq!(sql(&w, letters)?, "expired|open|6|t\npermanent|open|6|t");
    assert_eq!(sql(&w, "select count(*) from dead_letters where event_type like 'new.%' and payload is null")?, "3");
    assert_eq!(sql(&w, NEWER)?, newer);
    let (code, report) = fsck(&w, &["--since", "60d"])?;
    assert_eq!(code, Some(0), "{report:#}");

    let expired = w.api.get("/dlq?event_type=old.later&size=1").await?.expect(200).body["items"][0].clone();
    assert_eq!(expired["reason"], "expired", "{expired}");
    Ok(())
}

/// Puts a copy of an event into the accept log as if it had been accepted so many days before. Returns its id.
async fn accept_before(w: &World, event: &str, days: u64) -> anyhow::Result<String> {
    let (nats, engine) = (nats(w).await?, base64::engine::general_purpose::STANDARD);
    let id = event.parse::<uuid::Uuid>()?;
    for sequence in 1.. {
        let ask = json!({ "seq": sequence }).to_string();
        let answer = nats.request("$JS.API.STREAM.MSG.GET.EVENTS", ask.into()).await?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        let body = answer["message"]["data"].as_str().with_context(|| format!("{event} is in no bundle: {answer}"))?;
        let mut body = engine.decode(body)?;
        let Some(at) = body.windows(16).position(|bytes| bytes == id.as_bytes()) else { continue };
        // An id begins with its time.
        let mut time = [0; 8];
        time[2..].copy_from_slice(&body[at..at + 6]);
        let before = u64::from_be_bytes(time) - days * 86_400_000;
        body[at..at + 6].copy_from_slice(&before.to_be_bytes()[2..]);
        let old = uuid::Uuid::from_slice(&body[at..at + 16])?;
        let answer = nats.request("relay.bundles.0", body.into()).await?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        anyhow::ensure!(answer["error"].is_null(), "{answer}");
        return Ok(old.to_string());
    }
    unreachable!("there is a last message")
}

/// NATS keeps its history for longer than PostgreSQL does: what retention has dropped isn't lost, and isn't sent again.
#[tokio::test]
async fn what_was_dropped_is_not_brought_back() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let mut up = w.all("before", &[]).await?;
    w.api.endpoint(&w.sink.url("/orders"), json!({})).await?;
    let event = json!({"event_type": "order.created", "payload": 1});
    let event = w.api.post("/events", &event).await?.expect(202).text("id");
    w.api.wait_status(&event, "delivered").await?;
    let old = accept_before(&w, &event, 12).await?;
    w.api.wait_status(&old, "delivered").await?;
    anyhow::ensure!(up.terminate().await?, "{}", up.output());
    let whole = figures(&w, 1, &["--since", "60d", "--dry-run"])?;
    assert_eq!((&whole["recovered"], &whole["dropped"]), (&json!(0), &json!(0)), "{whole}");

    let mut up = w.all("after", &["--retention-days", "10"]).await?;
    up.wait_said("dropped").await?;
    w.api.wait_for(&format!("/events/{old}"), |a| a.status == 404).await?;
    anyhow::ensure!(up.terminate().await?, "{}", up.output());
    // Without the mark it would be.
    let mark = |days: i32| sql(&w, &format!("update retention_marks set before = before + {days} * interval '1 day'"));
    mark(-30)?;
    assert_eq!(fsck(&w, &["--since", "60d"])?.0, Some(1));
    mark(30)?;
    for args in [&["--since", "60d"][..], &["--since", "60d", "--repair"]] {
        let (code, report) = fsck(&w, args)?;
        assert!(code == Some(0) && report.to_string().contains("1 of them thrown away by retention"), "{report:#}");
    }
    let figures = figures(&w, 1, &["--since", "60d"])?;
    assert_eq!((&figures["recovered"], &figures["dropped"]), (&json!(0), &json!(1)), "{figures}");
    // Of the time before that nothing is missed.
    let earlier = chrono::Utc::now() - chrono::TimeDelta::days(11);
    assert!(figures["gap"]["from"].as_str() > Some(&earlier.to_rfc3339()), "{figures}");

    let _up = w.all("again", &[]).await?;
    let event = json!({"event_type": "order.created", "payload": 2});
    let event = w.api.post("/events", &event).await?.expect(202).text("id");
    w.api.wait_status(&event, "delivered").await?;
    let came = w.sink.received("/orders");
    assert_eq!(came.iter().filter(|r| r.header("webhook-id") == old).count(), 1, "it came once, 12 days ago");
    Ok(())
}
