//! Duty: partitions are made for the days ahead and dropped behind, old letters and figures are deleted. At the
//! begin of a lead and every hour.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use relay_store::{Store, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Retention;
use crate::duties::{failed, led};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(3600);
/// Between two rounds after one that failed.
const AGAIN: Duration = Duration::from_secs(60);

/// Does the duty until `stop` fires.
pub async fn run(store: Store, retention: Retention, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
    while led(&mut leading, &stop).await {
        let pause = match round(&store, retention, &stop).await {
            Ok(()) => EVERY,
            Err(error) => {
                failed("retention", &error);
                AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn round(store: &Store, retention: Retention, stop: &CancellationToken) -> Result<(), StoreError> {
    // First: without a partition for today, nothing is stored at all.
    store.make_ahead().await?;
    let now = store.clock().await?;
    store.drop_before(days_before(now, retention.retention_days).date_naive()).await?;
    let letters = days_before(now, retention.dead_letter_days);
    while !stop.is_cancelled() && store.forget_letters(letters).await? > 0 {}
    store.forget_jobs(letters).await?;
    let history = days_before(now, retention.retention_days.max(retention.dead_letter_days));
    while !stop.is_cancelled() && store.forget_history(history).await? > 0 {}
    Ok(())
}

fn days_before(now: DateTime<Utc>, days: u32) -> DateTime<Utc> {
    now - TimeDelta::days(i64::from(days))
}
