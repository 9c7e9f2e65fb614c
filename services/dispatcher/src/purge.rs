//! Removes acknowledged history from the streams, by sequence. What isn't acknowledged is never removed. The
//! history that is kept refills a Postgres that was restored from an older dump.

use std::time::Duration;

use relay_bus::Bus;
use relay_store::Leader;
use tokio_util::sync::CancellationToken;

/// How often. Purging each 2 s lifted publish latencies; each 10 to 30 s it is not seen.
const PERIOD: Duration = Duration::from_secs(15);
/// How much acknowledged history of EVENTS is kept at most.
const KEEP: Duration = Duration::from_secs(3600);
/// And which share of the stream's size, in percent.
const KEEP_PERCENT: u8 = 25;

/// Purges while this process leads.
pub async fn run(bus: Bus, mut leader: Leader, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        if leader.leads_since().await.is_none() {
            continue;
        }
        if let Err(error) = bus.purge_history(KEEP, KEEP_PERCENT).await {
            tracing::warn!(%error, "acknowledged history was not purged; trying again");
        }
    }
    leader.resign().await;
}
