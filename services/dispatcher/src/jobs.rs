//! Step 7: jobs go out in bundles, one lane at a time. What can't be published in time is left to its
//! lease: the scheduler claims it again when that lapses.

use futures_util::future::join_all;
use relay_bus::Bus;
use relay_core::job::{self, Job};
use relay_core::subject::Lane;

/// Publishes jobs of one lane and waits for JetStream to have them. Returns how many are out.
pub async fn publish(bus: &Bus, lane: Lane, jobs: Vec<Job>) -> usize {
    if jobs.is_empty() {
        return 0;
    }
    let sent = join_all(job::bundles(jobs).into_iter().map(|bundle| async move {
        match bus.publish_jobs(lane, job::encode(&bundle)).await {
            Ok(()) => bundle.len(),
            Err(error) => {
                tracing::warn!(%error, %lane, jobs = bundle.len(), "jobs not published; their leases bring them back");
                0
            }
        }
    }))
    .await;
    sent.into_iter().sum()
}
