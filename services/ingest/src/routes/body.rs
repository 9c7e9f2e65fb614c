//! The bodies of requests: JSON by their content type, within the limit.

use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use relay_runtime::extract::is_json;
use relay_runtime::http::{Held, NotRead};

use crate::refusal::Refusal;

/// Whether a request says that its body is JSON.
#[derive(Clone, Copy)]
pub struct SaysJson(pub bool);

impl<S: Sync> FromRequestParts<S> for SaysJson {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // The usual spelling spares the hot path the general look at the header.
        let is_plain = parts.headers.get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json");
        Ok(Self(is_plain || is_json(&parts.headers)))
    }
}

/// The body of a request, or why it could not be read. It holds its room as long as any slice of it is there: an event may
/// wait in the committer when its client has gone.
pub struct Sent(pub Result<Bytes, BytesRejection>);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        let held = request.extensions().get::<Held>().cloned();
        let read = Bytes::from_request(request, state).await;
        Ok(Self(match held {
            Some(held) => read.map(|body| held.keep(body)),
            None => read,
        }))
    }
}

/// The body of a request that must say that it is JSON. `limit` is what the refusal names, in bytes.
pub fn json(said: SaysJson, sent: Sent, limit: usize) -> Result<Bytes, Refusal> {
    if !said.0 {
        return Err(Refusal::NotJsonType);
    }
    any(sent, limit)
}

/// The body of a request, of whatever type. `limit` is what the refusal names, in bytes.
pub fn any(sent: Sent, limit: usize) -> Result<Bytes, Refusal> {
    sent.0.map_err(|rejection| match (NotRead::in_error(&rejection), rejection.status()) {
        (Some(why), _) => Refusal::NotRead(why),
        (None, StatusCode::PAYLOAD_TOO_LARGE) => Refusal::TooLarge { limit },
        (None, _) => Refusal::Malformed("the body could not be read to its end".to_owned()),
    })
}
