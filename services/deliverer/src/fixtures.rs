//! Values that several tests use.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use relay_core::breaker::CircuitRule;
use relay_core::endpoint::{Endpoint, RetrySettings, Secrets};
use relay_core::event::EventType;
use relay_core::ids::{EndpointId, EventId, TenantId};
use relay_core::job::Job;
use relay_core::matching::TypeFilter;
use relay_core::signature::{Schemes, SigningSecret};
use uuid::Uuid;

/// An active endpoint with the default settings.
pub fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        id: EndpointId(Uuid::from_u128(1)),
        tenant: TenantId::default_tenant(),
        name: "test".to_owned(),
        url: url.to_owned(),
        filter: TypeFilter::parse(&[]).unwrap(),
        custom_headers: BTreeMap::new(),
        secret_headers: BTreeSet::new(),
        retry: RetrySettings::default(),
        timeout: Duration::from_secs(30),
        circuit: CircuitRule::default(),
        schemes: Schemes::default(),
        secrets: Ok(Secrets::of(SigningSecret::generate([7; 32]))),
        is_active: true,
        paused: false,
        rate_limit: None,
        discard_before: None,
        created_at: DateTime::UNIX_EPOCH,
        updated_at: None,
        version: 1,
    }
}

/// A first job for that endpoint.
pub fn job(event: u128) -> Job {
    Job {
        event: EventId(Uuid::from_u128(event)),
        endpoint: EndpointId(Uuid::from_u128(1)),
        tenant: TenantId::default_tenant(),
        event_type: EventType::parse("order.created").unwrap(),
        claim: 1,
        attempts: 0,
        base: 0,
        claimed_at: DateTime::UNIX_EPOCH,
        accepted_at: DateTime::UNIX_EPOCH,
        directory_version: 1,
        probe: false,
        trace: Some("00-1-2-01".into()),
        payload: Some(Bytes::from_static(b"{}")),
    }
}
