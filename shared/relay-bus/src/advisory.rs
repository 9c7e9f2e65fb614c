//! New leaders of consumers: the new one may not know the last acks, and the client library hides the status from
//! which a puller could tell. One server alone sends none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::disruption::Disruption;

const LEADERS: &str = "$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.>";
/// Before a subscription that ended is made again.
const PAUSE: Duration = Duration::from_secs(1);

impl Bus {
    /// Begins to watch with the first source: a process that only publishes needs it not, nor the permission.
    pub(crate) fn watch_leaders(&self) {
        if !self.watches_leaders.swap(true, Ordering::Relaxed) {
            let (client, disruption) = (self.consuming.client.clone(), Arc::clone(&self.disruption));
            tokio::spawn(watch(client, disruption, self.stop.clone()));
        }
    }
}

/// Fires the disruption at each election, until `stop` fires.
async fn watch(client: Client, disruption: Arc<Disruption>, stop: CancellationToken) {
    let watching = async {
        loop {
            if let Ok(mut elected) = client.subscribe(LEADERS).await {
                while elected.next().await.is_some() {
                    disruption.fire();
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    stop.run_until_cancelled(watching).await;
}
