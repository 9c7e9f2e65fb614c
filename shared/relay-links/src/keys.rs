//! API keys for the guard of the interface: checked in the directory's memory, read through to Postgres when unknown.
//! Where a key was used is noted in memory and written now and then, in one statement.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::ids::{KeyId, TenantId};
use relay_core::keys::{ApiKey, KeyHash};
use relay_runtime::auth::{Asked, Away, KeyRing};
use relay_store::{Directory, Store, StoreError};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// How long a request waits for Postgres to say something of a key.
const READ_THROUGH: Duration = Duration::from_secs(1);
/// Look-ups at once: unknown keys must not take the connections of those who have known ones.
const LOOK_UPS_MAX: usize = 2;
/// How often last uses are written.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// The keys of a process. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    directory: Directory,
    store: Store,
    /// Last uses that are not written yet; as many entries as there are keys, at most.
    used: Arc<Mutex<HashMap<KeyId, DateTime<Utc>>>>,
    room: Arc<Semaphore>,
}

impl Keys {
    /// The keys in `directory`.
    pub fn new(directory: Directory, store: Store) -> Self {
        Self { directory, store, used: Arc::default(), room: Arc::new(Semaphore::new(LOOK_UPS_MAX)) }
    }

    async fn find(&self, hash: KeyHash) -> Result<Option<Arc<ApiKey>>, Away> {
        let asked = async {
            let _room = self.room.acquire().await;
            self.directory.look_up_key(&hash).await
        };
        answered(timeout(READ_THROUGH, asked).await)
    }

    async fn find_tenant(&self, tenant: &TenantId) -> Result<bool, Away> {
        let is_known = || self.directory.snapshot().version(tenant).is_some();
        if is_known() {
            return Ok(true);
        }
        answered(timeout(READ_THROUGH, self.directory.refresh(tenant)).await)?;
        Ok(is_known())
    }

    /// Writes last uses until `stop` fires, and once more then.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(WRITE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut running = true;
        while running {
            running = stop.run_until_cancelled(ticks.tick()).await.is_some();
            let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
            let rows: Vec<_> = used.into_iter().collect();
            if !rows.is_empty()
                && let Err(error) = self.store.keys_used(&rows).await
            {
                tracing::debug!(%error, "last uses of keys can't be written; they are with the next ones");
                let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
                for (id, at) in rows {
                    used.entry(id).or_insert(at);
                }
            }
        }
    }
}

fn answered<T>(answer: Result<Result<T, StoreError>, tokio::time::error::Elapsed>) -> Result<T, Away> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a key or tenant can't be looked up");
            Err(Away)
        }
        Err(_) => Err(Away),
    }
}

impl KeyRing for Keys {
    fn known(&self, hash: &KeyHash) -> Option<Arc<ApiKey>> {
        self.directory.snapshot().key(hash).cloned()
    }

    fn look_up(&self, hash: KeyHash) -> Asked<'_, Option<Arc<ApiKey>>> {
        Box::pin(self.find(hash))
    }

    fn any(&self) -> Option<bool> {
        let snapshot = self.directory.snapshot();
        let is_read = snapshot.tenants().next().is_some();
        is_read.then(|| snapshot.keys().next().is_some())
    }

    fn has_tenant<'a>(&'a self, tenant: &'a TenantId) -> Asked<'a, bool> {
        Box::pin(self.find_tenant(tenant))
    }

    fn used(&self, id: KeyId, at: DateTime<Utc>) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(id, at);
    }
}
