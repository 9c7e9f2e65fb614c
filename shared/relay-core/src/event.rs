//! What an event is: its type, its payload, and the limits on both. Step 2 of an event's way.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::ids::{EndpointId, EventId, IdempotencyKey, TenantId};

/// The default limit on one payload, in bytes (1 MiB).
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// How deep a payload's arrays and objects may nest.
pub const PAYLOAD_DEPTH_MAX: usize = 128;
/// The longest event type, in characters.
pub const TYPE_CHARS_MAX: usize = 255;
/// The longest `traceparent` that is carried along, in bytes.
pub const TRACE_BYTES_MAX: usize = 128;

/// An event type: dot-separated tokens of visible ASCII without `*` and `>`, so that it can stand in a NATS
/// subject and in an HTTP header as it is. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventType(Arc<str>);

/// Why a text is no event type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEventType {
    /// Empty, or an empty token ("a..b").
    #[error("an event type is one or more non-empty tokens separated by dots")]
    EmptyToken,
    /// More than [`TYPE_CHARS_MAX`] characters.
    #[error("an event type has at most 255 characters")]
    TooLong,
    /// Something other than visible ASCII, or `*` or `>`.
    #[error("an event type consists of visible ASCII characters other than '*' and '>'")]
    BadCharacter,
}

impl EventType {
    /// Checks the grammar.
    pub fn parse(text: &str) -> Result<Self, InvalidEventType> {
        if text.len() > TYPE_CHARS_MAX {
            return Err(InvalidEventType::TooLong);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>') {
            return Err(InvalidEventType::BadCharacter);
        }
        if text.split('.').any(str::is_empty) {
            return Err(InvalidEventType::EmptyToken);
        }
        Ok(Self(text.into()))
    }

    /// A type that we wrote ourselves (a row, a frame): taken as it is.
    pub fn trusted(text: &str) -> Self {
        Self(text.into())
    }

    /// The type.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An accepted event, as it travels from ingest to the dispatcher and into `events`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its identity.
    pub id: EventId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its type.
    pub event_type: EventType,
    /// The one endpoint that it is for; without it, every endpoint whose filter matches.
    pub endpoint: Option<EndpointId>,
    /// The producer's idempotency key.
    pub key: Option<IdempotencyKey>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// The producer's `traceparent`, carried through to the endpoint.
    pub trace: Option<Arc<str>>,
    /// The payload's bytes, kept, signed and sent exactly as they came.
    pub payload: Bytes,
}

/// Why bytes can't be a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPayload {
    /// Over the limit.
    #[error("the payload has {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// How many there are.
        bytes: usize,
        /// How many may be.
        limit: usize,
    },
    /// Not JSON (RFC 8259) in UTF-8, or nested deeper than [`PAYLOAD_DEPTH_MAX`].
    #[error("the payload is not valid JSON: {0}")]
    NotJson(String),
}

/// SHA-256 of a payload: what tells one payload from another without holding both.
pub fn payload_digest(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

/// Checks that `bytes` are one JSON value in UTF-8 within the limits. The bytes themselves are kept as they are.
pub fn check_payload(bytes: &[u8], limit: usize) -> Result<(), InvalidPayload> {
    if bytes.len() > limit {
        return Err(InvalidPayload::TooLarge { bytes: bytes.len(), limit });
    }
    // `&RawValue` checks the whole text without building a value, and without a limit on nesting.
    let text = std::str::from_utf8(bytes).map_err(|e| InvalidPayload::NotJson(format!("not UTF-8: {e}")))?;
    serde_json::from_str::<&serde_json::value::RawValue>(text).map_err(|e| InvalidPayload::NotJson(e.to_string()))?;
    if nesting(bytes) > PAYLOAD_DEPTH_MAX {
        return Err(InvalidPayload::NotJson(format!("nested deeper than {PAYLOAD_DEPTH_MAX}")));
    }
    Ok(())
}

/// How deep valid JSON nests.
pub fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in json {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (false, b'"') => in_string = true,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_the_grammar() {
        for good in ["order.created", "a", "Order.Created.v2", "x/y.z", "a-b_c"] {
            assert!(EventType::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "é", "a\n", &"x".repeat(256)] {
            assert!(EventType::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn payloads_are_any_json_kept_as_it_is() {
        for good in ["{}", "null", "1e400", " [1, 2] ", r#"{"a":1,"a":2}"#, "\"\\u0000\"", "18446744073709551616"] {
            assert_eq!(check_payload(good.as_bytes(), 100), Ok(()), "{good}");
        }
        for bad in [&b""[..], b"{", b"nul", b"NaN", b"\"\xff\"", b"{} {}", b"'a'"] {
            assert!(matches!(check_payload(bad, 100), Err(InvalidPayload::NotJson(_))), "{bad:?}");
        }
        assert!(matches!(check_payload(b"\"aaaa\"", 5), Err(InvalidPayload::TooLarge { bytes: 6, limit: 5 })));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(check_payload(deep(PAYLOAD_DEPTH_MAX).as_bytes(), 10_000).is_ok());
        assert!(check_payload(deep(PAYLOAD_DEPTH_MAX + 1).as_bytes(), 10_000).is_err());
        assert!(check_payload(format!("\"{}\"", "[".repeat(500)).as_bytes(), 10_000).is_ok());
        assert!(check_payload(deep(100_000).as_bytes(), 1_000_000).is_err());
    }
}
