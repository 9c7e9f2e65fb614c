//! The directory at one moment: tenants, their versions, their endpoints, an index from event types to the
//! endpoints that want them, and the API keys. Made by [`crate::directory`]; read by ingest, dispatcher and deliverer. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use relay_core::endpoint::Endpoint;
use relay_core::ids::{EndpointId, TenantId};
use relay_core::keys::{ApiKey, KeyHash};
use relay_core::matching::is_exact;
use relay_core::sealing::{SealingKeyId, Withheld};

/// One tenant's endpoints.
#[derive(Debug, Default)]
struct TenantDirectory {
    version: i64,
    /// Came from a state file: without secrets, to be loaded whole.
    is_partial: bool,
    /// By creation.
    endpoints: Vec<Arc<Endpoint>>,
    /// Active endpoints whose patterns are all exact, by pattern: places in `endpoints`.
    exact: HashMap<String, Vec<usize>>,
    /// Active endpoints with a wildcard, or without patterns (they want everything).
    others: Vec<usize>,
}

impl TenantDirectory {
    fn new(version: i64, is_partial: bool, mut endpoints: Vec<Arc<Endpoint>>) -> Self {
        endpoints.sort_by_key(|e| (e.created_at, e.id));
        let (mut exact, mut others): (HashMap<String, Vec<usize>>, Vec<usize>) = (HashMap::new(), Vec::new());
        for (place, endpoint) in endpoints.iter().enumerate().filter(|(_, e)| e.is_active) {
            let patterns = endpoint.filter.patterns();
            if patterns.is_empty() || !patterns.iter().all(|p| is_exact(p)) {
                others.push(place);
                continue;
            }
            for pattern in patterns {
                let places = exact.entry(pattern.clone()).or_default();
                // A pattern given twice is still one delivery.
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
        }
        Self { version, is_partial, endpoints, exact, others }
    }
}

/// The directory at one moment.
#[derive(Debug, Default)]
pub struct DirectorySnapshot {
    tenants: HashMap<TenantId, Arc<TenantDirectory>>,
    endpoints: HashMap<EndpointId, Arc<Endpoint>>,
    keys: HashMap<KeyHash, Arc<ApiKey>>,
}

/// What was read of one tenant.
pub(crate) struct Loaded {
    pub(crate) version: i64,
    /// `endpoints` are all of the tenant's, not only those that changed.
    pub(crate) is_whole: bool,
    pub(crate) is_partial: bool,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// Likewise.
    pub(crate) keys: Vec<ApiKey>,
}

impl DirectorySnapshot {
    /// The version that the matching is fenced by. `None`: no such tenant.
    pub fn version(&self, tenant: &TenantId) -> Option<i64> {
        self.tenants.get(tenant).map(|t| t.version)
    }

    /// An endpoint, active or not, of whatever tenant.
    pub fn endpoint(&self, id: EndpointId) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(&id)
    }

    /// A tenant's endpoints, active and inactive, oldest first.
    pub fn endpoints_of(&self, tenant: &TenantId) -> &[Arc<Endpoint>] {
        self.tenants.get(tenant).map_or(&[], |t| &t.endpoints)
    }

    /// The active endpoints of a tenant that want this event type, each once.
    pub fn matching<'a>(
        &'a self,
        tenant: &TenantId,
        event_type: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Endpoint>> + use<'a> {
        self.tenants.get(tenant).into_iter().flat_map(move |t| {
            let exact = t.exact.get(event_type).into_iter().flatten().map(|place| &t.endpoints[*place]);
            let others =
                t.others.iter().map(|place| &t.endpoints[*place]).filter(move |e| e.filter.matches(event_type));
            exact.chain(others)
        })
    }

    /// All tenants with their versions.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantId, i64)> {
        self.tenants.iter().map(|(id, t)| (id, t.version))
    }

    /// Keys of secrets that this process doesn't have, with the number of active endpoints that wait for them.
    pub fn missing_keys(&self) -> BTreeMap<SealingKeyId, usize> {
        missing_keys(self.endpoints.values().map(Arc::as_ref))
    }

    /// An API key, good or not.
    pub fn key(&self, hash: &KeyHash) -> Option<&Arc<ApiKey>> {
        self.keys.get(hash)
    }

    /// All API keys.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<ApiKey>> {
        self.keys.values()
    }

    /// The snapshot with one key more. An older state of it changes nothing.
    pub(crate) fn with_key(&self, key: ApiKey) -> Self {
        let Self { tenants, endpoints, keys } = self;
        let (tenants, endpoints, mut keys) = (tenants.clone(), endpoints.clone(), keys.clone());
        put_key(&mut keys, key);
        Self { tenants, endpoints, keys }
    }

    /// Above which version a tenant's endpoints have to be loaded; -1: all of them.
    pub(crate) fn known(&self, tenant: &TenantId) -> i64 {
        self.tenants.get(tenant).filter(|t| !t.is_partial).map_or(-1, |t| t.version)
    }

    /// The snapshot with what was read put in its place. Nothing goes back to an older version, unless it was
    /// read whole (a database that was restored to an older state).
    pub(crate) fn with(&self, loaded: Vec<(TenantId, Loaded)>) -> Self {
        let (mut tenants, mut endpoints) = (self.tenants.clone(), self.endpoints.clone());
        let mut keys = self.keys.clone();
        for (tenant, loaded) in loaded {
            let current = tenants.get(&tenant);
            if !loaded.is_whole && current.is_some_and(|c| c.version >= loaded.version) {
                continue;
            }
            let mut of_tenant: HashMap<EndpointId, Arc<Endpoint>> = match current {
                Some(current) if !loaded.is_whole => current.endpoints.iter().map(|e| (e.id, Arc::clone(e))).collect(),
                Some(current) => {
                    current.endpoints.iter().for_each(|e| {
                        endpoints.remove(&e.id);
                    });
                    HashMap::new()
                }
                None => HashMap::new(),
            };
            if loaded.is_whole {
                keys.retain(|_, key| key.tenant != tenant);
            }
            for key in loaded.keys {
                put_key(&mut keys, key);
            }
            for endpoint in loaded.endpoints {
                endpoints.insert(endpoint.id, Arc::clone(&endpoint));
                of_tenant.insert(endpoint.id, endpoint);
            }
            let directory = TenantDirectory::new(loaded.version, loaded.is_partial, of_tenant.into_values().collect());
            tenants.insert(tenant, Arc::new(directory));
        }
        Self { tenants, endpoints, keys }
    }
}

fn put_key(keys: &mut HashMap<KeyHash, Arc<ApiKey>>, key: ApiKey) {
    if keys.get(&key.hash).is_none_or(|known| known.version <= key.version) {
        keys.insert(key.hash, Arc::new(key));
    }
}

/// Keys that this process doesn't have, with the number of active endpoints whose secrets need them.
pub(crate) fn missing_keys<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> BTreeMap<SealingKeyId, usize> {
    let mut missing = BTreeMap::new();
    for endpoint in endpoints.into_iter().filter(|e| e.is_active) {
        if let Err(Withheld::MissingKey(key)) = endpoint.secrets {
            *missing.entry(key).or_default() += 1;
        }
    }
    missing
}
