//! Rows 8, 9, 14a, 15, 21, 21a, 22 and 24: what only its lease brings back, 35 s after its claim. All on one system, so
//! that they wait together.

use it::Reply;

use super::{STOPPED, Stage, dies, ends};

/// Longer than a lease.
const STALL: u64 = 42;

#[tokio::test]
async fn leases_bring_back_what_a_crash_left_behind() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    for row in ["8", "9", "14a", "15", "21", "21a", "24"] {
        s.hook(row, []).await?;
    }
    s.hook("22", [Reply::status(500), Reply::status(200)]).await?;
    let dispatcher = s.run("dispatcher").await?;

    // 24: JOBS loses all that is in it.
    let lost = s.event("24", 0).await?;
    s.w.api.wait_status(&lost, "delivering").await?;
    crate::servers::purge(&s.w, "JOBS", None).await?;
    // 14a: dead between check and request. 15: between answer and record. A job that a young pod has checked has a new
    // claim, so the redelivered message is dropped.
    let deliverer = s.run_until("deliverer", "deliver.checked")?;
    s.event("14a", 0).await?;
    dies(deliverer).await?;
    let deliverer = s.run_until("deliverer", "deliver.answered")?;
    let unrecorded = s.event("15", 1).await?;
    dies(deliverer).await?;
    // 21: the result of a request is held up until the lease has lapsed; another pod sends it again.
    let slow = s.run_until("deliverer", &format!("deliver.answered:stall={STALL}"))?;
    let late = s.event("21", 1).await?;
    slow.wait_said(STOPPED).await?;
    let _deliverer = s.run("deliverer").await?;

    // 22: the scheduler dies between claim and publish.
    ends(dispatcher).await?;
    let dispatcher = s.run_until("dispatcher", "schedule.claimed")?;
    s.event("22", 0).await?;
    dies(dispatcher).await?;
    // 9: the dispatcher dies between its commit and its jobs.
    let dispatcher = s.run_until("dispatcher", "dispatch.committed")?;
    s.event("9", 0).await?;
    dies(dispatcher).await?;
    // 8: it doesn't hear of the commit. 21a: it stands still there until the lease has lapsed, and publishes then.
    let points = format!("dispatch.committed:fail,dispatch.committed@2:stall={STALL}");
    let dispatcher = s.run_until("dispatcher", &points)?;
    s.event("8", 0).await?;
    dispatcher.wait_said(STOPPED).await?;
    let stale = s.event("21a", 0).await?;
    dispatcher.wait_said("Stall").await?;

    s.w.api.wait_status(&stale, "delivered").await?;
    s.verdict().await?.assert_good();
    assert_eq!(s.taken("15", &unrecorded), 2, "nobody could know that the endpoint had it");
    let attempts = s.w.api.get(&format!("/events/{late}")).await?.body["attempts"].as_array().map_or(0, Vec::len);
    assert_eq!(attempts, s.taken("21", &late), "each request is on record");
    Ok(())
}
