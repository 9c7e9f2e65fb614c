//! Leadership by a lease row: one of several pods does what one is enough for. Called by the dispatcher's scheduler
//! and purge and by the DLQ manager's duties. Everything a leader does is safe with two leaders: this only saves work.

use std::time::Duration;

use tokio::time::Instant;

use crate::connect::Store;
use crate::dispatch::micros;
use crate::error::StoreError;

impl Store {
    /// Takes or keeps the lead for `ttl`, counted by Postgres's clock. True: `holder` leads.
    pub async fn lead(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        let row = self
            .queries
            .optional(sqlx::query_scalar!(
                r#"insert into leases as l (name, holder, until) values ($1, $2, clock_timestamp() + $3 * interval '1 microsecond')
                on conflict (name) do update set holder = excluded.holder, until = excluded.until
                where l.holder = excluded.holder or l.until < clock_timestamp()
                returning 1 as "led!""#,
                name,
                holder,
                micros(ttl) as _
            ))
            .await?;
        Ok(row.is_some())
    }

    /// Gives the lead away at once (a shutdown): others needn't wait for the lease to lapse.
    pub async fn resign(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        self.queries
            .execute(sqlx::query!("delete from leases l where l.name = $1 and l.holder = $2", name, holder))
            .await
            .map(|_| ())
    }
}

/// The duty of claiming what is due: one dispatcher has it.
pub const SCHEDULER: &str = "scheduler";
/// The duty of purging the accept log: one dispatcher has it.
pub const PURGE: &str = "purge";
/// The duties of the DLQ managers: one of them has them.
pub const LETTERS: &str = "dlq-manager";

/// How long a lease runs.
const LEASE: Duration = Duration::from_secs(10);

/// Asks for the lead of one duty and keeps it.
pub struct Leader {
    store: Store,
    name: &'static str,
    holder: String,
    leads_since: Option<Instant>,
    asked: Option<Instant>,
}

impl Leader {
    /// How often the lease is renewed, or asked for.
    pub const RENEW: Duration = Duration::from_secs(3);

    /// Of the duty `name`, for the process `holder`. Nothing is asked yet.
    pub fn new(store: Store, name: &'static str, holder: &str) -> Self {
        Self { store, name, holder: holder.to_owned(), leads_since: None, asked: None }
    }

    /// Since when this process leads, or `None`. Renews when it is time to.
    pub async fn leads_since(&mut self) -> Option<Instant> {
        if self.asked.is_some_and(|at| at.elapsed() < Self::RENEW) {
            return self.leads_since;
        }
        let asked = Instant::now();
        let led = match self.store.lead(self.name, &self.holder, LEASE).await {
            Ok(led) => {
                self.asked = Some(asked);
                led
            }
            Err(error) => {
                tracing::debug!(duty = self.name, %error, "the lease can't be asked for");
                // What was last asked for still runs, or has lapsed.
                self.leads_since.is_some() && self.asked.is_some_and(|at| at.elapsed() < LEASE)
            }
        };
        if led != self.leads_since.is_some() {
            tracing::info!(duty = self.name, leading = led, "the lead changed");
            self.leads_since = led.then_some(asked);
        }
        self.leads_since
    }

    /// Gives the lead away, where this process has it: others needn't wait for the lease to lapse.
    pub async fn resign(self) {
        if self.leads_since.is_some()
            && let Err(error) = self.store.resign(self.name, &self.holder).await
        {
            tracing::debug!(duty = self.name, %error, "the lead lapses by itself");
        }
    }
}
