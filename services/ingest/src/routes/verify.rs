//! `POST /api/v1/inbound/verify`: checks a signature as a receiver would, by every scheme, and says why one fails.
//! Stores and relays nothing.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use relay_core::signature::{self, Check, Inbound, MISSING_HEADER, VERIFICATION_FAILED};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::CommonProblems;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::config::REQUEST_OVERHEAD_BYTES;
use crate::refusal::Refusal;
use crate::routes::body::{self, Sent};

/// What the check says.
#[derive(Debug, Serialize, ToSchema)]
pub struct Verdict {
    /// Something was checked, and all of it is right.
    valid: bool,
    /// How far the first signature's time is off, where it can be read.
    timestamp_age_seconds: Option<u64>,
    /// What is wrong, in the words that older clients know.
    error: Option<&'static str>,
    /// What is wrong: `missing_header`, `malformed_header`, `bad_key`, `expired`, `from_the_future` or `no_match`.
    reason: Option<&'static str>,
    /// The same in words, with the header that is meant.
    detail: Option<String>,
    /// Each scheme that could be checked.
    checks: Vec<SchemeVerdict>,
}

/// What the check of one scheme says.
#[derive(Debug, Serialize, ToSchema)]
pub struct SchemeVerdict {
    /// `webhook-relay`, `standard-v1` or `standard-v1a`.
    scheme: &'static str,
    valid: bool,
    timestamp_age_seconds: Option<u64>,
    reason: Option<&'static str>,
    detail: Option<String>,
}

impl SchemeVerdict {
    fn new(check: &Check) -> Self {
        Self {
            scheme: check.scheme.as_str(),
            valid: check.failure.is_none(),
            timestamp_age_seconds: check.timestamp_age_seconds,
            reason: check.failure.as_ref().map(|f| f.reason.as_str()),
            detail: check.failure.as_ref().map(|f| f.detail.clone()),
        }
    }
}

impl Verdict {
    fn new(verdict: &signature::Verdict) -> Self {
        let failure = verdict.failure();
        let error = if verdict.unchecked.is_some() { MISSING_HEADER } else { VERIFICATION_FAILED };
        Self {
            valid: verdict.valid(),
            timestamp_age_seconds: verdict.checks.first().and_then(|c| c.timestamp_age_seconds),
            error: failure.map(|_| error),
            reason: failure.map(|f| f.reason.as_str()),
            detail: failure.map(|f| f.detail.clone()),
            checks: verdict.checks.iter().map(SchemeVerdict::new).collect(),
        }
    }
}

/// Verify a signature
///
/// Send the body as it was received with its signature headers, and the secret (or, for `v1a`, the public key) to check
/// with. Always 200: the answer says whether the signatures are right, and if not, which and why.
#[utoipa::path(
    post,
    path = "/api/v1/inbound/verify",
    tag = "operations",
    operation_id = "verify_signature",
    params(
        ("X-Webhook-Signature" = Option<String>, Header, description = "As it was received"),
        ("webhook-id" = Option<String>, Header, description = "As it was received"),
        ("webhook-timestamp" = Option<String>, Header, description = "As it was received"),
        ("webhook-signature" = Option<String>, Header, description = "As it was received"),
        ("X-Webhook-Secret" = Option<String>, Header, description = "The endpoint's signing secret"),
        ("X-Webhook-Public-Key" = Option<String>, Header, description = "The endpoint's public key, `whpk_…`"),
    ),
    request_body(content = Option<String>, content_type = "application/octet-stream", description = "The body as it was received"),
    security(("api_key" = ["read"])),
    responses((status = 200, description = "The verdict", body = Verdict), CommonProblems)
)]
pub async fn verify(
    State(api): State<Api>,
    _: Caller,
    headers: HeaderMap,
    sent: Sent,
) -> Result<Json<Verdict>, Refusal> {
    let body = body::any(sent, api.payload_bytes_max + REQUEST_OVERHEAD_BYTES)?;
    let header = |name| headers.get(name).map(|v| v.as_bytes());
    let inbound = Inbound {
        x_webhook_signature: header("x-webhook-signature"),
        webhook_id: header("webhook-id"),
        webhook_timestamp: header("webhook-timestamp"),
        webhook_signature: header("webhook-signature"),
        secret: header("x-webhook-secret"),
        public_key: header("x-webhook-public-key"),
    };
    let verdict = signature::verify(&inbound, &body, api.links.clock.now().timestamp());
    Ok(Json(Verdict::new(&verdict)))
}
