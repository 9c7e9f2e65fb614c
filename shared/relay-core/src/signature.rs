//! Signatures of deliveries, by the schemes that an endpoint chooses: `X-Webhook-Signature` (a time and HMACs over
//! `t.body`, as the Python WebhookRelay and the `stripe` libraries have it) and Standard Webhooks 1.0.0, symmetric
//! (`v1`: HMACs over `id.t.body`) and asymmetric (`v1a`: Ed25519 over the same). Step 9 of an event's way; the
//! deliverer makes one [`Signer`] per version of an endpoint.
//!
//! One secret serves both HMAC schemes: its whole text is the key of the first, the decoded part behind `whsec_`
//! that of the second. `v1a` has a [`SigningKey`]. During a rotation's overlap each header carries the signatures of
//! both secrets and of both keys, the new one's first.

mod inbound;
mod key;
mod scheme;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

pub use self::inbound::{
    Check, Failure, Inbound, InboundVerdict, MISSING_HEADER, Reason, TOLERANCE_SECONDS, VERIFICATION_FAILED, Verdict,
    verify, verify_inbound,
};
pub use self::key::{InvalidKey, PublicKey, SigningKey};
pub use self::scheme::{InvalidSchemes, Scheme, Schemes};
use crate::endpoint::Secrets;
use crate::sealing::is_sealed;

/// What a secret in the text form of Standard Webhooks starts with.
const SECRET_PREFIX: &str = "whsec_";
/// Length of a secret in characters.
pub const SECRET_CHARS: std::ops::RangeInclusive<usize> = 16..=256;
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
    /// Starts as what we store in place of a secret.
    #[error("a signing secret must not start with sealed:")]
    Sealed,
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
        if is_sealed(&text) {
            return Err(InvalidSecret::Sealed);
        }
        Ok(Self(text.into()))
    }

    /// A secret from our own rows: taken as it is.
    pub fn trusted(text: impl Into<SecretString>) -> Self {
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

/// The values of the signature headers of one request; `None` where the endpoint doesn't have the scheme.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignatureHeaders {
    /// `X-Webhook-Signature`: `t=<unix seconds>,v1=<hex>`, during an overlap with a second `v1`.
    pub x_webhook_signature: Option<String>,
    /// `webhook-signature`: `v1,<base64>` and `v1a,<base64>`, separated by single blanks; during an overlap two of
    /// each.
    pub webhook_signature: Option<String>,
}

/// HMACs that have taken in their keys already: signing clones them instead of hashing the keys again.
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

/// Signs the deliveries of one endpoint. Cheap to use (an Ed25519 signature costs some 20 µs, an HMAC far less), made
/// once per version of the endpoint. `Debug` hides the keys.
pub struct Signer {
    schemes: Schemes,
    /// The current secret and, during an overlap, the previous one.
    secrets: Vec<Keyed>,
    /// The same of the keys; empty without `v1a`.
    pairs: Vec<Arc<Ed25519KeyPair>>,
}

impl Signer {
    /// With the current secret and key; with the previous ones as well, where there are some, for a time before the
    /// end of the overlap.
    pub fn new(schemes: Schemes, secrets: &Secrets, in_overlap: bool) -> Self {
        let previous = secrets.previous.as_ref().filter(|_| in_overlap);
        let keys = secrets.key.iter().chain(previous.and_then(|p| p.key.as_ref()));
        Self {
            schemes,
            secrets: std::iter::once(&secrets.current).chain(previous.map(|p| &p.secret)).map(Keyed::new).collect(),
            pairs: keys.filter(|_| schemes.has(Scheme::StandardV1a)).map(SigningKey::pair).collect(),
        }
    }

    /// Signs one attempt. `timestamp` is its time in Unix seconds.
    pub fn sign(&self, event_id: &str, timestamp: i64, body: &[u8]) -> SignatureHeaders {
        let time = timestamp.to_string();
        let x_webhook_signature = self.schemes.has(Scheme::Relay).then(|| {
            let mut value = String::with_capacity(time.len() + 2 + self.secrets.len() * 68);
            value.push_str("t=");
            value.push_str(&time);
            for key in &self.secrets {
                value.push_str(",v1=");
                value.push_str(&hex::encode(mac(&key.text, &[time.as_bytes(), body])));
            }
            value
        });
        let mut standard = String::new();
        let mut put = |version: &str, signature: &[u8]| {
            if !standard.is_empty() {
                standard.push(' ');
            }
            standard.push_str(version);
            STANDARD.encode_string(signature, &mut standard);
        };
        if self.schemes.has(Scheme::StandardV1) {
            for key in &self.secrets {
                put("v1,", &mac(&key.standard, &[event_id.as_bytes(), time.as_bytes(), body]));
            }
        }
        if !self.pairs.is_empty() {
            let content = signed_content(event_id.as_bytes(), time.as_bytes(), body);
            for pair in &self.pairs {
                put("v1a,", pair.sign(&content).as_ref());
            }
        }
        SignatureHeaders { x_webhook_signature, webhook_signature: Some(standard).filter(|s| !s.is_empty()) }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overlap = self.secrets.len() > 1;
        f.debug_struct("Signer").field("schemes", &self.schemes).field("overlap", &overlap).finish_non_exhaustive()
    }
}

/// What Standard Webhooks signs: id, time and body, joined by dots.
fn signed_content(id: &[u8], time: &[u8], body: &[u8]) -> Vec<u8> {
    [id, time, body].join(&b'.')
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

#[cfg(test)]
mod tests;
