//! Duty: the statistics' deltas are folded into minutes and totals, before they grow long.

use std::time::Duration;

use relay_runtime::metrics::counter;
use relay_store::Store;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::duties::{failed, led};

/// Between two folds, at least and at most: each writes a minute, an hour and a total of every endpoint that something
/// happened to, and until the next one whoever reads has more to add up.
const EVERY: Duration = Duration::from_secs(5);
const EVERY_MAX: Duration = Duration::from_secs(30);
/// A fold is followed by a pause of so many times its length: with many endpoints it takes long.
const PAUSES: u32 = 20;

/// Does the duty until `stop` fires.
pub async fn run(store: Store, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
    let folded = counter("relay_stats_folded_total");
    while led(&mut leading, &stop).await {
        let began = Instant::now();
        let more = match store.fold().await {
            Ok(fold) => {
                folded.increment(fold.deltas);
                fold.more
            }
            Err(error) => {
                failed("fold", &error);
                false
            }
        };
        if !more {
            tokio::select! {
                () = tokio::time::sleep((began.elapsed() * PAUSES).clamp(EVERY, EVERY_MAX)) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}
