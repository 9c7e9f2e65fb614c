//! What one of all managers does for the ledger, as long as it leads: closes what waits for deactivated endpoints, ends
//! pauses that leave their backlog out, folds statistics, carries jobs on letters out, makes the partitions of the days
//! ahead, drops what is past its time.
//!
//! Invariant: every duty is safe to repeat and safe with two leaders, so losing the lead half-way hurts nobody.

mod close;
mod fold;
mod jobs;
mod lead;
mod resume;
mod retention;

use relay_store::StoreError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::config::Retention;

/// Does all duties until `stop` fires.
pub async fn run(api: Api, retention: Retention, holder: String, stop: CancellationToken) {
    let links = api.links.clone();
    let (leads, leading) = watch::channel(false);
    let tasks = TaskTracker::new();
    let hints = links.bus.subscribe_hints(relay_core::subject::HINT_DIRECTORY);
    tasks.spawn(close::run(links.store.clone(), hints, leading.clone(), stop.clone()));
    let hints = links.bus.subscribe_hints(relay_core::subject::HINT_DIRECTORY);
    tasks.spawn(resume::run(links.clone(), hints, leading.clone(), stop.clone()));
    tasks.spawn(fold::run(links.store.clone(), leading.clone(), stop.clone()));
    tasks.spawn(jobs::run(api, leading.clone(), stop.clone()));
    tasks.spawn(retention::run(links.store.clone(), retention, leading, stop.clone()));
    tasks.spawn(lead::run(links.store, holder, leads, stop));
    tasks.close();
    tasks.wait().await;
}

/// Waits until this process leads; false: `stop` fired first.
async fn led(leading: &mut watch::Receiver<bool>, stop: &CancellationToken) -> bool {
    let lead = leading.wait_for(|leads| *leads);
    // An error means that the leader's task is over, which happens on `stop` only.
    stop.run_until_cancelled(lead).await.is_some_and(|led| led.is_ok())
}

/// Writes a failed duty down: it is tried again at its next time.
fn failed(duty: &'static str, error: &StoreError) {
    tracing::warn!(duty, %error, "a duty could not be done and is tried again");
}
