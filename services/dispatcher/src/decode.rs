//! Step 5, first half: a message on EVENTS becomes events, or a dead letter that says why it can't. Pure. Also called by
//! `webhook-relay fsck` and `recover`, to know what a retained message must have become.
//!
//! Bundles come from ingest and are trusted. On `relay.events.>` a stranger may publish, so exactly five things
//! are read: subject, body, idempotency key, endpoint id and trace context.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_bus::StoredMessage;
use relay_core::delivery::DeadReason;
use relay_core::event::{self, Event, InvalidPayload, TRACE_BYTES_MAX};
use relay_core::ids::{DeadLetterId, EndpointId, EventId, IdempotencyKey, TenantId};
use relay_core::subject::{self, EventsSubject};
use relay_core::{WireError, bundle};
use relay_store::RawLetter;

/// A message that can't become an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Unusable {
    /// Its letter's identity: the same on every redelivery.
    pub id: DeadLetterId,
    /// What its event would have been called.
    pub event: EventId,
    /// Whose it is, where that is known.
    pub tenant: Option<TenantId>,
    /// Its type, where the subject has one.
    pub event_type: Option<String>,
    /// Why.
    pub reason: DeadReason,
    /// Why, in words.
    pub error: String,
    /// The subject it came on.
    pub subject: String,
    /// The body as it came.
    pub payload: Bytes,
    /// When it came.
    pub at: DateTime<Utc>,
}

impl Unusable {
    /// An event that nothing is wrong with, taken for poison because it was delivered so often: what a process does
    /// that breaks [`relay_core::mutation::Safety::DeliveryCount`] on purpose.
    pub(crate) fn given_up(event: &Event, delivered: u64) -> Self {
        Self {
            id: DeadLetterId::of_delivery(event.id, EndpointId(uuid::Uuid::nil())),
            event: event.id,
            tenant: Some(event.tenant.clone()),
            event_type: Some(event.event_type.as_str().to_owned()),
            reason: DeadReason::Malformed,
            error: format!("delivered {delivered} times"),
            subject: subject::event(&event.tenant, &event.event_type),
            payload: event.payload.clone(),
            at: event.accepted_at,
        }
    }

    /// The letter, as the ledger takes it.
    pub fn letter(&self) -> RawLetter {
        RawLetter {
            id: self.id,
            event_id: Some(self.event),
            tenant: self.tenant.clone(),
            event_type: self.event_type.clone(),
            reason: self.reason,
            error: self.error.clone(),
            subject: Bytes::copy_from_slice(self.subject.as_bytes()),
            payload: self.payload.clone(),
            at: self.at,
        }
    }
}

/// What a message is.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// Events.
    Events(Vec<Event>),
    /// One letter.
    Unusable(Box<Unusable>),
    /// A bundle of a newer program: left for one that knows it.
    Newer(u8),
}

/// The letter of a message.
fn unusable(
    message: &StoredMessage,
    tenant: Option<TenantId>,
    event_type: Option<String>,
    reason: DeadReason,
    error: String,
) -> Unusable {
    Unusable {
        id: DeadLetterId::from_stream(message.stream, message.sequence, 0, message.published),
        event: EventId::from_stream(message.stream, message.sequence, message.published),
        tenant,
        event_type,
        reason,
        error,
        subject: message.subject.clone(),
        payload: message.payload.clone(),
        at: message.published,
    }
}

/// Reads a message. `payload_max` is the limit on a direct event's payload, in bytes.
pub fn decode(message: &StoredMessage, payload_max: usize) -> Decoded {
    match subject::parse_events(&message.subject) {
        EventsSubject::Bundle => match bundle::decode(message.payload.clone()) {
            Ok(events) => Decoded::Events(events),
            Err(WireError::UnknownVersion(version)) => Decoded::Newer(version),
            Err(damage) => {
                Decoded::Unusable(Box::new(unusable(message, None, None, DeadReason::Malformed, damage.to_string())))
            }
        },
        EventsSubject::Bad(why) => {
            Decoded::Unusable(Box::new(unusable(message, None, None, DeadReason::Malformed, why)))
        }
        EventsSubject::Direct { tenant, event_type } => match direct(message, payload_max) {
            Ok(parts) => Decoded::Events(vec![Event {
                id: match &parts.key {
                    Some(key) => EventId::keyed(&tenant, key, message.published),
                    None => EventId::from_stream(message.stream, message.sequence, message.published),
                },
                tenant,
                event_type,
                endpoint: parts.endpoint,
                key: parts.key,
                accepted_at: message.published,
                trace: parts.trace,
                payload: message.payload.clone(),
            }]),
            Err((reason, error)) => Decoded::Unusable(Box::new(unusable(
                message,
                Some(tenant),
                Some(event_type.as_str().to_owned()),
                reason,
                error,
            ))),
        },
    }
}

struct DirectParts {
    key: Option<IdempotencyKey>,
    endpoint: Option<EndpointId>,
    trace: Option<std::sync::Arc<str>>,
}

fn direct(message: &StoredMessage, payload_max: usize) -> Result<DirectParts, (DeadReason, String)> {
    event::check_payload(&message.payload, payload_max).map_err(|why| match why {
        InvalidPayload::TooLarge { .. } => (DeadReason::TooLarge, why.to_string()),
        InvalidPayload::NotJson(_) => (DeadReason::Malformed, why.to_string()),
    })?;
    let key = message
        .msg_id
        .as_deref()
        .map(IdempotencyKey::parse)
        .transpose()
        .map_err(|why| (DeadReason::Malformed, format!("bad {}: {why}", subject::HEADER_MSG_ID)))?;
    let endpoint = message
        .endpoint_id
        .as_deref()
        .map(str::parse::<EndpointId>)
        .transpose()
        .map_err(|_| (DeadReason::Malformed, format!("{} is not a UUID", subject::HEADER_ENDPOINT)))?;
    let trace = message
        .trace
        .as_deref()
        .filter(|t| t.len() <= TRACE_BYTES_MAX && t.bytes().all(|b| b.is_ascii_graphic()))
        .map(Into::into);
    Ok(DirectParts { key, endpoint, trace })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    fn message(subject: &str, body: &'static [u8]) -> StoredMessage {
        StoredMessage {
            subject: subject.to_owned(),
            msg_id: None,
            endpoint_id: None,
            trace: None,
            payload: Bytes::from_static(body),
            stream: "EVENTS",
            sequence: 7,
            published: Utc.timestamp_opt(1_700_000_000, 0).unwrap(),
        }
    }

    fn events(decoded: Decoded) -> Vec<Event> {
        match decoded {
            Decoded::Events(events) => events,
            other => panic!("{other:?}"),
        }
    }

    fn reason(decoded: Decoded) -> (DeadReason, Option<TenantId>) {
        match decoded {
            Decoded::Unusable(u) => (u.reason, u.tenant),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_direct_event_has_the_same_id_on_every_delivery() {
        let m = message("relay.events.default.order.created", b"{\"a\":1}");
        let (a, b) = (events(decode(&m, 100)), events(decode(&m, 100)));
        assert_eq!(a, b);
        assert_eq!(a[0].event_type.as_str(), "order.created");
        assert_eq!(&a[0].payload[..], b"{\"a\":1}");
    }

    #[test]
    fn equal_keys_of_two_tenants_are_two_events() {
        let mut a = message("relay.events.a.x", b"1");
        a.msg_id = Some("order-1".to_owned());
        let mut b = message("relay.events.b.x", b"1");
        b.msg_id = Some("order-1".to_owned());
        let (a, b) = (events(decode(&a, 100)), events(decode(&b, 100)));
        assert_ne!(a[0].id, b[0].id);
        assert!(a[0].key.is_some());
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let tenant = Some(TenantId::default_tenant());
        assert_eq!(
            reason(decode(&message("relay.events.default.x", b"nope"), 100)),
            (DeadReason::Malformed, tenant.clone())
        );
        assert_eq!(
            reason(decode(&message("relay.events.default.x", b"[1,2,3]"), 3)),
            (DeadReason::TooLarge, tenant.clone())
        );
        assert_eq!(reason(decode(&message("relay.events.default", b"1"), 100)), (DeadReason::Malformed, None));
        let mut bad_endpoint = message("relay.events.default.x", b"1");
        bad_endpoint.endpoint_id = Some("7".to_owned());
        assert_eq!(reason(decode(&bad_endpoint, 100)), (DeadReason::Malformed, tenant.clone()));
        let mut empty_key = message("relay.events.default.x", b"1");
        empty_key.msg_id = Some(String::new());
        assert_eq!(reason(decode(&empty_key, 100)), (DeadReason::Malformed, tenant));
        assert_eq!(reason(decode(&message("relay.bundles.0", &[1, 0, 3]), 100)), (DeadReason::Malformed, None));
        assert_eq!(decode(&message("relay.bundles.0", &[200]), 100), Decoded::Newer(200));
    }

    #[test]
    fn a_senseless_trace_is_left_out() {
        let mut m = message("relay.events.default.x", b"1");
        m.trace = Some("00-abc\r\n".to_owned());
        assert_eq!(events(decode(&m, 100))[0].trace, None);
    }
}
