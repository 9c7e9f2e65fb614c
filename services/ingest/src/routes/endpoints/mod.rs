//! The routes of endpoints, one file each. Every change is known to this pod's directory before it is answered,
//! and the other pods are told.

pub mod attempts;
pub mod circuit;
pub mod create;
pub mod delete;
pub mod end_overlap;
pub mod get;
pub mod list;
pub mod patch;
pub mod resume;
pub mod rotate_secret;
pub mod stats;
pub mod test;

/// Bytes of a request about an endpoint at most.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// An endpoint to be registered.
// For the document: its fields are read by `crate::settings`.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct EndpointRequest {
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// http or https; private networks only where the operator allows them.
    #[schema(max_length = 2048)]
    url: String,
    #[serde(flatten)]
    #[schema(inline)]
    options: EndpointOptions,
    /// A secret to move in with, 16 to 256 printable characters; without it one is made.
    #[schema(min_length = 16, max_length = 256)]
    signing_secret: Option<String>,
}

/// A change of an endpoint: what is not there stays.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct EndpointChangeRequest {
    #[schema(min_length = 1, max_length = 255)]
    name: Option<String>,
    #[schema(max_length = 2048)]
    url: Option<String>,
    #[serde(flatten)]
    #[schema(inline)]
    options: EndpointOptions,
    /// Inactive endpoints take no events; what waits for them becomes dead letters.
    is_active: Option<bool>,
    /// Deliveries to a paused endpoint wait.
    paused: Option<bool>,
}

/// A custom header: its value, or the value and whether it is secret.
#[derive(utoipa::ToSchema)]
#[schema(as = CustomHeaderRequest)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub enum HeaderRequest {
    /// Shown with the endpoint.
    Plain(String),
    /// Secret, or not.
    Marked {
        /// Without it the stored value stays, where `secret` is true.
        #[schema(max_length = 4096)]
        value: Option<String>,
        /// Whether it is stored encrypted and never shown again.
        #[schema(default = false)]
        secret: Option<bool>,
    },
}

/// What both have.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct EndpointOptions {
    /// Attempts in all.
    #[schema(minimum = 1, maximum = 20, default = 5)]
    max_retries: Option<u32>,
    #[schema(minimum = 1.0, maximum = 10.0, default = 2.0)]
    retry_backoff_base: Option<f64>,
    #[schema(minimum = 60, maximum = 86400, default = 3600)]
    retry_max_delay_seconds: Option<u32>,
    /// Explicit delays in seconds, which replace the formula; null goes back to it.
    #[schema(min_items = 1, max_items = 19)]
    retry_schedule_seconds: Option<Vec<u32>>,
    #[schema(minimum = 5, maximum = 120, default = 30)]
    timeout_seconds: Option<u32>,
    /// Event types; `order.*` and `order.>` work as in NATS subjects. Empty: all.
    event_types_filter: Option<Vec<String>>,
    /// Headers that go with each delivery. `{"value": "…", "secret": true}` marks a value secret: it is stored encrypted and
    /// never shown again. Headers that a change doesn't mention go; `{"secret": true}` without a value keeps what is stored.
    #[schema(example = json!({"X-Team": "blue", "X-Api-Key": {"value": "s3cr3t", "secret": true}}))]
    custom_headers: Option<std::collections::BTreeMap<String, HeaderRequest>>,
    /// `webhook-relay` (header `X-Webhook-Signature`, as the `stripe` libraries verify it), `standard-v1` and
    /// `standard-v1a` (header `webhook-signature` of Standard Webhooks: HMAC and Ed25519).
    #[schema(min_items = 1, default = json!(["webhook-relay", "standard-v1"]))]
    signature_schemes: Option<Vec<String>>,
    #[schema(minimum = 1, maximum = 100, default = 5)]
    circuit_failure_threshold: Option<u32>,
    #[schema(minimum = 1, maximum = 3600, default = 60)]
    circuit_window_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 3600, default = 300)]
    circuit_recovery_seconds: Option<u32>,
    /// Null: no limit.
    rate_limit: Option<RateLimitRequest>,
}

/// How often an endpoint is called at most, by all deliverers together. What comes faster waits.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct RateLimitRequest {
    #[schema(minimum = 0.1, maximum = 10000.0)]
    requests_per_second: f64,
    /// Requests that may come at once after a silence; without it a second's worth.
    #[schema(minimum = 1, maximum = 10000)]
    burst: Option<u32>,
}
