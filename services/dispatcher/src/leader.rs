//! Leadership of one duty by a lease row in Postgres. Two leaders for a moment are harmless: whatever a leader
//! does is safe with two of them.

use std::time::Duration;

use relay_store::Store;
use tokio::time::Instant;

/// How long a lease runs.
const LEASE: Duration = Duration::from_secs(10);
/// How often it is renewed, or asked for.
const RENEW: Duration = Duration::from_secs(3);

/// Asks for one duty's lease and keeps it.
pub struct Leader {
    store: Store,
    name: &'static str,
    holder: String,
    leads_since: Option<Instant>,
    asked: Option<Instant>,
}

impl Leader {
    /// Nothing is asked yet.
    pub fn new(store: Store, name: &'static str, holder: &str) -> Self {
        Self { store, name, holder: holder.to_owned(), leads_since: None, asked: None }
    }

    /// Since when this process leads, or `None`. Renews when it is time to.
    pub async fn leads_since(&mut self) -> Option<Instant> {
        if self.asked.is_some_and(|at| at.elapsed() < RENEW) {
            return self.leads_since;
        }
        let asked = Instant::now();
        match self.store.lead(self.name, &self.holder, LEASE).await {
            Ok(true) => {
                if self.leads_since.is_none() {
                    tracing::info!(duty = self.name, "leads");
                    self.leads_since = Some(asked);
                }
                self.asked = Some(asked);
            }
            Ok(false) => {
                self.leads_since = None;
                self.asked = Some(asked);
            }
            Err(error) => {
                tracing::debug!(duty = self.name, %error, "the lease can't be asked for");
                if self.asked.is_none_or(|at| at.elapsed() >= LEASE) {
                    self.leads_since = None;
                }
            }
        }
        self.leads_since
    }
}
