//! Statements against a real Postgres, each test in a database of its own.

mod auditing;
mod bulk;
mod claiming;
mod connections;
mod directory;
mod dispatching;
mod keys;
mod listing;
mod plans;
mod recording;
mod replaying;
mod resealing;
mod resuming;
mod statistics;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::breaker::CircuitRule;
use relay_core::delivery::{DeliveryResult, Evidence, Outcome};
use relay_core::endpoint::{Endpoint, RetrySettings};
use relay_core::event::{Event, EventType};
use relay_core::headers::GivenHeader;
use relay_core::ids::{AttemptId, EndpointId, EventId, IdempotencyKey, TenantId, uuid_v7};
use relay_core::job::Job;
use relay_core::matching::TypeFilter;
use relay_core::protocol::{FoldedResult, PlannedDelivery, PlannedEvent};
use relay_core::sealing::{NonceBytes, SealingKeys};
use relay_core::signature::{Schemes, SigningSecret};
use relay_core::subject::Lane;
use secrecy::ExposeSecret;
use sqlx::PgPool;

use crate::{DispatchOutcome, NewEndpoint, Recorded, Sealer, Store};

/// A store in its own database, and a second way into it.
struct Ledger {
    store: Store,
    pool: PgPool,
    now: DateTime<Utc>,
}

impl std::ops::Deref for Ledger {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.store
    }
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

/// In place of random bytes: each call gives others, which is all that ids need here.
fn random10() -> [u8; 10] {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&CALLS.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes
}

/// A sealer with keys that are made of these bytes.
pub(crate) fn sealer(keys: &[u8]) -> Sealer {
    let texts: Vec<_> = keys.iter().map(|b| SealingKeys::generate([*b; 32]).expose_secret().to_owned()).collect();
    let keys = if texts.is_empty() { SealingKeys::default() } else { SealingKeys::parse(&texts.join(",")).unwrap() };
    Sealer::new(keys, nonce)
}

fn nonce() -> NonceBytes {
    let mut bytes = [0; 12];
    bytes[..10].copy_from_slice(&random10());
    bytes
}

impl Ledger {
    /// The same database, with other keys.
    fn with_keys(&self, keys: &[u8]) -> Store {
        let mut store = self.store.clone();
        store.secrets = Some(sealer(keys));
        store
    }

    async fn new(pool: PgPool) -> Self {
        let store = Store::of_pool(&pool);
        let now = store.clock().await.unwrap();
        Self { store, pool, now }
    }

    async fn endpoint(&self) -> Endpoint {
        self.endpoint_with(&[]).await
    }

    async fn endpoint_with(&self, patterns: &[&str]) -> Endpoint {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        let new = NewEndpoint {
            id: EndpointId(uuid_v7(self.now, random10())),
            tenant: tenant(),
            name: "test".to_owned(),
            url: "https://example.com/".to_owned(),
            filter: TypeFilter::parse(&patterns).unwrap(),
            custom_headers: BTreeMap::from([("X-Team".to_owned(), GivenHeader::Plain("blue".to_owned()))]),
            retry: RetrySettings { schedule_seconds: Some(vec![1, 2]), ..RetrySettings::default() },
            timeout: Duration::from_secs(30),
            circuit: CircuitRule::default(),
            rate_limit: None,
            schemes: Schemes::default(),
            key: None,
            secret: SigningSecret::trusted("whsec_0123456789abcdef".to_owned()),
            is_active: true,
        };
        self.create_endpoint(&new).await.unwrap().unwrap()
    }

    async fn version(&self) -> i64 {
        sqlx::query_scalar("select directory_version from tenants where id = 'default'")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    fn event(&self) -> Event {
        self.event_at(self.now)
    }

    fn event_at(&self, at: DateTime<Utc>) -> Event {
        Event {
            id: EventId::fresh(at, random10()),
            tenant: tenant(),
            event_type: EventType::parse("order.created").unwrap(),
            endpoint: None,
            key: None,
            accepted_at: at,
            trace: Some("00-aa-bb-01".into()),
            payload: Bytes::from_static(br#"{"a":1}"#),
        }
    }

    fn keyed(&self, key: &str, at: DateTime<Utc>) -> Event {
        let key = IdempotencyKey::parse(key).unwrap();
        Event { id: EventId::keyed(&tenant(), &key, at), key: Some(key), ..self.event_at(at) }
    }

    async fn plan(&self, event: Event, endpoints: &[&Endpoint]) -> PlannedEvent {
        PlannedEvent {
            event,
            aliases: Vec::new(),
            directory_version: self.version().await,
            deliveries: endpoints
                .iter()
                .map(|e| PlannedDelivery { endpoint: e.id, leased: true, lease: e.lease(), lane: Lane::Fresh })
                .collect(),
            dead: None,
        }
    }

    /// Dispatches one event to one endpoint; the job that was made of it.
    async fn job(&self, endpoint: &Endpoint) -> Job {
        let event = self.event();
        let done = self.dispatch(&[self.plan(event.clone(), &[endpoint]).await]).await.unwrap();
        assert_eq!(done.outcomes, [DispatchOutcome::Inserted]);
        Job {
            event: event.id,
            endpoint: endpoint.id,
            tenant: event.tenant,
            event_type: event.event_type,
            claim: 1,
            attempts: 0,
            base: 0,
            claimed_at: done.now,
            accepted_at: event.accepted_at,
            directory_version: 1,
            probe: false,
            trace: event.trace,
            payload: Some(event.payload),
        }
    }

    async fn record_one(&self, job: &Job, outcome: Outcome) -> Recorded {
        let done = self.record(&[self.result(job, outcome)], "pod", &[]).await.unwrap();
        done.results[0]
    }

    fn result(&self, job: &Job, outcome: Outcome) -> FoldedResult {
        let status = match outcome {
            Outcome::Delivered => 200,
            _ => 500,
        };
        let evidence = Evidence {
            id: AttemptId(uuid_v7(self.now, random10())),
            attempted_at: self.now,
            http_status: Some(status),
            error_class: None,
            error: (status != 200).then(|| "answered 500 \0".to_owned()),
            total_us: 1500,
            connect_us: Some(300),
            first_byte_us: Some(900),
            request_headers: Bytes::from_static(b"a: b"),
            response_headers: Bytes::from_static(b"c: \0"),
            excerpt: Bytes::from_static(b"\0\xff"),
        };
        let decisive = DeliveryResult {
            event: job.event,
            endpoint: job.endpoint,
            tenant: job.tenant.clone(),
            claim: job.claim,
            attempts: job.attempts,
            evidence: (!matches!(outcome, Outcome::HandedBack { .. })).then_some(evidence),
            outcome,
        };
        FoldedResult { decisive, others: Vec::new() }
    }

    async fn count(&self, what: &'static str) -> i64 {
        sqlx::query_scalar(what).fetch_one(&self.pool).await.unwrap()
    }

    async fn text(&self, what: &'static str) -> String {
        sqlx::query_scalar(what).fetch_one(&self.pool).await.unwrap()
    }

    /// Makes every open row due.
    async fn make_due(&self) {
        sqlx::query("update open_deliveries set due_at = now() - interval '1 second'")
            .execute(&self.pool)
            .await
            .unwrap();
    }
}

fn dead(reason: relay_core::delivery::DeadReason) -> Outcome {
    Outcome::Dead { reason, deactivate: reason == relay_core::delivery::DeadReason::Gone }
}
