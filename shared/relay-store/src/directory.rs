//! The directory in memory of every pod: it hears of changes by a hint and finds them by a poll. Called by
//! ingest, dispatcher and deliverer; the dispatch statement's fence catches what it doesn't know yet.
//!
//! Invariant: a snapshot with version v of a tenant holds every change of an endpoint or an API key up to v: the
//! version is read together with the list of what has changed, and the endpoints and keys themselves after it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use relay_core::endpoint::Endpoint;
use relay_core::ids::TenantId;
use relay_core::keys::{ApiKey, KeyHash};
use relay_core::sealing::Withheld;
use sqlx::types::Json;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::connect::Store;
use crate::endpoint_row::EndpointRow;
use crate::error::StoreError;
use crate::keys::KeyRow;
pub use crate::snapshot::DirectorySnapshot;
use crate::snapshot::{Loaded, missing_keys};
use crate::state_file;

/// Time between two polls.
const POLL: Duration = Duration::from_millis(500);

/// Tenants and endpoints, kept up to date. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    snapshot: ArcSwap<DirectorySnapshot>,
    /// Held while a snapshot is replaced: changes build on each other.
    writing: Mutex<()>,
    hinted: Mutex<BTreeSet<TenantId>>,
    woken: Notify,
    polled: Mutex<Option<Instant>>,
}

impl Directory {
    /// A directory that knows nothing yet.
    pub fn empty(store: Store) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                snapshot: ArcSwap::default(),
                writing: Mutex::new(()),
                hinted: Mutex::default(),
                woken: Notify::new(),
                polled: Mutex::default(),
            }),
        }
    }

    /// A directory that has read everything.
    pub async fn load(store: Store) -> Result<Self, StoreError> {
        let directory = Self::empty(store);
        directory.refresh_all().await?;
        Ok(directory)
    }

    /// The directory now. Never waits.
    pub fn snapshot(&self) -> Arc<DirectorySnapshot> {
        self.inner.snapshot.load_full()
    }

    /// How long ago all versions were last compared; `None`: never.
    pub fn age(&self) -> Option<Duration> {
        self.inner.polled.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Wakes the poll for this tenant. Never waits.
    pub fn hint(&self, tenant: TenantId) {
        self.inner.hinted.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant);
        self.inner.woken.notify_one();
    }

    /// Reads one tenant's changes.
    pub async fn refresh(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.read(std::slice::from_ref(tenant)).await
    }

    /// Compares all versions and reads what has changed.
    pub async fn refresh_all(&self) -> Result<(), StoreError> {
        let at = Instant::now();
        let rows =
            self.inner.store.queries.all(sqlx::query!("select t.id, t.directory_version from tenants t")).await?;
        let snapshot = self.snapshot();
        let mut changed = Vec::new();
        for row in rows {
            let tenant = TenantId::trusted(&row.id);
            if snapshot.known(&tenant) != row.directory_version {
                changed.push((tenant, row.directory_version));
            }
        }
        // A version that is lower than ours: the database was restored to an older state. Forget what we know.
        let (back, on): (Vec<_>, Vec<_>) = changed.into_iter().partition(|(t, version)| snapshot.known(t) > *version);
        if !back.is_empty() {
            warn!(tenants = back.len(), "the directory went back to an older version: reading it again");
            let pairs: Vec<_> = back.into_iter().map(|(t, _)| (t, -1)).collect();
            self.read_above(&pairs).await?;
        }
        if !on.is_empty() {
            self.read(&on.into_iter().map(|(t, _)| t).collect::<Vec<_>>()).await?;
        }
        *self.inner.polled.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        Ok(())
    }

    async fn read(&self, tenants: &[TenantId]) -> Result<(), StoreError> {
        let snapshot = self.snapshot();
        let pairs: Vec<_> = tenants.iter().map(|t| (t.clone(), snapshot.known(t))).collect();
        self.read_above(&pairs).await
    }

    async fn read_above(&self, tenants: &[(TenantId, i64)]) -> Result<(), StoreError> {
        let names: Vec<&str> = tenants.iter().map(|(t, _)| t.as_str()).collect();
        let known: Vec<i64> = tenants.iter().map(|(_, v)| *v).collect();
        let versions = sqlx::query!(
            r#"select t.id, t.directory_version, x.known as "known!",
                array(select e.id from endpoints e where e.tenant = t.id and e.version > x.known) as "changed!",
                array(select k.id from api_keys k where k.tenant = t.id and k.version > x.known) as "keys!"
            from unnest($1::text[], $2::bigint[]) as x (id, known) join tenants t on t.id = x.id"#,
            &names as _,
            &known
        );
        let versions = self.inner.store.queries.all(versions).await?;
        let changed: Vec<uuid::Uuid> = versions.iter().flat_map(|v| v.changed.iter().copied()).collect();
        let mut endpoints: HashMap<TenantId, Vec<Arc<Endpoint>>> = HashMap::new();
        if !changed.is_empty() {
            // Read a moment later than the version: an endpoint may be newer than it, never older.
            for endpoint in self.read_endpoints(&changed).await? {
                endpoints.entry(endpoint.tenant.clone()).or_default().push(Arc::new(endpoint));
            }
        }
        let keys: Vec<uuid::Uuid> = versions.iter().flat_map(|v| v.keys.iter().copied()).collect();
        let mut keys = self.read_keys(&keys).await?;
        let loaded = versions
            .into_iter()
            .map(|v| {
                let tenant = TenantId::trusted(&v.id);
                let endpoints = endpoints.remove(&tenant).unwrap_or_default();
                let keys = keys.remove(&tenant).unwrap_or_default();
                let version = v.directory_version;
                (tenant, Loaded { version, is_whole: v.known < 0, is_partial: false, endpoints, keys })
            })
            .collect();
        self.put(loaded);
        Ok(())
    }

    async fn read_endpoints(&self, ids: &[uuid::Uuid]) -> Result<Vec<Endpoint>, StoreError> {
        let rows = self
            .inner
            .store
            .queries
            .all(sqlx::query_as!(
                EndpointRow,
                r#"select e.id, e.tenant, e.name, e.url, e.event_types_filter, e.custom_headers as "custom_headers: Json<BTreeMap<String, String>>",
                    e.secret_headers as "secret_headers: Json<BTreeMap<String, String>>", e.max_retries, e.retry_backoff_base, e.retry_max_delay_seconds, e.retry_schedule_seconds, e.timeout_seconds,
                    e.circuit_failure_threshold, e.circuit_window_seconds, e.circuit_recovery_seconds, e.secret, e.previous_secret,
                    e.previous_secret_until, e.secret_rotated_at, e.is_active, e.paused, e.signature_schemes, e.signing_key,
                    e.previous_signing_key, e.rate_limit_per_second, e.rate_limit_burst, e.discard_before, e.created_at, e.updated_at, e.version
                from endpoints e where e.id = any($1)"#,
                ids
            ))
            .await?;
        let mut endpoints = Vec::with_capacity(rows.len());
        for row in rows {
            match self.inner.store.endpoint_of(row) {
                Ok(endpoint) => endpoints.push(endpoint),
                // One row that this binary can't read must not keep the others out.
                Err(error) => warn!(%error, "an endpoint is left out of the directory"),
            }
        }
        tell_withheld(&endpoints);
        Ok(endpoints)
    }

    async fn read_keys(&self, ids: &[uuid::Uuid]) -> Result<HashMap<TenantId, Vec<ApiKey>>, StoreError> {
        let mut keys: HashMap<TenantId, Vec<ApiKey>> = HashMap::new();
        if !ids.is_empty() {
            let rows = sqlx::query_as!(
                KeyRow,
                "select id, tenant, hash, scopes, expires_at, revoked_at, version from api_keys where id = any($1)",
                ids
            );
            for row in self.inner.store.queries.all(rows).await? {
                let key = ApiKey::try_from(row)?;
                keys.entry(key.tenant.clone()).or_default().push(key);
            }
        }
        Ok(keys)
    }

    /// Asks Postgres for a key that the snapshot doesn't have: it may be some milliseconds old. What is found is known
    /// to this pod from then on.
    pub async fn look_up_key(&self, hash: &KeyHash) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let Some(key) = self.inner.store.key(hash).await? else { return Ok(None) };
        let _writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Arc::new(self.inner.snapshot.load().with_key(key));
        self.inner.snapshot.store(Arc::clone(&next));
        Ok(next.key(hash).cloned())
    }

    fn put(&self, loaded: Vec<(TenantId, Loaded)>) {
        if loaded.is_empty() {
            return;
        }
        let _writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.inner.snapshot.load().with(loaded);
        self.inner.snapshot.store(Arc::new(next));
    }

    /// Keeps the directory up to date until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut failed = false;
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let hinted = tokio::select! {
                () = stop.cancelled() => return,
                _ = poll.tick() => false,
                () = self.inner.woken.notified() => true,
            };
            let done = if hinted {
                let tenants: Vec<TenantId> =
                    std::mem::take(&mut *self.inner.hinted.lock().unwrap_or_else(PoisonError::into_inner))
                        .into_iter()
                        .collect();
                tokio::select! {
                    () = stop.cancelled() => return,
                    done = self.read(&tenants) => done,
                }
            } else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    done = self.refresh_all() => done,
                }
            };
            match done {
                Ok(()) => failed = false,
                Err(error) if failed => debug!(%error, "the directory can't be refreshed"),
                Err(error) => {
                    warn!(%error, "the directory can't be refreshed; going on with what is known");
                    failed = true;
                }
            }
        }
    }

    /// Writes the directory without its secrets to a file, so that an ingest can start while Postgres is away.
    pub async fn save_to(&self, path: &Path) -> std::io::Result<()> {
        state_file::write(path, &self.snapshot()).await
    }

    /// Reads such a file; what is known better already stays. Endpoints that come from it have no secrets: they
    /// serve to accept events, and are replaced as soon as Postgres answers.
    pub async fn load_from(&self, path: &Path) -> std::io::Result<()> {
        let mut loaded = state_file::read(path).await?;
        let snapshot = self.snapshot();
        loaded.retain(|(tenant, _)| snapshot.version(tenant).is_none());
        self.put(loaded);
        Ok(())
    }
}

/// Says loudly which endpoints can't be sent to from here.
fn tell_withheld(endpoints: &[Endpoint]) {
    for endpoint in endpoints.iter().filter(|e| e.is_active) {
        if let Err(why @ Withheld::Damaged) = &endpoint.secrets {
            error!(endpoint = %endpoint.id, "deliveries to an endpoint wait: {why}");
        }
    }
    for (key, endpoints) in missing_keys(endpoints) {
        error!(%key, endpoints, "deliveries wait: secrets are encrypted with a key that this process does not have; add it to the key file and restart");
    }
}
