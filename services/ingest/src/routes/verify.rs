//! `POST /api/v1/inbound/verify`: checks a signature as a receiver would. Stores and relays nothing.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use relay_core::signature::verify_inbound;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::CommonProblems;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::config::REQUEST_OVERHEAD_BYTES;
use crate::refusal::Refusal;
use crate::routes::body;

/// What the check says.
#[derive(Serialize, ToSchema)]
pub struct Verdict {
    /// Signature and time are right.
    valid: bool,
    /// How far the signature's time is off, where it can be read.
    timestamp_age_seconds: Option<i64>,
    /// What is wrong.
    error: Option<&'static str>,
}

/// Verify a signature
///
/// Always 200: the answer says whether the signature is right.
#[utoipa::path(
    post,
    path = "/api/v1/inbound/verify",
    tag = "operations",
    operation_id = "verify_signature",
    params(("X-Webhook-Signature" = Option<String>, Header), ("X-Webhook-Secret" = Option<String>, Header)),
    request_body(content = Option<String>, content_type = "application/octet-stream", description = "The body as it was received"),
    security(("api_key" = ["read"])),
    responses((status = 200, description = "The verdict", body = Verdict), CommonProblems)
)]
pub async fn verify(
    State(api): State<Api>,
    _: Caller,
    headers: HeaderMap,
    sent: Result<Bytes, BytesRejection>,
) -> Result<Json<Verdict>, Refusal> {
    let body = body::any(sent, api.payload_bytes_max + REQUEST_OVERHEAD_BYTES)?;
    let header = |name| headers.get(name).map(|v| v.as_bytes()).filter(|v| !v.is_empty());
    let (Some(signature), Some(secret)) = (header("x-webhook-signature"), header("x-webhook-secret")) else {
        return Ok(Json(Verdict {
            valid: false,
            timestamp_age_seconds: None,
            error: Some("Missing X-Webhook-Signature or X-Webhook-Secret header"),
        }));
    };
    let secret = String::from_utf8_lossy(secret);
    let verdict = verify_inbound(signature, &secret, &body, api.links.clock.now().timestamp());
    Ok(Json(Verdict {
        valid: verdict.valid,
        timestamp_age_seconds: verdict.timestamp_age_seconds,
        error: verdict.error,
    }))
}
