//! Rows 14, 16, 17, 20, 21e, 21f, 25 and 29: deliverers. JOBS gives a dead pod's jobs to another one after 10 s.

use std::collections::HashSet;
use std::time::Duration;

use it::{Received, Reply};
use serde_json::json;

use super::{STOPPED, Stage, Verdict, dies, ends, holds};

/// Rows 14, 17, 25, 21e and 29. A deliverer dies before it looks at a job; between a record and the acknowledgement of
/// its job, for a 2xx, for a refusal, and for a job that it gave back because its endpoint was paused.
#[tokio::test]
async fn a_deliverer_dies_around_its_record() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    s.hook("14", []).await?;
    s.hook("17", []).await?;
    s.hook("25", [Reply::status(400)]).await?;
    let paused = format!("/endpoints/{}", s.hook("29", []).await?);
    let _dispatcher = s.run("dispatcher").await?;

    let deliverer = s.run_until("deliverer", "deliver.next")?;
    s.event("14", 0).await?;
    dies(deliverer).await?;
    let deliverer = s.run_until("deliverer", "record.committed")?;
    s.event("17", 0).await?;
    dies(deliverer).await?;
    let deliverer = s.run_until("deliverer", "record.committed")?;
    s.event("25", 0).await?;
    s.owed.last_mut().unwrap().status = "dead_lettered";
    dies(deliverer).await?;

    let back = s.event("29", 0).await?;
    s.w.api.wait_status(&back, "delivering").await?;
    s.w.api.patch(&paused, &json!({"paused": true})).await?.expect(200);
    let deliverer = s.run_until("deliverer", "record.committed")?;
    dies(deliverer).await?;
    s.w.api.patch(&paused, &json!({"paused": false})).await?.expect(200);
    let _deliverer = s.run("deliverer").await?;

    s.verdict().await?.assert_good();
    let (_manager, letters) = s.letters().await?;
    let letters = letters.get("/dlq").await?.expect(200);
    let letters = letters.body["items"].as_array().unwrap();
    assert_eq!(letters.len(), 1, "the letter is in the record; nobody had to hear of it: {letters:?}");
    Ok(())
}

/// Row 16. The outcome of a record is unknown, and the batch is written again: the attempt counts once. The endpoint
/// takes the event at the third of three attempts.
pub async fn an_unknown_record(broken: Option<&'static str>) -> anyhow::Result<Verdict> {
    let mut s = Stage::start(broken).await?;
    s.hook("16", [500, 500, 200].map(Reply::status)).await?;
    let _dispatcher = s.run("dispatcher").await?;
    let _deliverer = s.run_until("deliverer", "record.committed:fail")?;
    let event = s.event("16", 0).await?;
    let verdict = s.verdict().await?;
    if broken.is_none() {
        let view = s.w.api.get(&format!("/events/{event}")).await?;
        assert_eq!(view.body["attempt_count"], 3, "{}", view.body);
    }
    Ok(verdict)
}

#[tokio::test]
async fn a_record_of_unknown_outcome_counts_once() -> anyhow::Result<()> {
    an_unknown_record(None).await?.assert_good();
    Ok(())
}

/// Row 20. A deliverer is stopped with one request in flight and more jobs behind it, for longer than `ack_wait`: another
/// one gets the jobs, and is sending them when the first goes on.
pub async fn a_stopped_deliverer(broken: Option<&'static str>) -> anyhow::Result<Verdict> {
    let mut s = Stage::start(broken).await?;
    // Far from its time-out, on a slow machine too.
    let patient = json!({"timeout_seconds": 30});
    s.hook_at("20", "20", [Reply::status(200).after(Duration::from_secs(12))], patient).await?;
    let _dispatcher = s.run("dispatcher").await?;
    let (first, figures) = s.run_one_at_a_time().await?;
    for _ in 0..4 {
        s.event("20", 0).await?;
    }
    holds(&figures, 4).await?;
    // It has them before it sends the first of them.
    s.w.sink.wait("/20", 1).await?;
    first.signal("STOP")?;
    s.allow_in_flight("20")?;
    let _second = s.run("deliverer").await?;
    // All of them are under way then, in whatever order each pod has them: the answers take longer than `ack_wait`. The
    // one in flight comes once where the first pod took its row, and again from the second one where it had no need to.
    let events =
        |came: &[Received]| came.iter().map(|r| r.header("webhook-id").to_owned()).collect::<HashSet<_>>().len();
    let came = s.w.sink.wait_until(|came| events(came) == 4).await;
    came.map_err(|came| anyhow::anyhow!("/20: waited for 4 events, {} came", events(&came)))?;
    first.signal("CONT")?;
    first.wait_said("this process stood still").await?;
    s.verdict().await
}

#[tokio::test]
async fn a_stopped_deliverer_goes_on() -> anyhow::Result<()> {
    a_stopped_deliverer(None).await?.assert_good();
    Ok(())
}

/// Row 21f. A deliverer hears nothing of NATS for longer than `ack_wait` while jobs wait in it: copies go to another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_deliverer_is_cut_off_from_nats() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    s.hook("21f", [Reply::status(200).after(Duration::from_secs(2))]).await?;
    let _dispatcher = s.run("dispatcher").await?;
    let direct = s.w.link("NATS_URL")?;
    let proxy = s.w.proxy("NATS_URL").await?;
    let (first, figures) = s.run_one_at_a_time().await?;
    for _ in 0..6 {
        s.event("21f", 0).await?;
    }
    holds(&figures, 6).await?;
    s.w.sink.wait("/21f", 1).await?;
    proxy.black_hole();
    s.allow_in_flight("21f")?;
    let _second = s.run_with("deliverer", &[("NATS_URL", &direct)]).await?;
    first.wait_said("pull failed").await?;
    s.w.sink.wait("/21f", 6).await?;
    proxy.restore();
    s.verdict().await?.assert_good();
    Ok(())
}

/// Row 21, where it is quick: a pod's own copy of a job that it works on is not sent beside it. (`leases` has the rest.)
#[tokio::test]
async fn a_deliverer_that_stalls_in_one_job_goes_on_with_others() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    s.hook("21", []).await?;
    let _dispatcher = s.run("dispatcher").await?;
    let deliverer = s.run_until("deliverer", "deliver.answered:stall=12")?;
    let held = s.event("21", 0).await?;
    deliverer.wait_said(STOPPED).await?;
    let other = s.event("21", 0).await?;
    s.w.api.wait_status(&other, "delivered").await?;
    assert_eq!(s.w.api.get(&format!("/events/{held}")).await?.text("status"), "delivering");
    s.verdict().await?.assert_good();
    ends(deliverer).await
}
