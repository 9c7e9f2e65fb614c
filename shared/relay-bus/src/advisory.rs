//! New leaders of consumers: the new one may not know the last acks, and the client library hides the status from
//! which a puller could tell. One server alone sends none.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::disruption::Disruption;

const LEADERS: &str = "$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.>";
/// Before a subscription that ended is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// Fires the disruption at each election, until `stop` fires.
pub(crate) async fn watch_leaders(client: Client, disruption: Arc<Disruption>, stop: CancellationToken) {
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
