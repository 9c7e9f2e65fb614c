//! The lead among managers: a lease row, renewed well before it lapses.

use std::time::Duration;

use relay_store::Store;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The lease's name.
const NAME: &str = "dlq-manager";
/// How long a lease runs.
const LEASE: Duration = Duration::from_secs(10);
/// How often it is renewed, or asked for.
const RENEW: Duration = Duration::from_secs(3);

/// Asks for the lead until `stop` fires, says in `leads` whether this process has it, and gives it away at the end.
pub async fn run(store: Store, holder: String, leads: watch::Sender<bool>, stop: CancellationToken) {
    let mut held_until: Option<Instant> = None;
    while !stop.is_cancelled() {
        let asked = Instant::now();
        match store.lead(NAME, &holder, LEASE).await {
            Ok(true) => held_until = Some(asked + LEASE),
            Ok(false) => held_until = None,
            Err(error) => tracing::debug!(%error, "the lease can't be asked for"),
        }
        let leading = held_until.is_some_and(|until| Instant::now() < until);
        if leads.send_replace(leading) != leading {
            tracing::info!(duty = NAME, leading, "the lead changed");
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            () = stop.cancelled() => {}
        }
    }
    if held_until.is_some()
        && let Err(error) = store.resign(NAME, &holder).await
    {
        tracing::debug!(%error, "the lead lapses by itself");
    }
}
