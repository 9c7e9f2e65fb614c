//! A row of `endpoints` as an endpoint. Called wherever endpoints are read.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::breaker::CircuitRule;
use relay_core::endpoint::{Endpoint, PreviousSecrets, RetrySettings, Secrets};
use relay_core::ids::{EndpointId, TenantId};
use relay_core::matching::TypeFilter;
use relay_core::rate::RateLimit;
use relay_core::sealing::{Field, Withheld};
use relay_core::signature::{Schemes, SigningKey, SigningSecret};
use secrecy::{ExposeSecret, SecretString};
use sqlx::types::Json;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::sealer::Sealer;

/// A row of `endpoints`.
pub(crate) struct EndpointRow {
    pub(crate) id: Uuid,
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) event_types_filter: Vec<String>,
    pub(crate) custom_headers: Json<BTreeMap<String, String>>,
    pub(crate) secret_headers: Json<BTreeMap<String, String>>,
    pub(crate) max_retries: i32,
    pub(crate) retry_backoff_base: f64,
    pub(crate) retry_max_delay_seconds: i32,
    pub(crate) retry_schedule_seconds: Option<Vec<i32>>,
    pub(crate) timeout_seconds: i32,
    pub(crate) circuit_failure_threshold: i32,
    pub(crate) circuit_window_seconds: i32,
    pub(crate) circuit_recovery_seconds: i32,
    pub(crate) secret: String,
    pub(crate) previous_secret: Option<String>,
    pub(crate) previous_secret_until: Option<DateTime<Utc>>,
    pub(crate) secret_rotated_at: Option<DateTime<Utc>>,
    pub(crate) is_active: bool,
    pub(crate) paused: bool,
    pub(crate) signature_schemes: Option<Vec<String>>,
    pub(crate) signing_key: Option<String>,
    pub(crate) previous_signing_key: Option<String>,
    pub(crate) rate_limit_per_second: Option<f64>,
    pub(crate) rate_limit_burst: Option<i32>,
    pub(crate) discard_before: Option<DateTime<Utc>>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: Option<DateTime<Utc>>,
    pub(crate) version: i64,
}

fn natural(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

fn seconds(n: i32) -> Duration {
    Duration::from_secs(u64::from(natural(n)))
}

impl Store {
    /// The endpoint in a row, with its secrets where this process has the keys.
    pub(crate) fn endpoint_of(&self, row: EndpointRow) -> Result<Endpoint, StoreError> {
        row.endpoint(self.secrets.as_ref())
    }
}

impl EndpointRow {
    fn endpoint(self, sealer: Option<&Sealer>) -> Result<Endpoint, StoreError> {
        let filter = TypeFilter::try_from(self.event_types_filter.clone())
            .map_err(|e| StoreError::Inconsistent(format!("endpoint {} has a filter that is none: {e}", self.id)))?;
        let schemes = match &self.signature_schemes {
            None => Schemes::default(),
            Some(names) => Schemes::parse(names)
                .map_err(|e| StoreError::Inconsistent(format!("endpoint {} has unknown schemes: {e}", self.id)))?,
        };
        let tenant = TenantId::trusted(&self.tenant);
        let secrets = sealer.ok_or(Withheld::NotRead).and_then(|sealer| self.secrets(&tenant, sealer));
        Ok(Endpoint {
            id: EndpointId(self.id),
            tenant,
            name: self.name,
            url: self.url,
            filter,
            custom_headers: self.custom_headers.0,
            secret_headers: self.secret_headers.0.into_keys().collect(),
            retry: RetrySettings {
                max_retries: natural(self.max_retries),
                backoff_base: self.retry_backoff_base,
                max_delay_seconds: natural(self.retry_max_delay_seconds),
                schedule_seconds: self.retry_schedule_seconds.map(|s| s.into_iter().map(natural).collect()),
            },
            timeout: seconds(self.timeout_seconds),
            circuit: CircuitRule {
                threshold: natural(self.circuit_failure_threshold),
                window: seconds(self.circuit_window_seconds),
                recovery: seconds(self.circuit_recovery_seconds),
            },
            rate_limit: self
                .rate_limit_per_second
                .zip(self.rate_limit_burst)
                .map(|(per_second, burst)| RateLimit { per_second, burst: natural(burst) }),
            schemes,
            secrets,
            is_active: self.is_active,
            paused: self.paused,
            discard_before: self.discard_before,
            created_at: self.created_at,
            updated_at: self.updated_at,
            version: self.version,
        })
    }

    fn secrets(&self, tenant: &TenantId, sealer: &Sealer) -> Result<Secrets, Withheld> {
        let sealer = sealer.of(tenant, EndpointId(self.id));
        let secret = |stored: &str| sealer.open(Field::SigningSecret, stored).map(SigningSecret::trusted);
        let key = |stored: &Option<String>| {
            let opened = stored.as_deref().map(|text| sealer.open(Field::SigningKey, text)).transpose()?;
            let parsed = opened.map(|text: SecretString| SigningKey::parse(text.expose_secret().to_owned()));
            parsed.transpose().map_err(|_| Withheld::Damaged)
        };
        let previous = match self.previous_secret.as_deref().zip(self.previous_secret_until) {
            None => None,
            Some((text, until)) => {
                Some(PreviousSecrets { secret: secret(text)?, key: key(&self.previous_signing_key)?, until })
            }
        };
        let header = |(name, stored): (&String, &String)| Ok((name.clone(), sealer.open(Field::Header(name), stored)?));
        Ok(Secrets {
            current: secret(&self.secret)?,
            key: key(&self.signing_key)?,
            previous,
            rotated_at: self.secret_rotated_at,
            headers: self.secret_headers.0.iter().map(header).collect::<Result<_, Withheld>>()?,
        })
    }
}
