//! Signatures of deliveries, in both families that receivers know: `X-Webhook-Signature` (a time and HMACs over
//! `t.body`, as the Python WebhookRelay and the `stripe` libraries have it) and Standard Webhooks 1.0.0 (HMACs
//! over `id.t.body`). Step 9 of an event's way; the deliverer makes one [`Signer`] per endpoint and secret.
//!
//! One secret serves both: its whole text is the key of the first, the decoded part behind `whsec_` that of the
//! second. During a rotation's overlap each header carries two signatures, the new secret's first.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// What a secret in the text form of Standard Webhooks starts with.
const SECRET_PREFIX: &str = "whsec_";
/// Length of a secret in characters.
pub const SECRET_CHARS: std::ops::RangeInclusive<usize> = 16..=256;
/// How far a signature's time may be from now, either way, in seconds; exactly this far still passes.
pub const TOLERANCE_SECONDS: u64 = 300;

/// What `/inbound/verify` says where a header is missing or empty.
pub const MISSING_HEADER: &str = "Missing X-Webhook-Signature or X-Webhook-Secret header";
/// What it says about every signature that doesn't pass.
pub const VERIFICATION_FAILED: &str = "Signature verification failed";

type HmacSha256 = Hmac<Sha256>;

/// Why a text is no signing secret. The text itself is never repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Shorter or longer than [`SECRET_CHARS`], or something other than printable ASCII.
    #[error("a signing secret is 16 to 256 printable ASCII characters")]
    Characters,
    /// Starts with `whsec_`, but the rest is not base64, so no Standard Webhooks library could use it.
    #[error("what follows whsec_ in a signing secret must be base64 (with padding)")]
    NotBase64,
}

/// A signing secret. `Debug` hides it.
#[derive(Clone)]
pub struct SigningSecret(SecretString);

impl SigningSecret {
    /// A new secret from 32 random bytes: `whsec_` and their base64.
    pub fn generate(bytes: [u8; 32]) -> Self {
        Self(format!("{SECRET_PREFIX}{}", STANDARD.encode(bytes)).into())
    }

    /// Checks a secret that the user gives.
    pub fn parse(text: String) -> Result<Self, InvalidSecret> {
        if !SECRET_CHARS.contains(&text.len()) || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(InvalidSecret::Characters);
        }
        if text.strip_prefix(SECRET_PREFIX).is_some_and(|encoded| STANDARD.decode(encoded).is_err()) {
            return Err(InvalidSecret::NotBase64);
        }
        Ok(Self(text.into()))
    }

    /// A secret from our own rows: taken as it is.
    pub fn trusted(text: String) -> Self {
        Self(text.into())
    }

    /// The text, to store it or to show it once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The secret in the form that Standard Webhooks libraries take: itself, or `whsec_` and the base64 of its
    /// bytes.
    pub fn standard_webhooks_form(&self) -> String {
        let text = self.expose();
        if text.starts_with(SECRET_PREFIX) {
            text.to_owned()
        } else {
            format!("{SECRET_PREFIX}{}", STANDARD.encode(text))
        }
    }

    /// The key for Standard Webhooks.
    fn standard_key(&self) -> Vec<u8> {
        let text = self.expose();
        text.strip_prefix(SECRET_PREFIX)
            .and_then(|encoded| STANDARD.decode(encoded).ok())
            .unwrap_or_else(|| text.into())
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(***)")
    }
}

/// The values of the two signature headers of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureHeaders {
    /// `X-Webhook-Signature`: `t=<unix seconds>,v1=<hex>`, during an overlap with a second `v1`.
    pub x_webhook_signature: String,
    /// `webhook-signature`: `v1,<base64>`, during an overlap followed by a blank and a second one.
    pub webhook_signature: String,
}

/// HMACs that have taken in their keys already: signing clones them instead of hashing the keys again.
#[derive(Clone)]
struct Keyed {
    text: HmacSha256,
    standard: HmacSha256,
}

impl Keyed {
    fn new(secret: &SigningSecret) -> Self {
        Self { text: keyed(secret.expose().as_bytes()), standard: keyed(&secret.standard_key()) }
    }
}

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Signs the deliveries of one endpoint. Cheap to use, made once per set of secrets. `Debug` hides the keys.
#[derive(Clone)]
pub struct Signer {
    current: Keyed,
    previous: Option<Keyed>,
}

impl Signer {
    /// With the current secret and, during an overlap, the previous one.
    pub fn new(current: &SigningSecret, previous: Option<&SigningSecret>) -> Self {
        Self { current: Keyed::new(current), previous: previous.map(Keyed::new) }
    }

    /// Signs one attempt. `timestamp` is its time in Unix seconds.
    pub fn sign(&self, event_id: &str, timestamp: i64, body: &[u8]) -> SignatureHeaders {
        let time = timestamp.to_string();
        let mut x_webhook_signature = String::with_capacity(time.len() + 2 + 2 * 68);
        x_webhook_signature.push_str("t=");
        x_webhook_signature.push_str(&time);
        let mut webhook_signature = String::with_capacity(2 * 48);
        for key in std::iter::once(&self.current).chain(&self.previous) {
            x_webhook_signature.push_str(",v1=");
            x_webhook_signature.push_str(&hex::encode(mac(&key.text, &[time.as_bytes(), body])));
            if !webhook_signature.is_empty() {
                webhook_signature.push(' ');
            }
            webhook_signature.push_str("v1,");
            let digest = mac(&key.standard, &[event_id.as_bytes(), time.as_bytes(), body]);
            STANDARD.encode_string(digest, &mut webhook_signature);
        }
        SignatureHeaders { x_webhook_signature, webhook_signature }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("overlap", &self.previous.is_some()).finish_non_exhaustive()
    }
}

/// The HMAC over `parts` joined by dots.
fn mac(key: &HmacSha256, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = key.clone();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            mac.update(b".");
        }
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// What `POST /inbound/verify` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InboundVerdict {
    /// Whether the signature is good and recent.
    pub valid: bool,
    /// How far its time is from now, either way, also where it isn't valid; `None` where it can't be read or is 0.
    pub timestamp_age_seconds: Option<i64>,
    /// [`MISSING_HEADER`] or [`VERIFICATION_FAILED`].
    pub error: Option<&'static str>,
}

/// Verifies an `X-Webhook-Signature` as the Python WebhookRelay does: parts split at commas, names and values at
/// the first `=`, digests in lower case; but any `v1` may be the good one. `now` is in Unix seconds.
pub fn verify_inbound(header: &[u8], secret: &str, body: &[u8], now: i64) -> InboundVerdict {
    if header.is_empty() || secret.is_empty() {
        return InboundVerdict { valid: false, timestamp_age_seconds: None, error: Some(MISSING_HEADER) };
    }
    let parts = Parts::read(header);
    let age = parts.timestamp.map(|t| now.abs_diff(t));
    let recent = age.is_some_and(|age| age <= TOLERANCE_SECONDS);
    let valid = recent && parts.well_formed && parts.has_digest(secret, body);
    InboundVerdict {
        valid,
        timestamp_age_seconds: parts.timestamp.filter(|t| *t != 0).and(age).and_then(|age| i64::try_from(age).ok()),
        error: (!valid).then_some(VERIFICATION_FAILED),
    }
}

/// A signature header taken apart.
struct Parts<'a> {
    /// Every part has a `=`.
    well_formed: bool,
    /// The last `t`.
    timestamp: Option<i64>,
    /// Every `v1`.
    digests: Vec<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn read(header: &'a [u8]) -> Self {
        let mut parts = Self { well_formed: true, timestamp: None, digests: Vec::new() };
        for part in header.split(|b| *b == b',') {
            let Some(equals) = part.iter().position(|b| *b == b'=') else {
                parts.well_formed = false;
                continue;
            };
            match (&part[..equals], &part[equals + 1..]) {
                (b"t", value) => parts.timestamp = std::str::from_utf8(value).ok().and_then(|t| t.parse().ok()),
                (b"v1", value) => parts.digests.push(value),
                _ => {}
            }
        }
        parts
    }

    fn has_digest(&self, secret: &str, body: &[u8]) -> bool {
        let Some(timestamp) = self.timestamp else { return false };
        let time = timestamp.to_string();
        let wanted = hex::encode(mac(&keyed(secret.as_bytes()), &[time.as_bytes(), body]));
        // No early end: how long it takes says nothing about which digest was good.
        self.digests.iter().fold(false, |found, given| found | bool::from(given.ct_eq(wanted.as_bytes())))
    }
}

#[cfg(test)]
mod tests;
