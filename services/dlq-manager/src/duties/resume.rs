//! Duty: pauses that are to end without their backlog. The request that ends one discards what it can while it waits;
//! what is left, or what a crash left behind, is finished here.

use std::time::Duration;

use bytes::Bytes;
use relay_bus::Hints;
use relay_core::subject::{HINT_DIRECTORY, HINT_DUE};
use relay_links::Links;
use relay_store::{ResumeStep, Resuming, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::duties::{failed, led};

/// Between two looks while there is something.
const EAGER: Duration = Duration::from_secs(1);
/// Between two looks otherwise.
const CALM: Duration = Duration::from_secs(10);
/// Rows of one statement.
const ROWS: i64 = 1000;

/// Does the duty until `stop` fires.
pub async fn run(links: Links, mut hints: Hints, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
    while led(&mut leading, &stop).await {
        let left = match links.store.resuming().await {
            Ok(resuming) => finish(&links, &resuming, &stop).await,
            Err(error) => {
                failed("resume", &error);
                true
            }
        };
        tokio::select! {
            () = tokio::time::sleep(if left { EAGER } else { CALM }) => {}
            _ = hints.recv() => tokio::time::sleep(EAGER / 10).await,
            () = stop.cancelled() => return,
        }
    }
}

/// Works on each of them; true: something is left.
async fn finish(links: &Links, resuming: &[Resuming], stop: &CancellationToken) -> bool {
    let mut left = false;
    for one in resuming {
        match end(links, one, stop).await {
            Ok(ended) => left |= !ended,
            Err(error) => {
                failed("resume", &error);
                left = true;
            }
        }
    }
    left
}

async fn end(links: &Links, resuming: &Resuming, stop: &CancellationToken) -> Result<bool, StoreError> {
    while !stop.is_cancelled() {
        match links.store.step_resume(resuming, ROWS).await? {
            ResumeStep::Discarded(_) => {}
            ResumeStep::Waits => return Ok(false),
            ResumeStep::Done => {
                tracing::info!(endpoint = %resuming.endpoint, "a pause ended without what had waited");
                links.bus.hint(HINT_DIRECTORY, Bytes::copy_from_slice(resuming.tenant.as_str().as_bytes())).await;
                links.bus.hint(HINT_DUE, Bytes::from(resuming.endpoint.to_string())).await;
                return Ok(true);
            }
        }
    }
    Ok(false)
}
