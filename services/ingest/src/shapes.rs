//! What the interface shows: endpoints, events, deliveries, attempts, as JSON and as OpenAPI schemas. The
//! field names are part of the interface and stay. Secrets are shown by [`EndpointWithSecret`] only.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use relay_core::endpoint::Endpoint;
use relay_core::ids::{DeliveryId, EndpointId};
use relay_core::signature::SigningSecret;
use relay_store::{AttemptView, DeliveryView, EventSummary, EventView};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::refusal::Refusal;

/// Characters of a response body that are shown.
const RESPONSE_CHARS_MAX: usize = 10_000;

/// An endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Endpoint)]
pub struct EndpointShape {
    id: Uuid,
    name: String,
    url: String,
    /// Attempts in all.
    max_retries: u32,
    retry_backoff_base: f64,
    retry_max_delay_seconds: u32,
    /// Explicit delays, which replace the formula.
    retry_schedule_seconds: Option<Vec<u32>>,
    timeout_seconds: u64,
    event_types_filter: Vec<String>,
    /// Values of secret headers are never shown: `{"secret": true}` stands in their place, which a change takes for "as
    /// it is".
    custom_headers: BTreeMap<String, HeaderShape>,
    circuit_failure_threshold: u32,
    circuit_window_seconds: u64,
    circuit_recovery_seconds: u64,
    /// How often it is called at most; null: no limit.
    rate_limit: Option<RateLimitShape>,
    is_active: bool,
    paused: bool,
    /// A resume is under way: what was accepted before is being discarded, and then the pause ends.
    discard_before: Option<DateTime<Utc>>,
    /// Which signatures deliveries carry.
    signature_schemes: Vec<&'static str>,
    /// `whpk_` and base64: verifies the `v1a` signatures of Standard Webhooks.
    public_key: Option<String>,
    /// Until when deliveries are signed with the previous secret (and key) as well.
    previous_secret_until: Option<DateTime<Utc>>,
    /// The previous key's public half, until then.
    previous_public_key: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: Option<DateTime<Utc>>,
}

/// A rate limit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RateLimit)]
pub struct RateLimitShape {
    requests_per_second: f64,
    /// Requests that may come at once after a silence.
    burst: u32,
}

impl EndpointShape {
    /// What `endpoint` looks like at `now`.
    pub fn new(endpoint: &Endpoint, now: DateTime<Utc>) -> Self {
        let schedule = endpoint.retry.schedule_seconds.clone();
        // Where this process lacks their key, nothing can be said of them.
        let secrets = endpoint.secrets.as_ref().ok();
        let previous = secrets.and_then(|s| s.previous.as_ref()).filter(|p| p.until > now);
        let attempts = schedule.as_ref().and_then(|delays| u32::try_from(delays.len() + 1).ok());
        Self {
            id: endpoint.id.0,
            name: endpoint.name.clone(),
            url: endpoint.url.clone(),
            max_retries: attempts.unwrap_or(endpoint.retry.max_retries),
            retry_backoff_base: endpoint.retry.backoff_base,
            retry_max_delay_seconds: endpoint.retry.max_delay_seconds,
            retry_schedule_seconds: schedule,
            timeout_seconds: endpoint.timeout.as_secs(),
            event_types_filter: endpoint.filter.patterns().to_vec(),
            custom_headers: HeaderShape::of(endpoint),
            circuit_failure_threshold: endpoint.circuit.threshold,
            circuit_window_seconds: endpoint.circuit.window.as_secs(),
            circuit_recovery_seconds: endpoint.circuit.recovery.as_secs(),
            rate_limit: endpoint
                .rate_limit
                .map(|limit| RateLimitShape { requests_per_second: limit.per_second, burst: limit.burst }),
            is_active: endpoint.is_active,
            paused: endpoint.paused,
            discard_before: endpoint.discard_before,
            signature_schemes: endpoint.schemes.names(),
            public_key: secrets.and_then(|s| s.key.as_ref()).map(|key| key.public().to_string()),
            previous_secret_until: previous.map(|p| p.until),
            previous_public_key: previous.and_then(|p| p.key.as_ref()).map(|key| key.public().to_string()),
            created_at: endpoint.created_at,
            updated_at: endpoint.updated_at,
        }
    }
}

/// A custom header of an endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = CustomHeader)]
pub enum HeaderShape {
    /// Its value.
    Plain(String),
    /// It has a value that is not shown.
    Secret {
        /// Always true.
        secret: bool,
    },
}

impl HeaderShape {
    fn of(endpoint: &Endpoint) -> BTreeMap<String, Self> {
        let plain = endpoint.custom_headers.iter().map(|(name, value)| (name.clone(), Self::Plain(value.clone())));
        let secret = endpoint.secret_headers.iter().map(|name| (name.clone(), Self::Secret { secret: true }));
        plain.chain(secret).collect()
    }
}

/// An endpoint with its signing secret: the answer to its creation and to a rotation.
#[derive(Serialize, ToSchema)]
pub struct EndpointWithSecret {
    #[serde(flatten)]
    endpoint: EndpointShape,
    /// Shown only here. The whole string is the key of `X-Webhook-Signature`.
    signing_secret: String,
    /// For a secret that doesn't start with `whsec_`: the same one in the form that Standard Webhooks libraries
    /// take.
    #[serde(skip_serializing_if = "Option::is_none")]
    standard_webhooks_secret: Option<String>,
}

impl EndpointWithSecret {
    /// What a creation or a rotation that made `secret` answers.
    pub fn new(endpoint: &Endpoint, secret: &SigningSecret, now: DateTime<Utc>) -> Self {
        let standard = secret.standard_webhooks_form();
        let secret = secret.expose();
        Self {
            endpoint: EndpointShape::new(endpoint, now),
            signing_secret: secret.to_owned(),
            standard_webhooks_secret: (standard != secret).then_some(standard),
        }
    }
}

/// An event in short: the answer to `POST /events`, and an entry of the list.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventShape {
    id: Uuid,
    /// The one endpoint it is for, or that of its only delivery.
    endpoint_id: Option<Uuid>,
    event_type: String,
    /// `pending`, `delivering`, `failed` (waits for a retry), `delivered`, `dead_lettered`, `discarded` or
    /// `unmatched`; with several deliveries, that of the worst.
    status: &'static str,
    attempt_count: i64,
    created_at: DateTime<Utc>,
    delivered_at: Option<DateTime<Utc>>,
    next_retry_at: Option<DateTime<Utc>>,
}

impl EventShape {
    /// An event that was accepted just now.
    pub fn accepted(event: &relay_core::event::Event) -> Self {
        Self {
            id: event.id.0,
            endpoint_id: event.endpoint.map(|e| e.0),
            event_type: event.event_type.as_str().to_owned(),
            status: relay_core::delivery::Status::Pending.as_str(),
            attempt_count: 0,
            created_at: event.accepted_at,
            delivered_at: None,
            next_retry_at: None,
        }
    }

    /// An event of a list.
    pub fn of_summary(event: &EventSummary) -> Self {
        Self {
            id: event.id.0,
            endpoint_id: event.endpoint.map(|e| e.0),
            event_type: event.event_type.as_str().to_owned(),
            status: event.status.as_str(),
            attempt_count: event.attempts,
            created_at: event.accepted_at,
            delivered_at: event.delivered_at,
            next_retry_at: event.next_retry_at,
        }
    }

    /// A stored event: what differs between its deliveries is that of the only one, or of the worst.
    pub fn of_view(view: &EventView) -> Self {
        let shape = Self::of_summary(&view.summary);
        match speaker(view) {
            None => shape,
            Some(delivery) => Self {
                endpoint_id: Some(delivery.endpoint.0),
                attempt_count: delivery.attempts.into(),
                delivered_at: delivery.delivered_at,
                next_retry_at: delivery.next_retry_at,
                ..shape
            },
        }
    }
}

/// The delivery that an event's flat fields speak of.
fn speaker(view: &EventView) -> Option<&DeliveryView> {
    view.deliveries.iter().find(|d| d.status == view.summary.status).or(view.deliveries.first())
}

/// A delivery: one event on its way to one endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryShape {
    id: Uuid,
    endpoint_id: Uuid,
    status: &'static str,
    attempt_count: i32,
    next_retry_at: Option<DateTime<Utc>>,
    delivered_at: Option<DateTime<Utc>>,
    last_http_status: Option<u16>,
    last_error: Option<String>,
    attempts: Vec<AttemptShape>,
}

/// One POST of a delivery.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Attempt)]
pub struct AttemptShape {
    id: Uuid,
    event_id: Uuid,
    delivery_id: Uuid,
    endpoint_id: Uuid,
    attempt_number: i32,
    http_status_code: Option<u16>,
    success: bool,
    /// Stable class of the error, where there was no answer.
    error_class: Option<String>,
    error_message: Option<String>,
    /// From the start to the end of the answer, in milliseconds.
    duration_ms: f64,
    /// Until connected; null on a connection that was open already.
    connect_ms: Option<f64>,
    /// Until the answer's headers.
    first_byte_ms: Option<f64>,
    attempted_at: DateTime<Utc>,
    /// Without signatures and other secrets.
    request_headers: BTreeMap<String, String>,
    response_headers: BTreeMap<String, String>,
    /// The first 10,000 characters.
    response_body: Option<String>,
}

/// An event with its payload, deliveries and attempts.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventDetail {
    #[serde(flatten)]
    event: EventShape,
    /// As it came, byte for byte.
    #[schema(value_type = serde_json::Value)]
    payload: Box<RawValue>,
    idempotency_key: Option<String>,
    /// Of the only delivery, or of the worst.
    attempts: Vec<AttemptShape>,
    /// One per endpoint.
    deliveries: Vec<DeliveryShape>,
}

impl AttemptShape {
    /// What `attempt` looks like.
    pub fn new(attempt: &AttemptView) -> Self {
        let body: String = String::from_utf8_lossy(&attempt.excerpt).chars().take(RESPONSE_CHARS_MAX).collect();
        Self {
            id: attempt.id.0,
            event_id: attempt.event.0,
            delivery_id: DeliveryId::derive(attempt.event, attempt.endpoint).0,
            endpoint_id: attempt.endpoint.0,
            attempt_number: attempt.number,
            http_status_code: attempt.http_status,
            success: attempt.success,
            error_class: attempt.error_class.clone(),
            error_message: attempt.error.clone(),
            duration_ms: millis(attempt.total_us),
            connect_ms: attempt.connect_us.map(millis),
            first_byte_ms: attempt.first_byte_us.map(millis),
            attempted_at: attempt.attempted_at,
            request_headers: header_map(&attempt.request_headers),
            response_headers: header_map(&attempt.response_headers),
            response_body: attempt.http_status.map(|_| body),
        }
    }
}

impl EventDetail {
    /// All that is known of an event. Fails only on a stored payload that isn't JSON.
    pub fn new(view: &EventView) -> Result<Self, Refusal> {
        let event = view.summary.id;
        let payload = std::str::from_utf8(&view.payload)
            .ok()
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| Refusal::Internal(format!("the stored payload of event {event} is not JSON")))?;
        let mut by_endpoint: HashMap<EndpointId, Vec<AttemptShape>> = HashMap::new();
        for attempt in &view.attempts {
            by_endpoint.entry(attempt.endpoint).or_default().push(AttemptShape::new(attempt));
        }
        by_endpoint.values_mut().for_each(|list| list.sort_by_key(|a| (a.attempt_number, a.attempted_at)));
        let spoken_of = speaker(view).and_then(|d| by_endpoint.get(&d.endpoint)).cloned().unwrap_or_default();
        let deliveries = view
            .deliveries
            .iter()
            .map(|delivery| DeliveryShape {
                id: DeliveryId::derive(event, delivery.endpoint).0,
                endpoint_id: delivery.endpoint.0,
                status: delivery.status.as_str(),
                attempt_count: delivery.attempts,
                next_retry_at: delivery.next_retry_at,
                delivered_at: delivery.delivered_at,
                last_http_status: delivery.last_status,
                last_error: delivery.last_error.clone(),
                attempts: by_endpoint.remove(&delivery.endpoint).unwrap_or_default(),
            })
            .collect();
        Ok(Self {
            event: EventShape::of_view(view),
            payload,
            idempotency_key: view.key.clone(),
            attempts: spoken_of,
            deliveries,
        })
    }
}

/// Microseconds as milliseconds with two decimals.
fn millis(us: i32) -> f64 {
    two_decimals(f64::from(us) / 1000.0)
}

/// Rounded to two decimals, as the interface shows shares and times.
pub fn two_decimals(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// `name: value` lines as a map; a repeated name's values are joined by a comma, as HTTP has it.
fn header_map(lines: &[u8]) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for line in String::from_utf8_lossy(lines).lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        map.entry(name.trim().to_ascii_lowercase())
            .and_modify(|joined| {
                joined.push_str(", ");
                joined.push_str(value.trim());
            })
            .or_insert_with(|| value.trim().to_owned());
    }
    map
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::TimeZone;
    use relay_core::delivery::Status;
    use relay_core::event::EventType;
    use relay_core::ids::{AttemptId, EventId, TenantId};

    use super::*;

    fn at(secs: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(secs, 0).unwrap()
    }

    fn delivery(n: u128, status: Status, attempts: i32) -> DeliveryView {
        DeliveryView {
            endpoint: EndpointId(Uuid::from_u128(n)),
            status,
            attempts,
            next_retry_at: (status == Status::Failed).then(|| at(9)),
            delivered_at: (status == Status::Delivered).then(|| at(5)),
            last_status: Some(500),
            last_error: None,
        }
    }

    fn view(deliveries: Vec<DeliveryView>, attempts: Vec<AttemptView>) -> EventView {
        EventView {
            summary: EventSummary {
                id: EventId(Uuid::from_u128(1)),
                event_type: EventType::trusted("order.created"),
                endpoint: None,
                accepted_at: at(1),
                status: Status::of_event(deliveries.iter().map(|d| d.status)),
                fanout: 2,
                attempts: 7,
                delivered_at: None,
                next_retry_at: None,
            },
            tenant: TenantId::default_tenant(),
            key: None,
            trace: None,
            payload: Bytes::from_static(br#"{ "b": 1.0, "a": 1e400 }"#),
            deliveries,
            attempts,
        }
    }

    fn attempt(endpoint: u128, number: i32, excerpt: Vec<u8>) -> AttemptView {
        AttemptView {
            id: AttemptId(Uuid::from_u128(u128::from(number.unsigned_abs()))),
            event: EventId(Uuid::from_u128(1)),
            endpoint: EndpointId(Uuid::from_u128(endpoint)),
            number,
            attempted_at: at(2),
            success: false,
            http_status: Some(500),
            error_class: None,
            error: None,
            total_us: 1_239,
            connect_us: None,
            first_byte_us: Some(1_000),
            request_headers: Bytes::from_static(b"Content-Type: application/json\n"),
            response_headers: Bytes::from_static(b"a: 1\nA: 2\nno colon\nb:x:y\n"),
            excerpt: excerpt.into(),
            pod: "p".to_owned(),
        }
    }

    #[test]
    fn the_flat_fields_speak_of_the_worst_delivery() {
        let view = view(
            vec![delivery(1, Status::Delivered, 1), delivery(2, Status::Failed, 2)],
            vec![attempt(2, 2, vec![]), attempt(1, 1, vec![]), attempt(2, 1, vec![])],
        );
        let json = serde_json::to_string(&EventDetail::new(&view).unwrap()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json.replace("1e400", "1")).unwrap();
        assert_eq!(json["status"], "failed");
        assert_eq!(json["endpoint_id"], Uuid::from_u128(2).to_string());
        assert_eq!(json["attempt_count"], 2);
        assert!(json["delivered_at"].is_null());
        assert_eq!(json["next_retry_at"], "1970-01-01T00:00:09Z");
        assert_eq!(json["attempts"][0]["attempt_number"], 1);
        assert_eq!(json["attempts"][1]["attempt_number"], 2);
        assert_eq!(json["deliveries"][0]["attempts"].as_array().unwrap().len(), 1);
        assert_eq!(json["deliveries"][1]["attempts"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_payload_is_shown_as_it_came() {
        let text = serde_json::to_string(&EventDetail::new(&view(vec![], vec![])).unwrap()).unwrap();
        assert!(text.contains(r#""payload":{ "b": 1.0, "a": 1e400 }"#), "{text}");
        assert!(text.contains(r#""status":"unmatched""#), "{text}");
    }

    #[test]
    fn attempts_show_the_first_characters_and_readable_headers() {
        let mut excerpt = vec![0xff, 0];
        excerpt.extend("é".repeat(10_000).bytes());
        let shape = AttemptShape::new(&attempt(1, 1, excerpt));
        let body = shape.response_body.unwrap();
        assert_eq!(body.chars().count(), 10_000);
        assert!(body.starts_with("\u{fffd}\0é"));
        assert_eq!(shape.duration_ms, 1.24);
        assert_eq!(
            shape.response_headers,
            BTreeMap::from([("a".to_owned(), "1, 2".to_owned()), ("b".to_owned(), "x:y".to_owned())])
        );
    }
}
