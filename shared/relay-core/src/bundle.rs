//! The wire form of a group of accepted events on `relay.bundles.<n>`: step 3 of an event's way. One fsync of
//! JetStream serves the whole group; a group of one is a bundle of one.
//!
//! Layout, version 1: one byte version, then frames until the end. A frame is flags (u8: 1 endpoint, 2 key,
//! 4 trace), event id (16), accept time (i64, microseconds), tenant, type, \[endpoint id (16)\], \[key\],
//! \[trace\], payload; texts and payload with a u32 length before them. Numbers are big-endian.

use bytes::{BufMut, Bytes, BytesMut};

use crate::event::{Event, EventType};
use crate::ids::{EndpointId, EventId, IdempotencyKey, TenantId};
use crate::wire::{Reader, WireError, put_bytes, put_time, put_uuid};

/// Events in one bundle at most.
pub const EVENTS_MAX: usize = 500;
/// Bytes of one bundle at most; a larger payload travels alone.
pub const BYTES_MAX: usize = 1024 * 1024;

const VERSION: u8 = 1;
const HAS_ENDPOINT: u8 = 1;
const HAS_KEY: u8 = 2;
const HAS_TRACE: u8 = 4;

/// A bundle being filled.
pub struct BundleWriter {
    bytes: BytesMut,
    events: usize,
}

impl Default for BundleWriter {
    fn default() -> Self {
        let mut bytes = BytesMut::with_capacity(4096);
        bytes.put_u8(VERSION);
        Self { bytes, events: 0 }
    }
}

impl BundleWriter {
    /// Whether another event of this payload size still fits; the first one always does.
    pub fn fits(&self, payload_bytes: usize) -> bool {
        // 1 KiB stands for everything in a frame but the payload: type, key, ids.
        self.events == 0 || (self.events < EVENTS_MAX && self.bytes.len() + payload_bytes + 1024 <= BYTES_MAX)
    }

    /// Appends an event.
    pub fn push(&mut self, event: &Event) {
        let flags = [
            (event.endpoint.is_some(), HAS_ENDPOINT),
            (event.key.is_some(), HAS_KEY),
            (event.trace.is_some(), HAS_TRACE),
        ]
        .into_iter()
        .filter_map(|(there, bit)| there.then_some(bit))
        .sum();
        let out = &mut self.bytes;
        out.put_u8(flags);
        put_uuid(out, event.id.0);
        put_time(out, event.accepted_at);
        put_bytes(out, event.tenant.as_str().as_bytes());
        put_bytes(out, event.event_type.as_str().as_bytes());
        if let Some(endpoint) = event.endpoint {
            put_uuid(out, endpoint.0);
        }
        if let Some(key) = &event.key {
            put_bytes(out, key.as_str().as_bytes());
        }
        if let Some(trace) = &event.trace {
            put_bytes(out, trace.as_bytes());
        }
        put_bytes(out, &event.payload);
        self.events += 1;
    }

    /// How many events are in it.
    pub fn len(&self) -> usize {
        self.events
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// The message.
    pub fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// Reads a bundle. Payloads are slices of `message`.
pub fn decode(message: Bytes) -> Result<Vec<Event>, WireError> {
    let mut reader = Reader::new(message);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(WireError::UnknownVersion(version));
    }
    let mut events = Vec::new();
    while !reader.is_empty() {
        let flags = reader.u8()?;
        let id = EventId(reader.uuid()?);
        let accepted_at = reader.time()?;
        let tenant = reader.text(TenantId::trusted)?;
        let event_type = reader.text(EventType::trusted)?;
        let endpoint = if flags & HAS_ENDPOINT != 0 { Some(EndpointId(reader.uuid()?)) } else { None };
        let key = if flags & HAS_KEY != 0 {
            Some(reader.text(IdempotencyKey::parse)?.map_err(|_| WireError::NotText)?)
        } else {
            None
        };
        let trace = if flags & HAS_TRACE != 0 { Some(reader.text(|t| t.into())?) } else { None };
        let payload = reader.bytes()?;
        events.push(Event { id, tenant, event_type, endpoint, key, accepted_at, trace, payload });
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{TimeZone, Utc};
    use proptest::prelude::*;
    use uuid::Uuid;

    prop_compose! {
        fn an_event()(id: u128, micros in 0i64..4_000_000_000_000_000, endpoint: Option<u128>, key in prop::option::of("\\PC{1,40}"),
            trace in prop::option::of("[0-9a-f-]{1,55}"), payload: Vec<u8>) -> Event {
            Event {
                id: EventId(Uuid::from_u128(id)),
                tenant: TenantId::default_tenant(),
                event_type: EventType::parse("order.created").unwrap(),
                endpoint: endpoint.map(|e| EndpointId(Uuid::from_u128(e))),
                key: key.map(|k| IdempotencyKey::parse(&k).unwrap()),
                accepted_at: Utc.timestamp_micros(micros).unwrap(),
                trace: trace.map(Into::into),
                payload: payload.into(),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(events in prop::collection::vec(an_event(), 0..20)) {
            let mut writer = BundleWriter::default();
            events.iter().for_each(|e| writer.push(e));
            prop_assert_eq!(decode(writer.finish()).unwrap(), events);
        }

        #[test]
        fn damaged_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }

        #[test]
        fn a_cut_bundle_is_refused(event in an_event(), cut in 1usize..20) {
            let mut writer = BundleWriter::default();
            writer.push(&event);
            let whole = writer.finish();
            let cut = whole.slice(..whole.len() - cut.min(whole.len() - 2));
            prop_assert!(decode(cut).is_err());
        }
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        assert_eq!(decode(Bytes::from_static(&[9, 1, 2])), Err(WireError::UnknownVersion(9)));
        assert_eq!(decode(Bytes::new()), Err(WireError::Damaged(0)));
    }

    #[test]
    fn limits_hold() {
        let event = Event {
            id: EventId(Uuid::nil()),
            tenant: TenantId::default_tenant(),
            event_type: EventType::trusted("a"),
            endpoint: None,
            key: None,
            accepted_at: Utc.timestamp_micros(0).unwrap(),
            trace: None,
            payload: Bytes::from(vec![b'1'; 2 * BYTES_MAX]),
        };
        let mut writer = BundleWriter::default();
        assert!(writer.fits(event.payload.len()), "a larger payload travels alone");
        writer.push(&event);
        assert!(!writer.fits(1));
        let mut writer = BundleWriter::default();
        for _ in 0..EVENTS_MAX {
            assert!(writer.fits(10));
            writer.push(&Event { payload: Bytes::from_static(b"1"), ..event.clone() });
        }
        assert!(!writer.fits(10));
        assert_eq!(writer.len(), EVENTS_MAX);
    }
}
