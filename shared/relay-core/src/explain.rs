//! Why an event has no delivery to an endpoint, as far as the endpoint's settings of today tell. Called by the interface;
//! the deliveries that exist are the ledger's to tell, and need no explanation.
//!
//! Invariant: an event that the matching would give to the endpoint today is never explained by one of the other
//! reasons, and one that it wouldn't always is.

use chrono::{DateTime, Utc};

use crate::endpoint::Endpoint;
use crate::ids::EndpointId;

/// Why an endpoint didn't get an event. The texts are part of the interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Miss {
    /// The event names another endpoint.
    AddressedToAnother,
    /// The endpoint was made after the event was accepted.
    CreatedLater,
    /// The endpoint is inactive.
    Inactive,
    /// No pattern of the endpoint's filter matches the event's type.
    TypeNotInFilter,
    /// Nothing of today speaks against it: its settings were others when the event was matched.
    ChangedSince,
}

impl Miss {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressedToAnother => "addressed_to_another_endpoint",
            Self::CreatedLater => "endpoint_created_later",
            Self::Inactive => "endpoint_inactive",
            Self::TypeNotInFilter => "event_type_not_in_filter",
            Self::ChangedSince => "endpoint_changed_since",
        }
    }
}

/// What the matching looks at of an event.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its type.
    pub event_type: &'a str,
    /// The one endpoint it names.
    pub endpoint: Option<EndpointId>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
}

/// All that speaks against a delivery of the event to this endpoint of its tenant; never empty.
pub fn misses(event: Asked<'_>, endpoint: &Endpoint) -> Vec<Miss> {
    let against = [
        (event.endpoint.is_some_and(|named| named != endpoint.id), Miss::AddressedToAnother),
        (endpoint.created_at > event.accepted_at, Miss::CreatedLater),
        (!endpoint.is_active, Miss::Inactive),
        (!endpoint.filter.matches(event.event_type), Miss::TypeNotInFilter),
    ];
    let found: Vec<Miss> = against.into_iter().filter(|(holds, _)| *holds).map(|(_, miss)| miss).collect();
    if found.is_empty() { vec![Miss::ChangedSince] } else { found }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use chrono::TimeZone;
    use uuid::Uuid;

    use super::*;
    use crate::breaker::CircuitRule;
    use crate::endpoint::{RetrySettings, Secrets};
    use crate::ids::TenantId;
    use crate::matching::TypeFilter;
    use crate::signature::{Schemes, SigningSecret};

    fn at(seconds: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(seconds, 0).unwrap()
    }

    fn endpoint(patterns: &[&str], is_active: bool, created_at: DateTime<Utc>) -> Endpoint {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        Endpoint {
            id: EndpointId(Uuid::from_u128(1)),
            tenant: TenantId::default_tenant(),
            name: "e".to_owned(),
            url: "https://example.com/".to_owned(),
            filter: TypeFilter::parse(&patterns).unwrap(),
            custom_headers: BTreeMap::new(),
            secret_headers: BTreeSet::new(),
            retry: RetrySettings::default(),
            timeout: Duration::from_secs(30),
            circuit: CircuitRule::default(),
            schemes: Schemes::default(),
            secrets: Ok(Secrets::of(SigningSecret::trusted("whsec_0123456789abcdef".to_owned()))),
            is_active,
            paused: false,
            rate_limit: None,
            discard_before: None,
            created_at,
            updated_at: None,
            version: 1,
        }
    }

    #[test]
    fn everything_that_speaks_against_it_is_named() {
        let asked = Asked { event_type: "order.created", endpoint: None, accepted_at: at(100) };
        assert_eq!(misses(asked, &endpoint(&["user.*"], true, at(1))), [Miss::TypeNotInFilter]);
        assert_eq!(misses(asked, &endpoint(&[], false, at(1))), [Miss::Inactive]);
        assert_eq!(misses(asked, &endpoint(&["order.*"], true, at(101))), [Miss::CreatedLater]);
        let named = Asked { endpoint: Some(EndpointId(Uuid::from_u128(2))), ..asked };
        assert_eq!(
            misses(named, &endpoint(&["user.*"], false, at(101))),
            [Miss::AddressedToAnother, Miss::CreatedLater, Miss::Inactive, Miss::TypeNotInFilter]
        );
        let named = Asked { endpoint: Some(EndpointId(Uuid::from_u128(1))), ..asked };
        assert_eq!(misses(named, &endpoint(&["user.*"], true, at(1))), [Miss::TypeNotInFilter]);
    }

    #[test]
    fn what_would_match_today_was_changed_since() {
        let asked = Asked { event_type: "order.created", endpoint: None, accepted_at: at(100) };
        assert_eq!(misses(asked, &endpoint(&["order.>"], true, at(100))), [Miss::ChangedSince]);
    }
}
