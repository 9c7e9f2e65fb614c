//! The lead among managers, told to all duties.

use relay_store::Store;
use relay_store::leader::{LETTERS, Leader};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Asks for the lead until `stop` fires, says in `leads` whether this process has it, and gives it away at the end.
pub async fn run(store: Store, holder: String, leads: watch::Sender<bool>, stop: CancellationToken) {
    let mut leader = Leader::new(store, LETTERS, &holder);
    while !stop.is_cancelled() {
        leads.send_replace(leader.leads_since().await.is_some());
        tokio::select! {
            () = tokio::time::sleep(Leader::RENEW) => {}
            () = stop.cancelled() => {}
        }
    }
    leader.resign().await;
}
