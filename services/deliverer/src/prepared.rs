//! What is the same for every request to one endpoint, made once per version of the endpoint: the parsed URL, the
//! fixed headers, the keyed signers. Used by `attempt`; the cache belongs to the pool's task.
//!
//! Invariants: custom headers replace none of ours; what is recorded of a request shows neither signatures nor
//! credentials.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Uri};
use percent_encoding::percent_decode_str;
use relay_core::endpoint::{Endpoint, Secrets};
use relay_core::headers::is_secret;
use relay_core::ids::EndpointId;
use relay_core::job::Job;
use relay_core::sealing::Withheld;
use relay_core::signature::Signer;
use secrecy::ExposeSecret;
use url::Url;

use crate::client::Request;

/// Endpoints that are kept prepared.
const CACHE_MAX: usize = 20_000;

/// Bytes of headers in the attempt log; an endpoint may answer with far more.
const LINES_BYTES_MAX: usize = 16 * 1024;

const X_SIGNATURE: HeaderName = HeaderName::from_static("x-webhook-signature");
const X_EVENT_ID: HeaderName = HeaderName::from_static("x-webhook-event-id");
const X_EVENT_TYPE: HeaderName = HeaderName::from_static("x-webhook-event-type");
const X_TIMESTAMP: HeaderName = HeaderName::from_static("x-webhook-timestamp");
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What stands in the attempt log in place of a credential.
const HIDDEN: &[u8] = b"(hidden)";

/// Why nothing can be sent to an endpoint: its row holds something that was never allowed in.
#[derive(Debug, thiserror::Error)]
pub enum Unsendable {
    /// Its URL.
    #[error("the endpoint's URL can't be read: {0}")]
    Url(String),
    /// A custom header.
    #[error("the endpoint's custom header {0:?} can't be sent")]
    Header(String),
    /// Its secrets: not the endpoint's fault, so its deliveries wait.
    #[error(transparent)]
    Withheld(Withheld),
}

/// An endpoint, ready to be sent to.
#[derive(Debug)]
pub struct Prepared {
    /// Its settings.
    pub endpoint: Arc<Endpoint>,
    uri: Uri,
    fixed: HeaderMap,
    /// The fixed headers, as the attempt log shows them.
    fixed_lines: Bytes,
    signer: Signer,
    /// Signs with both secrets and keys until then.
    overlap: Option<(Signer, DateTime<Utc>)>,
}

impl Prepared {
    /// Parses and keys.
    pub fn new(endpoint: Arc<Endpoint>) -> Result<Self, Unsendable> {
        let mut url = Url::parse(&endpoint.url).map_err(|e| Unsendable::Url(e.to_string()))?;
        let credentials = take_credentials(&mut url);
        let uri = Uri::try_from(url.as_str()).map_err(|e| Unsendable::Url(e.to_string()))?;
        let secrets = endpoint.secrets.as_ref().map_err(|why| Unsendable::Withheld(*why))?;
        let mut fixed = HeaderMap::new();
        fixed.insert(ACCEPT, HeaderValue::from_static("*/*"));
        fixed.extend(credentials.map(|credentials| (AUTHORIZATION, credentials)));
        for (name, value, is_marked) in custom_headers(&endpoint, secrets) {
            let unsendable = || Unsendable::Header(name.to_owned());
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unsendable())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| unsendable())?;
            value.set_sensitive(is_marked || is_secret(name));
            fixed.insert(key, value);
        }
        fixed.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        fixed.insert(USER_AGENT, HeaderValue::from_static(concat!("WebhookRelay/", env!("CARGO_PKG_VERSION"))));
        Ok(Self {
            uri,
            fixed_lines: header_lines(&fixed),
            fixed,
            signer: Signer::new(endpoint.schemes, secrets, false),
            overlap: secrets.previous.as_ref().map(|old| (Signer::new(endpoint.schemes, secrets, true), old.until)),
            endpoint,
        })
    }

    /// The signed request of one attempt, sent at `now`.
    pub fn request(&self, job: &Job, body: &Bytes, now: DateTime<Utc>) -> Request {
        let stamp = now.timestamp();
        let event_id = job.event.to_string();
        let signer = match &self.overlap {
            Some((both, until)) if now < *until => both,
            _ => &self.signer,
        };
        let signatures = signer.sign(&event_id, stamp, body);
        let mut request = Request::new(body.clone());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.fixed.clone();
        let headers = request.headers_mut();
        let mut put = |name: HeaderName, value: String| {
            // Ids, numbers, hex, base64, event types and checked traces are all visible ASCII.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        put(X_EVENT_ID, event_id.clone());
        put(ID, event_id);
        put(X_EVENT_TYPE, job.event_type.as_str().to_owned());
        put(X_TIMESTAMP, stamp.to_string());
        put(TIMESTAMP, stamp.to_string());
        for (name, value) in [(X_SIGNATURE, signatures.x_webhook_signature), (SIGNATURE, signatures.webhook_signature)]
        {
            if let Some(value) = value {
                put(name, value);
            }
        }
        if let Some(trace) = &job.trace {
            put(TRACEPARENT, trace.as_ref().to_owned());
        }
        request
    }

    /// The request's headers for the attempt log: `name: value` lines, without signatures and credentials.
    pub fn recorded_headers(&self, job: &Job, now: DateTime<Utc>) -> Bytes {
        let mut lines = BytesMut::with_capacity(self.fixed_lines.len() + 256);
        lines.extend_from_slice(&self.fixed_lines);
        let event_id = job.event.to_string();
        let stamp = now.timestamp().to_string();
        let mut put = |name: &HeaderName, value: &str| put_line(&mut lines, name.as_str(), value.as_bytes());
        put(&X_EVENT_ID, &event_id);
        put(&X_EVENT_TYPE, job.event_type.as_str());
        put(&X_TIMESTAMP, &stamp);
        put(&ID, &event_id);
        put(&TIMESTAMP, &stamp);
        if let Some(trace) = &job.trace {
            put(&TRACEPARENT, trace);
        }
        lines.freeze()
    }
}

/// Takes user name and password out of a URL: they are sent as a header (RFC 7617).
fn take_credentials(url: &mut Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pair = format!("{}:{}", decoded(url.username()), url.password().map(decoded).unwrap_or_default());
    // Only a URL that can have no host refuses to be without them, and it has none.
    let _ = (url.set_username(""), url.set_password(None));
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Names and values, and whether they are marked secret.
fn custom_headers<'a>(endpoint: &'a Endpoint, secrets: &'a Secrets) -> impl Iterator<Item = (&'a str, &'a str, bool)> {
    let plain = endpoint.custom_headers.iter().map(|(name, value)| (name.as_str(), value.as_str(), false));
    plain.chain(secrets.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret(), true)))
}

fn put_line(lines: &mut BytesMut, name: &str, value: &[u8]) {
    lines.put_slice(name.as_bytes());
    lines.put_slice(b": ");
    lines.put_slice(value);
    lines.put_u8(b'\n');
}

/// Headers as `name: value` lines, [`LINES_BYTES_MAX`] of them; the values of credentials are hidden.
pub fn header_lines(headers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::with_capacity(headers.len() * 40);
    for (name, value) in headers {
        if lines.len() + name.as_str().len() + value.len() > LINES_BYTES_MAX {
            break;
        }
        let value = if value.is_sensitive() || is_secret(name.as_str()) { HIDDEN } else { value.as_bytes() };
        put_line(&mut lines, name.as_str(), value);
    }
    lines.freeze()
}

/// Prepared endpoints, by the version of their settings.
#[derive(Default)]
pub struct Cache {
    prepared: HashMap<EndpointId, Arc<Prepared>>,
}

impl Cache {
    /// The prepared form of these very settings.
    pub fn get(&mut self, endpoint: &Arc<Endpoint>) -> Result<Arc<Prepared>, Unsendable> {
        if let Some(there) = self.prepared.get(&endpoint.id)
            && (Arc::ptr_eq(&there.endpoint, endpoint) || there.endpoint.version == endpoint.version)
        {
            return Ok(Arc::clone(there));
        }
        if self.prepared.len() >= CACHE_MAX {
            self.prepared.clear();
        }
        let made = Arc::new(Prepared::new(Arc::clone(endpoint))?);
        self.prepared.insert(endpoint.id, Arc::clone(&made));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{endpoint, job};
    use relay_core::endpoint::PreviousSecrets;
    use relay_core::signature::{Inbound, Schemes, SigningKey, SigningSecret, verify, verify_inbound};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn prepared(endpoint: Endpoint) -> Prepared {
        Prepared::new(Arc::new(endpoint)).unwrap()
    }

    #[test]
    fn a_request_carries_both_families_of_headers_and_the_body_as_it_came() {
        let endpoint = endpoint("https://hooks.example.com/a?b=c");
        let secret = endpoint.secrets.as_ref().unwrap().current.expose().to_owned();
        let body = Bytes::from_static(b"{ \"a\" : 1 }");
        let request = prepared(endpoint).request(&job(7), &body, now());
        assert_eq!(request.uri().to_string(), "https://hooks.example.com/a?b=c");
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        let id = job(7).event.to_string();
        assert_eq!(header("x-webhook-event-id"), id);
        assert_eq!(header("webhook-id"), id);
        assert_eq!(header("x-webhook-event-type"), "order.created");
        assert_eq!(header("webhook-timestamp"), "1800000000");
        assert_eq!(header("content-type"), "application/json");
        assert!(header("user-agent").starts_with("WebhookRelay/"));
        assert_eq!(header("traceparent"), "00-1-2-01");
        assert!(header("webhook-signature").starts_with("v1,"));
        let verdict = verify_inbound(header("x-webhook-signature").as_bytes(), &secret, &body, now().timestamp());
        assert!(verdict.valid);
        assert_eq!(request.body(), &body);
    }

    #[test]
    fn custom_headers_go_along_but_replace_none_of_ours() {
        let mut endpoint = endpoint("https://user:pass@hooks.example.com/");
        for (name, value) in
            [("X-Tenant", "7"), ("User-Agent", "evil"), ("x-webhook-event-id", "evil"), ("X-API-Key", "k")]
        {
            endpoint.custom_headers.insert(name.to_owned(), value.to_owned());
        }
        let prepared = prepared(endpoint);
        let request = prepared.request(&job(7), &Bytes::new(), now());
        assert_eq!(request.headers()["x-tenant"], "7");
        assert_eq!(request.headers()["x-api-key"], "k");
        assert_eq!(request.headers()["authorization"], "Basic dXNlcjpwYXNz");
        assert_eq!(request.uri().to_string(), "https://hooks.example.com/");
        for value in request.headers().values() {
            assert_ne!(value, "evil");
        }
    }

    #[test]
    fn the_attempt_log_shows_neither_signatures_nor_credentials() {
        let mut endpoint = endpoint("https://user:pass@hooks.example.com/");
        for (name, value) in [("X-API-Key", "sesame"), ("Cookie", "sesame"), ("X-Tenant", "7")] {
            endpoint.custom_headers.insert(name.to_owned(), value.to_owned());
        }
        let secrets = endpoint.secrets.as_mut().unwrap();
        secrets.headers.insert("X-Pass".to_owned(), "sesame".to_owned().into());
        assert!(!format!("{endpoint:?}").contains("X-Pass\": \"sesame"));
        let prepared = prepared(endpoint);
        assert_eq!(prepared.request(&job(7), &Bytes::new(), now()).headers()["x-pass"], "sesame");
        let lines = prepared.recorded_headers(&job(7), now());
        let lines = std::str::from_utf8(&lines).unwrap();
        assert!(!lines.contains("sesame") && !lines.contains("signature") && !lines.contains("Basic"), "{lines}");
        assert!(lines.contains("x-api-key: (hidden)\n") && lines.contains("x-pass: (hidden)\n"));
        assert!(lines.contains("x-tenant: 7\n"));
        assert!(lines.contains("webhook-timestamp: 1800000000\n"));
    }

    #[test]
    fn both_secrets_sign_until_the_overlap_ends() {
        let mut endpoint = endpoint("https://hooks.example.com/");
        let old = SigningSecret::generate([9; 32]);
        let until = now() + chrono::Duration::seconds(10);
        endpoint.secrets.as_mut().unwrap().previous = Some(PreviousSecrets { secret: old.clone(), key: None, until });
        let prepared = prepared(endpoint);
        let signed = |at: DateTime<Utc>| {
            let request = prepared.request(&job(7), &Bytes::from_static(b"1"), at);
            verify_inbound(request.headers()["x-webhook-signature"].as_bytes(), old.expose(), b"1", at.timestamp())
                .valid
        };
        assert!(signed(now()));
        assert!(!signed(now() + chrono::Duration::seconds(10)));
    }

    #[test]
    fn an_endpoint_gets_the_signatures_that_it_chose() {
        let mut endpoint = endpoint("https://hooks.example.com/");
        let key = SigningKey::generate([3; 32]);
        let public = key.public().to_string();
        endpoint.schemes = Schemes::parse(&["standard-v1a"]).unwrap();
        endpoint.secrets.as_mut().unwrap().key = Some(key);
        let shown = format!("{endpoint:?}");
        let request = prepared(endpoint.clone()).request(&job(7), &Bytes::from_static(b"1"), now());
        assert!(!request.headers().contains_key("x-webhook-signature"));
        let header = |name: &str| request.headers()[name].as_bytes();
        let inbound = Inbound {
            webhook_id: Some(header("webhook-id")),
            webhook_timestamp: Some(header("webhook-timestamp")),
            webhook_signature: Some(header("webhook-signature")),
            public_key: Some(public.as_bytes()),
            ..Inbound::default()
        };
        assert!(verify(&inbound, b"1", now().timestamp()).valid());
        assert!(!verify(&inbound, b"2", now().timestamp()).valid());
        assert!(
            !shown.contains(endpoint.secrets.unwrap().key.unwrap().expose()) && !shown.contains("whsec_"),
            "{shown}"
        );
    }

    #[test]
    fn an_endpoint_is_prepared_once_per_version() {
        let mut cache = Cache::default();
        let first = Arc::new(endpoint("https://hooks.example.com/"));
        let a = cache.get(&first).unwrap();
        assert!(Arc::ptr_eq(&a, &cache.get(&first).unwrap()));
        let second =
            Arc::new(Endpoint { version: 2, url: "https://other.example.com/".to_owned(), ..(*first).clone() });
        assert_eq!(cache.get(&second).unwrap().uri.host(), Some("other.example.com"));
    }
}
