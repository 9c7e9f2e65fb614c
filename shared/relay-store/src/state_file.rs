//! The directory as a file: what an ingest needs to accept events while Postgres is away. No secrets in it: no signing
//! secrets, and of API keys only their hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::breaker::CircuitRule;
use relay_core::endpoint::{Endpoint, RetrySettings};
use relay_core::ids::{EndpointId, KeyId, TenantId};
use relay_core::keys::{ApiKey, KeyHash, Scope, Scopes};
use relay_core::matching::TypeFilter;
use relay_core::sealing::Withheld;
use relay_core::signature::Schemes;
use serde::{Deserialize, Serialize};

use crate::snapshot::{DirectorySnapshot, Loaded};

/// Changed when the file's form changes; another one is not read.
const FORM: u32 = 2;

#[derive(Serialize, Deserialize)]
struct File {
    form: u32,
    tenants: BTreeMap<String, Tenant>,
}

#[derive(Serialize, Deserialize)]
struct Tenant {
    version: i64,
    endpoints: Vec<Entry>,
    keys: Vec<KeyEntry>,
}

#[derive(Serialize, Deserialize)]
struct KeyEntry {
    id: KeyId,
    hash: [u8; 32],
    scopes: Vec<String>,
    expires_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    version: i64,
}

impl KeyEntry {
    fn of(key: &ApiKey) -> Self {
        Self {
            id: key.id,
            hash: key.hash.0,
            scopes: key.scopes.named().map(Scope::as_str).map(str::to_owned).collect(),
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            version: key.version,
        }
    }

    fn key(self, tenant: &TenantId) -> ApiKey {
        ApiKey {
            id: self.id,
            tenant: tenant.clone(),
            hash: KeyHash(self.hash),
            scopes: Scopes::known(self.scopes.iter().map(String::as_str)),
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            version: self.version,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    id: EndpointId,
    name: String,
    url: String,
    filter: TypeFilter,
    timeout_seconds: u64,
    is_active: bool,
    paused: bool,
    created_at: DateTime<Utc>,
    version: i64,
}

impl Entry {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id,
            name: endpoint.name.clone(),
            url: endpoint.url.clone(),
            filter: endpoint.filter.clone(),
            timeout_seconds: endpoint.timeout.as_secs(),
            is_active: endpoint.is_active,
            paused: endpoint.paused,
            created_at: endpoint.created_at,
            version: endpoint.version,
        }
    }

    fn endpoint(self, tenant: &TenantId) -> Endpoint {
        Endpoint {
            id: self.id,
            tenant: tenant.clone(),
            name: self.name,
            url: self.url,
            filter: self.filter,
            custom_headers: BTreeMap::new(),
            secret_headers: BTreeSet::new(),
            retry: RetrySettings::default(),
            timeout: Duration::from_secs(self.timeout_seconds),
            circuit: CircuitRule::default(),
            schemes: Schemes::default(),
            secrets: Err(Withheld::NotRead),
            is_active: self.is_active,
            paused: self.paused,
            rate_limit: None,
            discard_before: None,
            created_at: self.created_at,
            updated_at: None,
            version: self.version,
        }
    }
}

/// Writes the file beside its place and moves it there: a crash leaves the old one.
pub(crate) async fn write(path: &Path, snapshot: &DirectorySnapshot) -> io::Result<()> {
    let tenants = snapshot
        .tenants()
        .map(|(tenant, version)| {
            let endpoints = snapshot.endpoints_of(tenant).iter().map(|e| Entry::of(e)).collect();
            let keys = snapshot.keys().filter(|key| key.tenant == *tenant).map(|key| KeyEntry::of(key)).collect();
            (tenant.as_str().to_owned(), Tenant { version, endpoints, keys })
        })
        .collect();
    let text = serde_json::to_vec(&File { form: FORM, tenants })?;
    let beside = path.with_extension("new");
    tokio::fs::write(&beside, text).await?;
    tokio::fs::rename(&beside, path).await
}

/// Reads the file.
pub(crate) async fn read(path: &Path) -> io::Result<Vec<(TenantId, Loaded)>> {
    let text = tokio::fs::read(path).await?;
    let file: File = serde_json::from_slice(&text)?;
    if file.form != FORM {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the directory file has form {}", file.form)));
    }
    let loaded = file.tenants.into_iter().map(|(tenant, of_tenant)| {
        let tenant = TenantId::trusted(&tenant);
        let endpoints = of_tenant.endpoints.into_iter().map(|e| Arc::new(e.endpoint(&tenant))).collect();
        let keys = of_tenant.keys.into_iter().map(|key| key.key(&tenant)).collect();
        let loaded = Loaded { version: of_tenant.version, is_whole: true, is_partial: true, endpoints, keys };
        (tenant, loaded)
    });
    Ok(loaded.collect())
}
