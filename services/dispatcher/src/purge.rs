//! Removes acknowledged history from the streams, by sequence. What isn't acknowledged is never removed. The
//! history that is kept refills a Postgres that was restored from an older dump (`webhook-relay recover`).

use std::time::Duration;

use relay_bus::Bus;
use relay_store::Leader;
use tokio_util::sync::CancellationToken;

/// How often. Purging each 2 s lifted publish latencies; each 10 to 30 s it is not seen.
const PERIOD: Duration = Duration::from_secs(15);
/// How much acknowledged history of EVENTS is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Of what age at most.
    pub age: Duration,
    /// And which share of the stream's size, in percent.
    pub percent: u8,
}

/// Purges while this process leads.
pub async fn run(bus: Bus, keep: Keep, mut leader: Leader, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        if leader.leads_since().await.is_none() {
            continue;
        }
        if let Err(error) = bus.purge_history(keep.age, keep.percent).await {
            tracing::warn!(%error, "acknowledged history was not purged; trying again");
        }
    }
    leader.resign().await;
}
