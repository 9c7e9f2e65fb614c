//! Duty: the statistics' deltas are folded into minutes and totals, before they grow long.

use std::time::Duration;

use relay_runtime::metrics::counter;
use relay_store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::duties::{failed, led};

/// Between two folds.
const EVERY: Duration = Duration::from_secs(2);
/// From this many deltas on, a fold is followed by another one at once.
const MANY: usize = 10_000;

/// Does the duty until `stop` fires.
pub async fn run(store: Store, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
    let folded = counter("relay_stats_folded_total");
    while led(&mut leading, &stop).await {
        let rows = match store.fold().await {
            Ok(rows) => rows,
            Err(error) => {
                failed("fold", &error);
                0
            }
        };
        folded.increment(rows as u64);
        if rows < MANY {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}
