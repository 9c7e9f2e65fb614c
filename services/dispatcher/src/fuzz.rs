//! Fuzz target: a message as a stranger can publish it, with its headers.

use bytes::Bytes;
use chrono::{TimeZone as _, Utc};
use relay_bus::StoredMessage;
use relay_core::event::{TRACE_BYTES_MAX, check_payload};
use relay_fuzz::{fuzz, parts, text};

use crate::decode::{Decoded, decode};

const PAYLOAD_MAX: usize = 4096;

#[test]
fn messages() {
    let seeds = [
        &b"relay.events.default.order.created\xff\xff\xff\xff{\"a\":1}"[..],
        b"relay.events.acme.a\xffkey\xff0190a5b2-7c00-7000-8000-000000000001\xff00-1-2-01\xff1",
        b"relay.bundles.0\xff\xff\xff\xff\x01",
        b"relay.bundles.0\xff\xff\xff\xff\x09",
        b"relay.events.Default\xffk\xffx\xff\xff{",
    ];
    let words: &[&[u8]] = &[b"relay.events.", b"relay.bundles.0", b"\xff", b".", b"_relay", b"{}"];
    fuzz("messages", &seeds, words, |input| {
        let [subject, msg_id, endpoint_id, trace, payload] = parts(input);
        let header = |bytes| text(bytes).filter(|text| !text.is_empty()).map(str::to_owned);
        let message = StoredMessage {
            subject: text(subject)?.to_owned(),
            msg_id: header(msg_id),
            endpoint_id: header(endpoint_id),
            trace: header(trace),
            payload: Bytes::copy_from_slice(payload),
            stream: "EVENTS",
            sequence: 7,
            published: Utc.timestamp_opt(1_700_000_000, 0).unwrap(),
        };
        let decoded = decode(&message, PAYLOAD_MAX);
        assert_eq!(decoded, decode(&message, PAYLOAD_MAX), "a redelivery is read the same");
        Some(match decoded {
            Decoded::Events(events) => {
                if message.subject.starts_with("relay.events.") {
                    let [event] = events.as_slice() else { panic!("a direct message is one event") };
                    assert_eq!(event.payload, message.payload);
                    assert!(check_payload(&event.payload, PAYLOAD_MAX).is_ok());
                    assert_eq!(
                        event.endpoint.is_some(),
                        message.endpoint_id.is_some(),
                        "an endpoint is never left out"
                    );
                    assert_eq!(event.key.as_ref().map(|key| key.as_str()), message.msg_id.as_deref());
                    assert!(event.trace.as_ref().is_none_or(|trace| trace.len() <= TRACE_BYTES_MAX));
                }
                format!("{} events", events.len())
            }
            Decoded::Unusable(unusable) => {
                let letter = unusable.letter();
                assert_eq!((&letter.payload, &letter.subject[..]), (&message.payload, message.subject.as_bytes()));
                assert!(!letter.error.is_empty());
                format!("{:?}", letter.reason)
            }
            Decoded::Newer(version) => format!("version {version}"),
        })
    });
}
