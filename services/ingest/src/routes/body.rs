//! The bodies of requests: JSON by their content type, within the limit.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};

use relay_runtime::extract::is_json;

use crate::refusal::Refusal;

/// The body of a request that must say that it is JSON.
pub fn json(headers: &HeaderMap, sent: Result<Bytes, BytesRejection>, limit: usize) -> Result<Bytes, Refusal> {
    // Spares the hot path the general look at the header.
    let is_plain = headers.get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json");
    if !is_plain && !is_json(headers) {
        return Err(Refusal::NotJsonType);
    }
    any(sent, limit)
}

/// The body of a request, of whatever type. `limit` is what the refusal names, in bytes.
pub fn any(sent: Result<Bytes, BytesRejection>, limit: usize) -> Result<Bytes, Refusal> {
    sent.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge { limit },
        _ => Refusal::Malformed("the body could not be read to its end".to_owned()),
    })
}
