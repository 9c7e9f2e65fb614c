//! Duty: open deliveries of deactivated endpoints become dead letters. A hint about a changed directory starts a
//! minute of looking every second, since a delivery whose job is out is closed only when its lease is over;
//! otherwise a look now and then is enough.

use std::time::Duration;

use relay_bus::Hints;
use relay_runtime::metrics::counter;
use relay_store::Store;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::duties::{failed, led};

/// Between two looks while there is something.
const EAGER: Duration = Duration::from_secs(1);
/// How long after a hint, or after something was found, there may be more.
const EAGER_FOR: Duration = Duration::from_secs(60);
/// Between two looks otherwise.
const CALM: Duration = Duration::from_secs(10);
/// Rows of one statement.
const ROWS: i64 = 1000;

/// Does the duty until `stop` fires.
pub async fn run(store: Store, mut hints: Hints, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
    let closed = counter("relay_dlq_closed_inactive_total");
    let mut eager_until = Instant::now() + EAGER_FOR;
    while led(&mut leading, &stop).await {
        // A full statement means that there is more at once.
        let mut found = ROWS.unsigned_abs() as usize;
        while found >= ROWS.unsigned_abs() as usize && !stop.is_cancelled() {
            found = match store.close_for_inactive(ROWS).await {
                Ok(rows) => rows,
                Err(error) => {
                    failed("close", &error);
                    0
                }
            };
            closed.increment(found as u64);
            if found > 0 {
                eager_until = Instant::now() + EAGER_FOR;
                tracing::info!(deliveries = found, "closed for inactive endpoints");
            }
        }
        let pause = if Instant::now() < eager_until { EAGER } else { CALM };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = hints.recv() => {
                eager_until = Instant::now() + EAGER_FOR;
                // Many hints at once are one reason to look.
                tokio::time::sleep(EAGER / 10).await;
            }
            () = stop.cancelled() => return,
        }
    }
}
