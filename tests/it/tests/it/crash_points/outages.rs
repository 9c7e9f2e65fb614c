//! Row 19: PostgreSQL is away while results wait to be recorded.

use std::time::Duration;

use it::Reply;
use it::process::Process;

use super::Stage;

/// Longer than a lease.
const AWAY: Duration = Duration::from_secs(38);

/// Results that wait through an outage longer than their leases are written before anybody claims them again: nothing
/// comes twice. A pod that dies with its results costs what it had in flight.
#[tokio::test(flavor = "multi_thread")]
async fn results_wait_for_the_ledger() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    let slow = || [Reply::status(200).after(Duration::from_secs(1))];
    s.hook("19", slow()).await?;
    s.hook("19b", slow()).await?;
    let proxy = s.w.proxy("DATABASE_URL").await?;
    let _dispatcher = s.run("dispatcher").await?;
    let mut deliverer = s.run("deliverer").await?;
    for _ in 0..4 {
        s.event("19", 0).await?;
    }
    s.w.sink.wait("/19", 4).await?;
    proxy.cut();
    tokio::time::sleep(AWAY).await;
    proxy.restore();
    for owed in &s.owed {
        s.w.api.wait_status(&owed.event, "delivered").await?;
    }

    for _ in 0..4 {
        s.event("19b", 1).await?;
    }
    s.w.sink.wait("/19b", 4).await?;
    proxy.cut();
    let failures = |d: &Process| d.output().matches("recording failed").count();
    let before = failures(&deliverer);
    while failures(&deliverer) == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    deliverer.kill()?;
    proxy.restore();
    let _deliverer = s.run("deliverer").await?;
    s.verdict().await?.assert_good();
    Ok(())
}
