//! Endpoints, as the interface reads and changes them. Called by ingest.
//!
//! Invariant: every change that matters to matching or delivery raises its tenant's `directory_version` in the
//! same statement; the row lock on the tenant puts changes in one order.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::breaker::CircuitRule;
use relay_core::endpoint::{Endpoint, PreviousSecrets, RetrySettings, Secrets};
use relay_core::ids::{EndpointId, TenantId};
use relay_core::matching::TypeFilter;
use relay_core::page::Cursor;
use relay_core::rate::RateLimit;
use relay_core::signature::{Schemes, SigningKey, SigningSecret};
use sqlx::types::Json;
use uuid::Uuid;

use crate::connect::Store;
use crate::dispatch::micros;
use crate::error::StoreError;
use crate::window::{Listed, TOTAL_MAX, Window};

/// An endpoint to be created.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// Where to POST.
    pub url: String,
    /// Which event types it wants.
    pub filter: TypeFilter,
    /// Headers that go with each delivery.
    pub custom_headers: BTreeMap<String, String>,
    /// How failures are repeated.
    pub retry: RetrySettings,
    /// Time-out of one attempt, whole seconds.
    pub timeout: Duration,
    /// When its circuit opens and closes.
    pub circuit: CircuitRule,
    /// How often it may be called.
    pub rate_limit: Option<RateLimit>,
    /// Which signatures its deliveries carry.
    pub schemes: Schemes,
    /// The signing secret.
    pub secret: SigningSecret,
    /// The key pair, where a scheme needs it.
    pub key: Option<SigningKey>,
    /// Inactive endpoints match nothing.
    pub is_active: bool,
}

/// What is to be changed; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct EndpointChange {
    /// What people call it.
    pub name: Option<String>,
    /// Where to POST.
    pub url: Option<String>,
    /// Which event types it wants.
    pub filter: Option<TypeFilter>,
    /// Headers that go with each delivery.
    pub custom_headers: Option<BTreeMap<String, String>>,
    /// Attempts in all.
    pub max_retries: Option<u32>,
    /// Multiplier of the delays.
    pub backoff_base: Option<f64>,
    /// Cap of the delays, in seconds.
    pub max_delay_seconds: Option<u32>,
    /// Explicit delays; `Some(None)` goes back to the formula.
    pub schedule_seconds: Option<Option<Vec<u32>>>,
    /// Time-out of one attempt, whole seconds.
    pub timeout: Option<Duration>,
    /// Failures that open the circuit.
    pub circuit_threshold: Option<u32>,
    /// Their window, whole seconds.
    pub circuit_window: Option<Duration>,
    /// How long it stays open, whole seconds.
    pub circuit_recovery: Option<Duration>,
    /// How often it may be called; `Some(None)` takes the limit away.
    pub rate_limit: Option<Option<RateLimit>>,
    /// Which signatures its deliveries carry.
    pub schemes: Option<Schemes>,
    /// The key pair that it gets if it has none.
    pub key: Option<SigningKey>,
    /// Active or not.
    pub is_active: Option<bool>,
    /// Paused or not; either ends a resume that is under way.
    pub paused: Option<bool>,
}

/// A row of `endpoints`.
pub(crate) struct EndpointRow {
    pub(crate) id: Uuid,
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) event_types_filter: Vec<String>,
    pub(crate) custom_headers: Json<BTreeMap<String, String>>,
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

fn stored(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn stored_seconds(span: Duration) -> i32 {
    i32::try_from(span.as_secs()).unwrap_or(i32::MAX)
}

fn stored_schedule(delays: &[u32]) -> Vec<i32> {
    delays.iter().map(|s| stored(*s)).collect()
}

fn names(schemes: Schemes) -> Vec<String> {
    schemes.names().into_iter().map(str::to_owned).collect()
}

impl TryFrom<EndpointRow> for Endpoint {
    type Error = StoreError;

    fn try_from(row: EndpointRow) -> Result<Self, StoreError> {
        let filter = TypeFilter::try_from(row.event_types_filter)
            .map_err(|e| StoreError::Inconsistent(format!("endpoint {} has a filter that is none: {e}", row.id)))?;
        let schemes = match &row.signature_schemes {
            None => Schemes::default(),
            Some(names) => Schemes::parse(names)
                .map_err(|e| StoreError::Inconsistent(format!("endpoint {} has unknown schemes: {e}", row.id)))?,
        };
        let key = |text: Option<String>| {
            let key = text.map(SigningKey::parse).transpose();
            key.map_err(|e| StoreError::Inconsistent(format!("endpoint {} has a key that is none: {e}", row.id)))
        };
        let previous = match row.previous_secret.zip(row.previous_secret_until) {
            None => None,
            Some((secret, until)) => Some(PreviousSecrets {
                secret: SigningSecret::trusted(secret),
                key: key(row.previous_signing_key)?,
                until,
            }),
        };
        Ok(Self {
            id: EndpointId(row.id),
            tenant: TenantId::trusted(&row.tenant),
            name: row.name,
            url: row.url,
            filter,
            custom_headers: row.custom_headers.0,
            retry: RetrySettings {
                max_retries: natural(row.max_retries),
                backoff_base: row.retry_backoff_base,
                max_delay_seconds: natural(row.retry_max_delay_seconds),
                schedule_seconds: row.retry_schedule_seconds.map(|s| s.into_iter().map(natural).collect()),
            },
            timeout: seconds(row.timeout_seconds),
            circuit: CircuitRule {
                threshold: natural(row.circuit_failure_threshold),
                window: seconds(row.circuit_window_seconds),
                recovery: seconds(row.circuit_recovery_seconds),
            },
            rate_limit: row
                .rate_limit_per_second
                .zip(row.rate_limit_burst)
                .map(|(per_second, burst)| RateLimit { per_second, burst: natural(burst) }),
            schemes,
            secrets: Secrets {
                current: SigningSecret::trusted(row.secret),
                key: key(row.signing_key)?,
                previous,
                rotated_at: row.secret_rotated_at,
            },
            is_active: row.is_active,
            paused: row.paused,
            discard_before: row.discard_before,
            created_at: row.created_at,
            updated_at: row.updated_at,
            version: row.version,
        })
    }
}

impl Store {
    /// How many active endpoints a tenant has.
    pub async fn count_active_endpoints(&self, tenant: &TenantId) -> Result<i64, StoreError> {
        self.queries
            .one(sqlx::query_scalar!(
                r#"select count(*) as "n!" from endpoints e where e.tenant = $1 and e.is_active"#,
                tenant.as_str()
            ))
            .await
    }

    /// Creates an endpoint. `None`: there is no such tenant.
    pub async fn create_endpoint(&self, new: &NewEndpoint) -> Result<Option<Endpoint>, StoreError> {
        let row = self
            .queries
            .optional(sqlx::query_as!(
                EndpointRow,
                r#"with t as (update tenants set directory_version = directory_version + 1 where id = $2 returning directory_version)
                insert into endpoints (id, tenant, name, url, event_types_filter, custom_headers, max_retries, retry_backoff_base, retry_max_delay_seconds,
                    retry_schedule_seconds, timeout_seconds, circuit_failure_threshold, circuit_window_seconds, circuit_recovery_seconds, secret, is_active, signature_schemes, signing_key,
                    rate_limit_per_second, rate_limit_burst, version)
                select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, t.directory_version from t
                returning id, tenant, name, url, event_types_filter, custom_headers as "custom_headers: Json<BTreeMap<String, String>>", max_retries,
                    retry_backoff_base, retry_max_delay_seconds, retry_schedule_seconds, timeout_seconds, circuit_failure_threshold, circuit_window_seconds,
                    circuit_recovery_seconds, secret, previous_secret, previous_secret_until, secret_rotated_at, is_active, paused, signature_schemes, signing_key,
                    previous_signing_key, rate_limit_per_second, rate_limit_burst, discard_before, created_at, updated_at, version"#,
                new.id.0,
                new.tenant.as_str(),
                new.name,
                new.url,
                new.filter.patterns(),
                Json(&new.custom_headers) as _,
                stored(new.retry.max_retries),
                new.retry.backoff_base,
                stored(new.retry.max_delay_seconds),
                new.retry.schedule_seconds.as_deref().map(stored_schedule) as _,
                stored_seconds(new.timeout),
                stored(new.circuit.threshold),
                stored_seconds(new.circuit.window),
                stored_seconds(new.circuit.recovery),
                new.secret.expose(),
                new.is_active,
                names(new.schemes) as _,
                new.key.as_ref().map(SigningKey::expose),
                new.rate_limit.map(|limit| limit.per_second),
                new.rate_limit.map(|limit| stored(limit.burst))
            ))
            .await?;
        row.map(Endpoint::try_from).transpose()
    }

    /// One endpoint, active or not.
    pub async fn get_endpoint(&self, tenant: &TenantId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        let row = self
            .queries
            .optional(sqlx::query_as!(
                EndpointRow,
                r#"select id, tenant, name, url, event_types_filter, custom_headers as "custom_headers: Json<BTreeMap<String, String>>", max_retries,
                    retry_backoff_base, retry_max_delay_seconds, retry_schedule_seconds, timeout_seconds, circuit_failure_threshold, circuit_window_seconds,
                    circuit_recovery_seconds, secret, previous_secret, previous_secret_until, secret_rotated_at, is_active, paused, signature_schemes, signing_key,
                    previous_signing_key, rate_limit_per_second, rate_limit_burst, discard_before, created_at, updated_at, version
                from endpoints where id = $1 and tenant = $2"#,
                id.0,
                tenant.as_str()
            ))
            .await?;
        row.map(Endpoint::try_from).transpose()
    }

    /// A tenant's endpoints, newest first.
    pub async fn list_endpoints(
        &self,
        tenant: &TenantId,
        is_active: Option<bool>,
        window: &Window,
    ) -> Result<Listed<Endpoint>, StoreError> {
        let rows = self
            .queries
            .all(sqlx::query_as!(
                EndpointRow,
                r#"select id, tenant, name, url, event_types_filter, custom_headers as "custom_headers: Json<BTreeMap<String, String>>", max_retries,
                    retry_backoff_base, retry_max_delay_seconds, retry_schedule_seconds, timeout_seconds, circuit_failure_threshold, circuit_window_seconds,
                    circuit_recovery_seconds, secret, previous_secret, previous_secret_until, secret_rotated_at, is_active, paused, signature_schemes, signing_key,
                    previous_signing_key, rate_limit_per_second, rate_limit_burst, discard_before, created_at, updated_at, version
                from endpoints
                where tenant = $1 and ($2::boolean is null or is_active = $2) and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
                order by created_at desc, id desc
                offset $5 limit $6"#,
                tenant.as_str(),
                is_active,
                window.after_at(),
                window.after_id(),
                window.offset,
                window.limit.saturating_add(1)
            ))
            .await?;
        let count = sqlx::query_scalar!(
            r#"select count(*) as "n!" from (select 1 from endpoints where tenant = $1 and ($2::boolean is null or is_active = $2) limit $3) x"#,
            tenant.as_str(),
            is_active,
            TOTAL_MAX + 1
        );
        let total = window.total(rows.len(), self.queries.one(count)).await?;
        let items = rows.into_iter().map(Endpoint::try_from).collect::<Result<Vec<_>, _>>()?;
        Ok(Listed::cut(items, window, total, |e: &Endpoint| Cursor { at: e.created_at, id: e.id.0 }))
    }

    /// Changes an endpoint. `None`: there is no such endpoint.
    pub async fn update_endpoint(
        &self,
        tenant: &TenantId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError> {
        let schedule: Option<Option<Vec<i32>>> =
            change.schedule_seconds.as_ref().map(|s| s.as_deref().map(stored_schedule));
        let row = self
            .queries
            .optional(sqlx::query_as!(
                EndpointRow,
                r#"with t as (
                    update tenants set directory_version = directory_version + 1
                    where id = $2 and exists (select from endpoints e where e.id = $1 and e.tenant = $2)
                    returning directory_version
                )
                update endpoints e
                set name = coalesce($3, e.name), url = coalesce($4, e.url), event_types_filter = coalesce($5, e.event_types_filter),
                    custom_headers = coalesce($6, e.custom_headers), max_retries = coalesce($7, e.max_retries),
                    retry_backoff_base = coalesce($8, e.retry_backoff_base), retry_max_delay_seconds = coalesce($9, e.retry_max_delay_seconds),
                    retry_schedule_seconds = case when $10 then $11 else e.retry_schedule_seconds end, timeout_seconds = coalesce($12, e.timeout_seconds),
                    circuit_failure_threshold = coalesce($13, e.circuit_failure_threshold), circuit_window_seconds = coalesce($14, e.circuit_window_seconds),
                    circuit_recovery_seconds = coalesce($15, e.circuit_recovery_seconds), is_active = coalesce($16, e.is_active),
                    paused = coalesce($17, e.paused), discard_before = case when $17::boolean is null then e.discard_before end,
                    signature_schemes = coalesce($18, e.signature_schemes), signing_key = coalesce(e.signing_key, $19),
                    rate_limit_per_second = case when $20 then $21 else e.rate_limit_per_second end,
                    rate_limit_burst = case when $20 then $22 else e.rate_limit_burst end,
                    updated_at = now(), version = t.directory_version
                from t
                where e.id = $1 and e.tenant = $2
                returning e.id, e.tenant, e.name, e.url, e.event_types_filter, e.custom_headers as "custom_headers: Json<BTreeMap<String, String>>", e.max_retries,
                    e.retry_backoff_base, e.retry_max_delay_seconds, e.retry_schedule_seconds, e.timeout_seconds, e.circuit_failure_threshold, e.circuit_window_seconds,
                    e.circuit_recovery_seconds, e.secret, e.previous_secret, e.previous_secret_until, e.secret_rotated_at, e.is_active, e.paused, e.signature_schemes, e.signing_key,
                    e.previous_signing_key, e.rate_limit_per_second, e.rate_limit_burst, e.discard_before, e.created_at, e.updated_at, e.version"#,
                id.0,
                tenant.as_str(),
                change.name,
                change.url,
                change.filter.as_ref().map(|f| f.patterns().to_vec()) as _,
                change.custom_headers.as_ref().map(Json) as _,
                change.max_retries.map(stored),
                change.backoff_base,
                change.max_delay_seconds.map(stored),
                schedule.is_some(),
                schedule.flatten() as _,
                change.timeout.map(stored_seconds),
                change.circuit_threshold.map(stored),
                change.circuit_window.map(stored_seconds),
                change.circuit_recovery.map(stored_seconds),
                change.is_active,
                change.paused,
                change.schemes.map(names) as _,
                change.key.as_ref().map(SigningKey::expose),
                change.rate_limit.is_some(),
                change.rate_limit.flatten().map(|limit| limit.per_second),
                change.rate_limit.flatten().map(|limit| stored(limit.burst))
            ))
            .await?;
        row.map(Endpoint::try_from).transpose()
    }

    /// Deactivates an endpoint. False: there is no such endpoint.
    pub async fn deactivate_endpoint(&self, tenant: &TenantId, id: EndpointId) -> Result<bool, StoreError> {
        let change = EndpointChange { is_active: Some(false), ..EndpointChange::default() };
        Ok(self.update_endpoint(tenant, id, &change).await?.is_some())
    }

    /// Gives an endpoint a new secret and, where it has a key pair, that new pair; the ones it had sign as well for
    /// `overlap` (zero: not at all).
    pub async fn rotate_secret(
        &self,
        tenant: &TenantId,
        id: EndpointId,
        secret: &SigningSecret,
        key: &SigningKey,
        overlap: Duration,
    ) -> Result<Option<Endpoint>, StoreError> {
        let row = self
            .queries
            .optional(sqlx::query_as!(
                EndpointRow,
                r#"with t as (
                    update tenants set directory_version = directory_version + 1
                    where id = $2 and exists (select from endpoints e where e.id = $1 and e.tenant = $2)
                    returning directory_version
                )
                update endpoints e
                set secret = $3, previous_secret = case when $4::bigint > 0 then e.secret end,
                    previous_secret_until = case when $4::bigint > 0 then now() + $4::bigint * interval '1 microsecond' end,
                    signing_key = case when e.signing_key is not null then $5 end,
                    previous_signing_key = case when $4::bigint > 0 then e.signing_key end,
                    secret_rotated_at = now(), updated_at = now(), version = t.directory_version
                from t
                where e.id = $1 and e.tenant = $2
                returning e.id, e.tenant, e.name, e.url, e.event_types_filter, e.custom_headers as "custom_headers: Json<BTreeMap<String, String>>", e.max_retries,
                    e.retry_backoff_base, e.retry_max_delay_seconds, e.retry_schedule_seconds, e.timeout_seconds, e.circuit_failure_threshold, e.circuit_window_seconds,
                    e.circuit_recovery_seconds, e.secret, e.previous_secret, e.previous_secret_until, e.secret_rotated_at, e.is_active, e.paused, e.signature_schemes, e.signing_key,
                    e.previous_signing_key, e.rate_limit_per_second, e.rate_limit_burst, e.discard_before, e.created_at, e.updated_at, e.version"#,
                id.0,
                tenant.as_str(),
                secret.expose(),
                micros(overlap),
                key.expose()
            ))
            .await?;
        row.map(Endpoint::try_from).transpose()
    }

    /// Ends a rotation's overlap. False: there is no such endpoint.
    pub async fn end_overlap(&self, tenant: &TenantId, id: EndpointId) -> Result<bool, StoreError> {
        let changed = self
            .queries
            .execute(sqlx::query!(
                "with t as (
                    update tenants set directory_version = directory_version + 1
                    where id = $2 and exists (select from endpoints e where e.id = $1 and e.tenant = $2)
                    returning directory_version
                )
                update endpoints e
                set previous_secret = null, previous_secret_until = null, previous_signing_key = null, updated_at = now(), version = t.directory_version
                from t where e.id = $1 and e.tenant = $2",
                id.0,
                tenant.as_str()
            ))
            .await?;
        Ok(changed > 0)
    }
}
