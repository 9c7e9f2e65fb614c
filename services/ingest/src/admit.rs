//! Step 2 of an event's way: a request becomes a checked event with an identity, or a refusal. Called by the
//! event route. No I/O here: what the directory knows, the time and the random bytes come in as arguments.
//!
//! Invariant: the payload's bytes are a slice of the request's body, exactly as they came.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use relay_core::endpoint::Endpoint;
use relay_core::event::{Event, EventType, InvalidPayload, TRACE_BYTES_MAX, check_payload};
use relay_core::ids::{EndpointId, EventId, IdempotencyKey, TenantId};

use crate::fields::{self, Faults, is_null};
use crate::refusal::Refusal;

/// The fields of `POST /events`.
const FIELDS: &[&str; 4] = &["endpoint_id", "event_type", "payload", "idempotency_key"];

/// What the headers of a request say about its event.
#[derive(Clone, Copy, Default)]
pub struct Headers<'a> {
    /// `Idempotency-Key`.
    pub key: Option<&'a [u8]>,
    /// `traceparent`.
    pub trace: Option<&'a [u8]>,
}

/// A request whose own fields are right; whether its endpoint takes it is still open.
#[derive(Debug, PartialEq)]
pub struct Draft {
    /// The one endpoint it is for.
    pub endpoint: Option<EndpointId>,
    /// Its type.
    pub event_type: EventType,
    /// The idempotency key.
    pub key: Option<IdempotencyKey>,
    /// The producer's trace context.
    pub trace: Option<Arc<str>>,
    /// The payload, a slice of the body.
    pub payload: Bytes,
}

/// Checks a request's own fields. `payload_max` is in bytes.
pub fn draft(body: &Bytes, headers: Headers<'_>, payload_max: usize) -> Result<Draft, Refusal> {
    let [endpoint, event_type, payload, key] = fields::read(body, FIELDS)?;
    let mut faults = Faults::default();

    let endpoint: Option<EndpointId> =
        endpoint.filter(|v| !is_null(v)).and_then(|value| faults.id("endpoint_id", value));

    let event_type = match event_type {
        None => {
            faults.add("event_type", "is required");
            None
        }
        Some(value) => faults.string("event_type", value).and_then(|text| match EventType::parse(&text) {
            Ok(event_type) => Some(event_type),
            Err(why) => {
                faults.add("event_type", why);
                None
            }
        }),
    };

    let key_field = key.filter(|v| !is_null(v)).and_then(|value| {
        let text = faults.string("idempotency_key", value)?;
        // Stored it could be, but a query that asks for it could not be written in most tools.
        if text.contains('\0') {
            faults.add("idempotency_key", "must not contain U+0000");
            return None;
        }
        let key = IdempotencyKey::parse(&text);
        key.map_err(|why| faults.add("idempotency_key", why)).ok()
    });
    let key_header = headers.key.and_then(|bytes| match std::str::from_utf8(bytes) {
        Ok(text) => IdempotencyKey::parse(text).map_err(|why| faults.add_header("Idempotency-Key", why)).ok(),
        Err(_) => {
            faults.add_header("Idempotency-Key", "must be UTF-8");
            None
        }
    });
    if let (Some(field), Some(header)) = (&key_field, &key_header)
        && field != header
    {
        faults.add("idempotency_key", "differs from the Idempotency-Key header");
    }

    let payload = match payload {
        None => {
            faults.add("payload", "is required");
            None
        }
        Some(value) => {
            let payload = body.slice_ref(value.get().as_bytes());
            match check_payload(&payload, payload_max) {
                Ok(()) => Some(payload),
                Err(InvalidPayload::TooLarge { limit, .. }) => return Err(Refusal::TooLarge { limit }),
                Err(why @ InvalidPayload::NotJson(_)) => {
                    faults.add("payload", why);
                    None
                }
            }
        }
    };

    match (event_type, payload) {
        (Some(event_type), Some(payload)) if faults.is_empty() => {
            let trace = headers.trace.and_then(carried_trace);
            Ok(Draft { endpoint, event_type, key: key_header.or(key_field), trace, payload })
        }
        _ => Err(Refusal::Invalid(faults.0)),
    }
}

/// A trace context worth carrying: visible ASCII of a sensible length. Others are dropped silently, as the
/// W3C recommendation wants it.
fn carried_trace(bytes: &[u8]) -> Option<Arc<str>> {
    let fine = (1..=TRACE_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(bytes).ok().filter(|_| fine).map(Arc::from)
}

/// Whether the endpoint that a draft names takes it, as far as `known` (the directory's entry, if any) tells.
pub fn fits(draft: &Draft, tenant: &TenantId, known: Option<&Endpoint>) -> Result<(), Refusal> {
    if draft.endpoint.is_none() {
        return Ok(());
    }
    let Some(endpoint) = known.filter(|e| e.tenant == *tenant) else { return Err(Refusal::UnknownEndpoint) };
    if !endpoint.is_active {
        return Err(Refusal::InactiveEndpoint);
    }
    if !endpoint.takes(draft.event_type.as_str()) {
        return Err(Refusal::TypeNotAccepted(draft.event_type.as_str().to_owned()));
    }
    Ok(())
}

/// The time of acceptance, as precise as it is stored: the 202 and later look-ups show the same.
pub fn accept_time(now: DateTime<Utc>) -> DateTime<Utc> {
    now.trunc_subsecs(6)
}

/// The ids by which the event of a key is known: that of today, and those that the key had or will have on the days
/// beside it.
pub fn key_ids(tenant: &TenantId, key: &IdempotencyKey, now: DateTime<Utc>) -> [EventId; 3] {
    let [before, after] = EventId::keyed_neighbours(tenant, key, now);
    [EventId::keyed(tenant, key, now), before, after]
}

/// What becomes of a draft that was held against the directory, `fresh` or as old as it may be: while Postgres is away an
/// unknown endpoint is no reason, as the dispatcher decides, and what it can't deliver becomes a dead letter.
pub fn decided(fits: Result<(), Refusal>, fresh: bool) -> Result<(), Refusal> {
    match fits {
        Err(Refusal::UnknownEndpoint) if !fresh => Ok(()),
        decided => decided,
    }
}

/// The event of a draft: with a key, its id is that of the key's day; without, a fresh one.
pub fn event(draft: Draft, tenant: TenantId, accepted_at: DateTime<Utc>, random: [u8; 10]) -> Event {
    let id = match &draft.key {
        Some(key) => EventId::keyed(&tenant, key, accepted_at),
        None => EventId::fresh(accepted_at, random),
    };
    let Draft { endpoint, event_type, key, trace, payload } = draft;
    Event { id, tenant, event_type, endpoint, key, accepted_at, trace, payload }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1000;

    fn plain(body: &str) -> Result<Draft, Refusal> {
        draft(&Bytes::from(body.to_owned()), Headers::default(), MAX)
    }

    fn paths(refusal: Result<Draft, Refusal>) -> Vec<String> {
        match refusal {
            Err(Refusal::Invalid(faults)) => {
                faults.into_iter().map(|e| e.field.trim_start_matches("body.").to_owned()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_request_becomes_a_draft() {
        let id = "0192f0a0-0000-7000-8000-000000000001";
        let body = format!(
            r#"{{"endpoint_id":"{id}","event_type":"order.created","payload": {{"b": 1.0, "a":1}} ,"idempotency_key":"k","extra":1}}"#
        );
        let draft = plain(&body).unwrap();
        assert_eq!(draft.endpoint.unwrap().to_string(), id);
        assert_eq!(draft.event_type.as_str(), "order.created");
        assert_eq!(draft.key.unwrap().as_str(), "k");
        assert_eq!(draft.payload, r#"{"b": 1.0, "a":1}"#);
    }

    #[test]
    fn nulls_are_no_endpoint_and_no_key_but_a_payload() {
        let draft = plain(r#"{"endpoint_id":null,"event_type":"a","payload":null,"idempotency_key":null}"#).unwrap();
        assert_eq!((draft.endpoint, draft.key), (None, None));
        assert_eq!(draft.payload, "null");
    }

    #[test]
    fn every_wrong_field_is_named() {
        assert_eq!(paths(plain("{}")), ["event_type", "payload"]);
        assert_eq!(
            paths(plain(r#"{"endpoint_id":"x","event_type":7,"payload":1,"idempotency_key":""}"#)),
            ["endpoint_id", "event_type", "idempotency_key"]
        );
        assert_eq!(paths(plain(r#"{"event_type":"","payload":1}"#)), ["event_type"]);
        assert_eq!(paths(plain(r#"{"event_type":"é","payload":1}"#)), ["event_type"]);
        assert_eq!(paths(plain(r#"{"event_type":null,"payload":1}"#)), ["event_type"]);
        let deep = format!(r#"{{"event_type":"a","payload":{}{}}}"#, "[".repeat(129), "]".repeat(129));
        assert_eq!(paths(plain(&deep)), ["payload"]);
    }

    #[test]
    fn malformed_and_too_large_are_their_own_refusals() {
        assert!(matches!(plain("{"), Err(Refusal::Malformed(_))));
        assert!(matches!(plain(r#"{"event_type":"a","payload":NaN}"#), Err(Refusal::Malformed(_))));
        assert_eq!(paths(plain("[]")), ["body"]);
        let large = format!(r#"{{"event_type":"a","payload":"{}"}}"#, "x".repeat(MAX - 1));
        assert_eq!(plain(&large), Err(Refusal::TooLarge { limit: MAX }));
        let just = format!(r#"{{"event_type":"a","payload":"{}"}}"#, "x".repeat(MAX - 2));
        assert!(plain(&just).is_ok());
    }

    #[test]
    fn the_key_comes_from_header_or_field_and_they_must_agree() {
        let with = |field: &str, header: &'static [u8]| {
            let body = Bytes::from(format!(r#"{{"event_type":"a","payload":1{field}}}"#));
            draft(&body, Headers { key: Some(header), trace: None }, MAX)
        };
        assert_eq!(with("", b"k").unwrap().key.unwrap().as_str(), "k");
        assert_eq!(with(r#","idempotency_key":"k""#, b"k").unwrap().key.unwrap().as_str(), "k");
        assert_eq!(paths(with(r#","idempotency_key":"j""#, b"k")), ["idempotency_key"]);
        assert_eq!(paths(with("", b"")), ["header.Idempotency-Key"]);
        assert_eq!(paths(with("", b"\xff")), ["header.Idempotency-Key"]);
        let long = format!(r#"{{"event_type":"a","payload":1,"idempotency_key":"{}"}}"#, "é".repeat(256));
        assert_eq!(paths(plain(&long)), ["idempotency_key"]);
        let nul = r#"{"event_type":"a","payload":1,"idempotency_key":"a\u0000"}"#;
        assert_eq!(paths(plain(nul)), ["idempotency_key"]);
        assert!(plain(&long.replacen('é', "", 1)).is_ok(), "characters are counted, not bytes");
    }

    #[test]
    fn a_trace_is_carried_when_it_can_be_a_header() {
        let with = |trace: &[u8]| {
            let body = Bytes::from_static(br#"{"event_type":"a","payload":1}"#);
            draft(&body, Headers { key: None, trace: Some(trace) }, MAX).unwrap().trace
        };
        let sample = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(with(sample.as_bytes()).as_deref(), Some(sample));
        for dropped in [&b""[..], b"a b", b"\xff", &[b'a'; TRACE_BYTES_MAX + 1]] {
            assert_eq!(with(dropped), None);
        }
    }

    #[test]
    fn equal_keys_of_a_day_give_equal_ids() {
        let at = |secs| Utc.timestamp_opt(secs, 123_456_789).unwrap();
        let make = |body: &str, secs, random| {
            event(plain(body).unwrap(), TenantId::default_tenant(), accept_time(at(secs)), random)
        };
        let keyed = r#"{"event_type":"a","payload":1,"idempotency_key":"k"}"#;
        let one = make(keyed, 1_700_000_000, [1; 10]);
        assert_eq!(one.id, make(keyed, 1_700_000_001, [2; 10]).id);
        assert_ne!(one.id, make(keyed, 1_700_086_400, [1; 10]).id);
        assert_eq!(one.accepted_at.timestamp_subsec_nanos(), 123_456_000);
        let free = r#"{"event_type":"a","payload":1}"#;
        assert_ne!(make(free, 1_700_000_000, [1; 10]).id, make(free, 1_700_000_000, [2; 10]).id);
    }

    proptest! {
        #[test]
        fn any_body_is_a_draft_or_a_refusal(body: Vec<u8>) {
            let _ = draft(&Bytes::from(body), Headers::default(), MAX);
        }

        #[test]
        fn the_payload_keeps_its_bytes(payload in "( {0,3}(null|true|-?[1-9][0-9]{0,30}|1e400|\"[a-zé\u{1F600} ]{0,9}\"|\\[ ?\\]|\\{\"a\":1,\"a\" : 2\\}))", gap in " {0,3}") {
            let body = format!(r#"{{"payload":{gap}{payload}{gap},"event_type":"a"}}"#);
            prop_assert_eq!(plain(&body).unwrap().payload, payload.trim());
        }
    }
}
