//! A dead letter as the interface shows it. The field names are part of the interface and stay.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use relay_core::delivery::DeadReason;
use relay_core::ids::DeliveryId;
use relay_store::{AttemptView, DeadLetter};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

/// A dead letter.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct LetterShape {
    id: Uuid,
    /// The event; null for a message that never became one.
    event_id: Option<Uuid>,
    /// The endpoint that did not get it; null for a message that never became an event.
    endpoint_id: Option<Uuid>,
    /// The delivery; null for a message that never became an event.
    delivery_id: Option<Uuid>,
    /// The payload, as it was sent; null where it is no JSON, or not kept any more.
    #[schema(value_type = Option<serde_json::Value>)]
    original_payload: Option<Box<RawValue>>,
    /// The bytes of a message that is no JSON.
    raw_base64: Option<String>,
    /// The NATS subject of a message that never became an event.
    subject: Option<String>,
    event_type: Option<String>,
    total_attempts: i32,
    last_error: Option<String>,
    last_http_status: Option<u16>,
    /// Why it is here.
    #[schema(value_type = String, example = "exhausted")]
    reason: DeadReason,
    /// `open`, `replayed`, `resolved` (delivered after all) or `discarded`.
    state: &'static str,
    replayed_at: Option<DateTime<Utc>>,
    replay_count: i32,
    /// The new event that it was last replayed as, where that is not its own.
    new_event_id: Option<Uuid>,
    dead_lettered_at: DateTime<Utc>,
    /// The last 100 attempts, oldest first; only where one letter is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<LetterAttempt>>,
}

/// One attempt at what became a dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub struct LetterAttempt {
    id: Uuid,
    attempt_number: i32,
    attempted_at: DateTime<Utc>,
    success: bool,
    http_status_code: Option<u16>,
    /// Stable class of the error, where there was no answer.
    error_class: Option<String>,
    error_message: Option<String>,
    /// From the start to the end of the answer, in milliseconds.
    duration_ms: f64,
    /// The first 10,000 characters.
    response_body: Option<String>,
}

/// Characters of an answer that are shown.
const ANSWER_CHARS_MAX: usize = 10_000;

impl From<AttemptView> for LetterAttempt {
    fn from(attempt: AttemptView) -> Self {
        let answer = String::from_utf8_lossy(&attempt.excerpt);
        Self {
            id: attempt.id.0,
            attempt_number: attempt.number,
            attempted_at: attempt.attempted_at,
            success: attempt.success,
            http_status_code: attempt.http_status,
            error_class: attempt.error_class,
            error_message: attempt.error,
            duration_ms: f64::from(attempt.total_us) / 1000.0,
            response_body: attempt.http_status.map(|_| answer.chars().take(ANSWER_CHARS_MAX).collect()),
        }
    }
}

impl LetterShape {
    /// With its attempts.
    #[must_use]
    pub fn with_attempts(self, attempts: Vec<AttemptView>) -> Self {
        Self { attempts: Some(attempts.into_iter().map(LetterAttempt::from).collect()), ..self }
    }
}

impl From<DeadLetter> for LetterShape {
    fn from(letter: DeadLetter) -> Self {
        let json = letter.payload.as_deref().and_then(|payload| serde_json::from_slice::<Box<RawValue>>(payload).ok());
        let raw = letter.payload.filter(|_| json.is_none() || letter.reason == DeadReason::Malformed);
        Self {
            id: letter.id.0,
            event_id: letter.endpoint.map(|_| letter.event.0),
            endpoint_id: letter.endpoint.map(|endpoint| endpoint.0),
            delivery_id: letter.endpoint.map(|endpoint| DeliveryId::derive(letter.event, endpoint).0),
            original_payload: json,
            raw_base64: raw.map(|raw| STANDARD.encode(raw)),
            subject: letter.subject.map(|subject| String::from_utf8_lossy(&subject).into_owned()),
            event_type: letter.event_type,
            total_attempts: letter.attempts,
            last_error: letter.error,
            last_http_status: letter.last_status,
            reason: letter.reason,
            state: letter.state.as_str(),
            replayed_at: letter.replayed_at,
            replay_count: letter.replay_count,
            new_event_id: letter.replayed_as.map(|event| event.0),
            dead_lettered_at: letter.dead_lettered_at,
            attempts: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use relay_core::ids::{DeadLetterId, EndpointId, EventId, TenantId};
    use relay_store::LetterState;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: DeadLetterId(Uuid::from_u128(1)),
            event: EventId(Uuid::from_u128(2)),
            endpoint: Some(EndpointId(Uuid::from_u128(3))),
            tenant: Some(TenantId::default_tenant()),
            event_type: Some("order.created".to_owned()),
            state: LetterState::Open,
            reason: DeadReason::Permanent,
            error: Some("HTTP 400".to_owned()),
            last_status: Some(400),
            attempts: 1,
            replay_count: 0,
            replayed_at: None,
            replayed_as: None,
            dead_lettered_at: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            payload: Some(Bytes::from_static(br#"{"b": 1.0, "a":1e400}"#)),
            subject: None,
        }
    }

    #[test]
    fn payloads_keep_their_bytes() {
        let text = serde_json::to_string(&LetterShape::from(letter())).unwrap();
        assert!(text.contains(r#""original_payload":{"b": 1.0, "a":1e400}"#), "{text}");
        assert!(text.contains(r#""raw_base64":null"#) && text.contains(r#""reason":"permanent""#), "{text}");
    }

    #[test]
    fn a_malformed_message_is_shown_with_its_bytes_and_subject() {
        let malformed = DeadLetter {
            endpoint: None,
            reason: DeadReason::Malformed,
            payload: Some(Bytes::from_static(b"{\xff")),
            subject: Some(Bytes::from_static(b"relay.events.default.x")),
            ..letter()
        };
        let json = serde_json::to_value(LetterShape::from(malformed)).unwrap();
        assert_eq!(json["raw_base64"], "e/8=");
        assert_eq!(json["subject"], "relay.events.default.x");
        for absent in ["original_payload", "event_id", "endpoint_id", "delivery_id"] {
            assert!(json[absent].is_null(), "{absent}");
        }
    }
}
