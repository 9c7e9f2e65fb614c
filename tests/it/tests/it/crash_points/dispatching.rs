//! Rows 7, 10, 13, 23, 35 and 36: dispatchers and schedulers. EVENTS gives a dead dispatcher's messages to another one
//! after 10 s.

use std::time::Duration;

use it::Reply;
use serde_json::json;

use super::{STOPPED, Stage, dies, ends};

/// Rows 13, 7 and 10. The directory changes between matching and statement: it is matched again, and a new endpoint gets
/// the event too. A dispatcher dies before its statement, another one between its jobs and the acknowledgement.
#[tokio::test]
async fn a_dispatcher_dies_around_its_statement() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    for row in ["7", "10", "13"] {
        s.hook(row, []).await?;
    }
    let _deliverer = s.run("deliverer").await?;

    let dispatcher = s.run_until("dispatcher", "dispatch.matched:stall=4")?;
    let event = s.event("13", 0).await?;
    dispatcher.wait_said(STOPPED).await?;
    s.hook_at("13", "13-new", [], json!({})).await?;
    s.w.sink.wait("/13-new", 1).await?;
    assert_eq!(s.taken("13-new", &event), 1, "the endpoint was there before the event was stored");
    ends(dispatcher).await?;

    let dispatcher = s.run_until("dispatcher", "dispatch.matched")?;
    s.event("7", 0).await?;
    dies(dispatcher).await?;
    let dispatcher = s.run_until("dispatcher", "dispatch.published")?;
    s.event("10", 0).await?;
    dies(dispatcher).await?;
    let _dispatcher = s.run("dispatcher").await?;
    s.verdict().await?.assert_good();
    Ok(())
}

/// Row 23. A leader stands still between its claim and its publish until another one leads: both have claimed.
#[tokio::test]
async fn two_schedulers_lead_at_once() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    s.hook("23", [Reply::status(500), Reply::status(200)]).await?;
    let _deliverer = s.run("deliverer").await?;
    let first = s.run_until("dispatcher", "schedule.claimed:stall=14")?;
    s.event("23", 0).await?;
    first.wait_said(STOPPED).await?;
    let second = s.run("dispatcher").await?;
    second.wait_said("the lead changed").await?;
    // This one is claimed by the second while the first still believes that it leads.
    s.w.sink.script("/23", [Reply::status(500), Reply::status(200)]);
    s.event("23", 0).await?;
    s.verdict().await?.assert_good();
    Ok(())
}

/// Rows 35 and 36. A dispatcher that leads, and whose connections to PostgreSQL carry nothing any more: another one leads
/// after 10 s, and what its statement was about is stored once.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_is_cut_off_from_the_ledger() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    s.hook("35", []).await?;
    let later = json!({"retry_schedule_seconds": [3]});
    s.hook_at("36", "36", [Reply::status(500), Reply::status(200)], later).await?;
    let _deliverer = s.run("deliverer").await?;
    let direct = s.w.link("DATABASE_URL")?;
    let proxy = s.w.proxy("DATABASE_URL").await?;
    let first = s.run("dispatcher").await?;
    first.wait_said("the lead changed").await?;
    let waits = s.event("36", 0).await?;
    s.w.api.wait_for(&format!("/events/{waits}"), |a| a.body["attempt_count"] == 1).await?;
    proxy.black_hole();
    s.event("35", 0).await?;
    let second = s.run_with("dispatcher", &[("DATABASE_URL", &direct)]).await?;
    second.wait_said("the lead changed").await?;
    s.w.api.wait_status(&waits, "delivered").await?;
    first.wait_said("a batch of events was not stored").await?;
    proxy.reset();
    proxy.restore();
    s.verdict().await?.assert_good();
    tokio::time::timeout(Duration::from_secs(60), s.w.sink.wait("/35", 1)).await??;
    Ok(())
}
