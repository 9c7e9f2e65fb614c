//! Endpoints, as the interface reads and changes them. Called by ingest.
//!
//! Invariant: every change that matters to matching or delivery raises its tenant's `directory_version` in the
//! same statement; the row lock on the tenant puts changes in one order.

use std::collections::BTreeMap;
use std::time::Duration;

use relay_core::breaker::CircuitRule;
use relay_core::endpoint::{Endpoint, RetrySettings};
use relay_core::headers::{GivenHeader, GivenHeaders};
use relay_core::ids::{EndpointId, TenantId};
use relay_core::matching::TypeFilter;
use relay_core::page::Cursor;
use relay_core::rate::RateLimit;
use relay_core::signature::{Schemes, SigningKey, SigningSecret};
use sqlx::types::Json;

use crate::connect::Store;
use crate::dispatch::micros;
use crate::endpoint_row::EndpointRow;
use crate::error::StoreError;
use crate::sealer::EndpointSealer;
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
    pub custom_headers: GivenHeaders,
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
    /// Headers that go with each delivery, all of them: one that isn't here goes. A kept one that isn't stored as secret
    /// is left out.
    pub custom_headers: Option<GivenHeaders>,
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

fn stored(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn stored_seconds(span: Duration) -> i32 {
    i32::try_from(span.as_secs()).unwrap_or(i32::MAX)
}

fn stored_schedule(delays: &[u32]) -> Vec<i32> {
    delays.iter().map(|s| stored(*s)).collect()
}

/// Given headers as they are stored.
struct StoredHeaders<'a> {
    plain: BTreeMap<&'a str, &'a str>,
    /// Sealed.
    secret: BTreeMap<&'a str, String>,
    /// Names of those whose stored value stays.
    kept: Vec<String>,
}

impl<'a> StoredHeaders<'a> {
    fn new(given: &'a GivenHeaders, sealer: &EndpointSealer<'_>) -> Self {
        let mut stored = Self { plain: BTreeMap::new(), secret: BTreeMap::new(), kept: Vec::new() };
        for (name, header) in given {
            match header {
                GivenHeader::Plain(value) => drop(stored.plain.insert(name, value)),
                GivenHeader::Secret(value) => drop(stored.secret.insert(name, sealer.header(name, value))),
                GivenHeader::Kept => stored.kept.push(name.clone()),
            }
        }
        stored
    }
}

fn names(schemes: Schemes) -> Vec<String> {
    schemes.names().into_iter().map(str::to_owned).collect()
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
        let sealer = self.sealer()?.of(&new.tenant, new.id);
        let headers = StoredHeaders::new(&new.custom_headers, &sealer);
        let row = self
            .queries
            .optional(sqlx::query_as!(
                EndpointRow,
                r#"with t as (update tenants set directory_version = directory_version + 1 where id = $2 returning directory_version)
                insert into endpoints (id, tenant, name, url, event_types_filter, custom_headers, max_retries, retry_backoff_base, retry_max_delay_seconds,
                    retry_schedule_seconds, timeout_seconds, circuit_failure_threshold, circuit_window_seconds, circuit_recovery_seconds, secret, is_active, signature_schemes, signing_key,
                    secret_headers, rate_limit_per_second, rate_limit_burst, version)
                select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, t.directory_version from t
                returning id, tenant, name, url, event_types_filter, custom_headers as "custom_headers: Json<BTreeMap<String, String>>",
                    secret_headers as "secret_headers: Json<BTreeMap<String, String>>", max_retries,
                    retry_backoff_base, retry_max_delay_seconds, retry_schedule_seconds, timeout_seconds, circuit_failure_threshold, circuit_window_seconds,
                    circuit_recovery_seconds, secret, previous_secret, previous_secret_until, secret_rotated_at, is_active, paused, signature_schemes, signing_key,
                    previous_signing_key, rate_limit_per_second, rate_limit_burst, discard_before, created_at, updated_at, version"#,
                new.id.0,
                new.tenant.as_str(),
                new.name,
                new.url,
                new.filter.patterns(),
                Json(&headers.plain) as _,
                stored(new.retry.max_retries),
                new.retry.backoff_base,
                stored(new.retry.max_delay_seconds),
                new.retry.schedule_seconds.as_deref().map(stored_schedule) as _,
                stored_seconds(new.timeout),
                stored(new.circuit.threshold),
                stored_seconds(new.circuit.window),
                stored_seconds(new.circuit.recovery),
                sealer.secret(&new.secret),
                new.is_active,
                names(new.schemes) as _,
                new.key.as_ref().map(|key| sealer.key(key)),
                Json(&headers.secret) as _,
                new.rate_limit.map(|limit| limit.per_second),
                new.rate_limit.map(|limit| stored(limit.burst))
            ))
            .await?;
        row.map(|row| self.endpoint_of(row)).transpose()
    }

    /// One endpoint, active or not.
    pub async fn get_endpoint(&self, tenant: &TenantId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        let row = self
            .queries
            .optional(sqlx::query_as!(
                EndpointRow,
                r#"select id, tenant, name, url, event_types_filter, custom_headers as "custom_headers: Json<BTreeMap<String, String>>",
                    secret_headers as "secret_headers: Json<BTreeMap<String, String>>", max_retries,
                    retry_backoff_base, retry_max_delay_seconds, retry_schedule_seconds, timeout_seconds, circuit_failure_threshold, circuit_window_seconds,
                    circuit_recovery_seconds, secret, previous_secret, previous_secret_until, secret_rotated_at, is_active, paused, signature_schemes, signing_key,
                    previous_signing_key, rate_limit_per_second, rate_limit_burst, discard_before, created_at, updated_at, version
                from endpoints where id = $1 and tenant = $2"#,
                id.0,
                tenant.as_str()
            ))
            .await?;
        row.map(|row| self.endpoint_of(row)).transpose()
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
                r#"select id, tenant, name, url, event_types_filter, custom_headers as "custom_headers: Json<BTreeMap<String, String>>",
                    secret_headers as "secret_headers: Json<BTreeMap<String, String>>", max_retries,
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
        let items = rows.into_iter().map(|row| self.endpoint_of(row)).collect::<Result<Vec<_>, _>>()?;
        Ok(Listed::cut(items, window, total, |e: &Endpoint| Cursor { at: e.created_at, id: e.id.0 }))
    }

    /// Changes an endpoint. `None`: there is no such endpoint.
    pub async fn update_endpoint(
        &self,
        tenant: &TenantId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError> {
        let sealer = self.sealer()?.of(tenant, id);
        let headers = change.custom_headers.as_ref().map(|given| StoredHeaders::new(given, &sealer));
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
                    secret_headers = case when $20::jsonb is null then e.secret_headers else $20 || coalesce((
                        select jsonb_object_agg(k.name, s.value) from unnest($21::text[]) as k (name)
                        join jsonb_each(e.secret_headers) as s on lower(s.key) = lower(k.name)
                    ), '{}') end,
                    rate_limit_per_second = case when $22 then $23 else e.rate_limit_per_second end,
                    rate_limit_burst = case when $22 then $24 else e.rate_limit_burst end,
                    updated_at = now(), version = t.directory_version
                from t
                where e.id = $1 and e.tenant = $2
                returning e.id, e.tenant, e.name, e.url, e.event_types_filter, e.custom_headers as "custom_headers: Json<BTreeMap<String, String>>",
                    e.secret_headers as "secret_headers: Json<BTreeMap<String, String>>", e.max_retries,
                    e.retry_backoff_base, e.retry_max_delay_seconds, e.retry_schedule_seconds, e.timeout_seconds, e.circuit_failure_threshold, e.circuit_window_seconds,
                    e.circuit_recovery_seconds, e.secret, e.previous_secret, e.previous_secret_until, e.secret_rotated_at, e.is_active, e.paused, e.signature_schemes, e.signing_key,
                    e.previous_signing_key, e.rate_limit_per_second, e.rate_limit_burst, e.discard_before, e.created_at, e.updated_at, e.version"#,
                id.0,
                tenant.as_str(),
                change.name,
                change.url,
                change.filter.as_ref().map(|f| f.patterns().to_vec()) as _,
                headers.as_ref().map(|h| Json(&h.plain)) as _,
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
                change.key.as_ref().map(|key| sealer.key(key)),
                headers.as_ref().map(|h| Json(&h.secret)) as _,
                headers.as_ref().map_or(&[][..], |h| &h.kept) as _,
                change.rate_limit.is_some(),
                change.rate_limit.flatten().map(|limit| limit.per_second),
                change.rate_limit.flatten().map(|limit| stored(limit.burst))
            ))
            .await?;
        row.map(|row| self.endpoint_of(row)).transpose()
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
        let sealer = self.sealer()?.of(tenant, id);
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
                returning e.id, e.tenant, e.name, e.url, e.event_types_filter, e.custom_headers as "custom_headers: Json<BTreeMap<String, String>>",
                    e.secret_headers as "secret_headers: Json<BTreeMap<String, String>>", e.max_retries,
                    e.retry_backoff_base, e.retry_max_delay_seconds, e.retry_schedule_seconds, e.timeout_seconds, e.circuit_failure_threshold, e.circuit_window_seconds,
                    e.circuit_recovery_seconds, e.secret, e.previous_secret, e.previous_secret_until, e.secret_rotated_at, e.is_active, e.paused, e.signature_schemes, e.signing_key,
                    e.previous_signing_key, e.rate_limit_per_second, e.rate_limit_burst, e.discard_before, e.created_at, e.updated_at, e.version"#,
                id.0,
                tenant.as_str(),
                sealer.secret(secret),
                micros(overlap),
                sealer.key(key)
            ))
            .await?;
        row.map(|row| self.endpoint_of(row)).transpose()
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
