//! What is written down about every request: its id, how long it took, one log line, one measurement.
//!
//! The log line says `method, path, status, ms, request_id`: at `warn` for our own faults, at `info` for refusals, at
//! `debug` for the rest. Queries and headers are not in it: they may hold secrets. A flood of refusals doesn't become a flood
//! of lines: 20 a second are written, the others counted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RESPONSE_TIME: HeaderName = HeaderName::from_static("x-response-time-ms");
/// The longest id that is taken from a client.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// Lines about requests that were refused or failed, in one window at most.
const LINES_MAX: u32 = 20;
const LINES_WINDOW: Duration = Duration::from_secs(1);

/// How many lines were written about requests that were refused or failed. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Window>>);

#[derive(Default)]
struct Window {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Lines {
    /// Whether one more line may be written; with the first of a window, how many were left out before.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if window.since.is_none_or(|since| now.duration_since(since) >= LINES_WINDOW) {
            left_out = window.left_out;
            *window = Window { since: Some(now), written: 0, left_out: 0 };
        }
        if window.written >= LINES_MAX {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(left_out)
    }
}

/// The id of a request, in its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub HeaderValue);

pub(super) async fn observe(State(lines): State<Lines>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_harmless(id)).cloned().unwrap_or_else(fresh_id);
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().cloned();

    let mut response = next.run(request).await;

    let took = started.elapsed();
    let status = response.status().as_u16();
    let ms = took.as_secs_f64() * 1000.0;
    let shown = id.to_str().unwrap_or_default();
    let left_out = if status >= 400 { lines.take(Instant::now()) } else { Some(0) };
    if let Some(left_out @ 1..) = left_out {
        tracing::warn!(left_out, "more requests were refused or failed; the metrics have them all");
    }
    match status {
        _ if left_out.is_none() => {}
        500.. => tracing::warn!(%method, path, status, ms, request_id = shown, "request failed"),
        400..500 => tracing::info!(%method, path, status, ms, request_id = shown, "request refused"),
        _ => tracing::debug!(%method, path, status, ms, request_id = shown, "request"),
    }
    // By route, not by path: the number of series stays bounded.
    let route = route.as_ref().map_or("none", MatchedPath::as_str).to_owned();
    metrics::histogram!("relay_http_request_seconds", "method" => method_label(&method), "route" => route, "status" => class(status))
        .record(took.as_secs_f64());
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    // What tenants stored comes back as data, never as a page; answers may hold secrets.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::try_from(format!("{ms:.2}")) {
        headers.insert(RESPONSE_TIME, value);
    }
    response
}

/// Methods come from clients: those we don't know share one label.
fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        _ => "other",
    }
}

fn class(status: u16) -> &'static str {
    match status {
        500.. => "5xx",
        400.. => "4xx",
        300.. => "3xx",
        _ => "2xx",
    }
}

/// Whether a client's id can be logged and sent back as it is.
fn is_harmless(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=REQUEST_ID_CHARS_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b))
}

fn fresh_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(crate::random::bytes16()).into_uuid();
    HeaderValue::try_from(id.to_string()).expect("a UUID is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_told_once() {
        let (lines, start) = (Lines::default(), Instant::now());
        let written = (0..1000).filter(|_| lines.take(start) == Some(0)).count();
        assert_eq!(written, 20);
        assert_eq!(lines.take(start + LINES_WINDOW), Some(980));
        assert_eq!(lines.take(start + LINES_WINDOW), Some(0));
        assert_eq!(lines.take(start + LINES_WINDOW * 2), Some(0), "nothing was left out");
    }
}
