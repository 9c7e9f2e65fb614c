//! What the interface and the command line show of API keys and tenants, as JSON and as OpenAPI schemas. A key's text is
//! in [`KeyWithSecret`] only.

use chrono::{DateTime, Utc};
use relay_core::keys::Scope;
use relay_store::{KeyView, TenantView};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// An API key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Key)]
pub struct KeyShape {
    /// Names it; says nothing of the key itself.
    pub id: Uuid,
    /// The tenant that it is for.
    pub tenant: String,
    /// What people call it.
    pub name: String,
    /// The key's first characters.
    pub hint: String,
    /// What it may be used for.
    #[schema(value_type = Vec<String>)]
    pub scopes: Vec<&'static str>,
    /// `active`, `expired` or `revoked`.
    pub status: &'static str,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// From when on it is void; null: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// Since when it is void by somebody's decision.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to some seconds.
    pub last_used_at: Option<DateTime<Utc>>,
}

impl KeyShape {
    /// What `key` looks like at `now`.
    pub fn new(key: &KeyView, now: DateTime<Utc>) -> Self {
        let status = match (key.revoked_at, key.expires_at) {
            (Some(_), _) => "revoked",
            (None, Some(at)) if at <= now => "expired",
            _ => "active",
        };
        Self {
            id: key.id.0,
            tenant: key.tenant.as_str().to_owned(),
            name: key.name.clone(),
            hint: key.hint.clone(),
            scopes: key.scopes.named().map(Scope::as_str).collect(),
            status,
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            last_used_at: key.last_used_at,
        }
    }
}

/// An API key with its text: the answer to its creation.
#[derive(Serialize, ToSchema)]
pub struct KeyWithSecret {
    #[serde(flatten)]
    shape: KeyShape,
    /// The key, shown only here. Send it as `Authorization: Bearer <key>`.
    key: String,
}

impl KeyWithSecret {
    /// What a creation at `now` answers.
    pub fn new(key: &KeyView, secret: &SecretString, now: DateTime<Utc>) -> Self {
        Self { shape: KeyShape::new(key, now), key: secret.expose_secret().to_owned() }
    }
}

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tenant)]
pub struct TenantShape {
    /// Its name, also in NATS subjects.
    pub id: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl From<&TenantView> for TenantShape {
    fn from(tenant: &TenantView) -> Self {
        Self { id: tenant.id.as_str().to_owned(), created_at: tenant.created_at }
    }
}
