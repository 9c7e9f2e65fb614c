//! Signing secrets and the two families of signatures. Step 9 of an event's way.
//!
//! `X-Webhook-Signature: t=<unix seconds>,v1=<hex>` is HMAC-SHA256 over `t`, a dot and the body, with the whole secret
//! string as key (Stripe's scheme). `webhook-signature: v1,<base64>` is HMAC-SHA256 over id, timestamp and body,
//! joined by dots, with the decoded part of the secret as key (Standard Webhooks, <https://www.standardwebhooks.com>).

use std::fmt;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// How far a signature's timestamp may be off, in seconds.
pub const TOLERANCE_SECONDS: i64 = 300;
/// Characters of a secret that the user gives.
pub const SECRET_CHARS: std::ops::RangeInclusive<usize> = 16..=256;

const PREFIX: &str = "whsec_";

type HmacSha256 = Hmac<Sha256>;

/// A signing secret. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct SigningSecret(SecretString);

/// Why a text is no signing secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Wrong length, or something other than printable ASCII.
    #[error("a signing secret is 16 to 256 printable ASCII characters")]
    Characters,
    /// `whsec_` must be followed by base64.
    #[error("what follows whsec_ in a signing secret must be base64")]
    NotBase64,
}

impl SigningSecret {
    /// A new secret from 32 random bytes.
    pub fn generate(random: [u8; 32]) -> Self {
        Self(format!("{PREFIX}{}", STANDARD.encode(random)).into())
    }

    /// Checks a secret that the user gives.
    pub fn parse(text: String) -> Result<Self, InvalidSecret> {
        if !SECRET_CHARS.contains(&text.len()) || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(InvalidSecret::Characters);
        }
        if let Some(encoded) = text.strip_prefix(PREFIX) {
            STANDARD.decode(encoded).map_err(|_| InvalidSecret::NotBase64)?;
        }
        Ok(Self(text.into()))
    }

    /// A secret from our own rows: taken as it is.
    pub fn trusted(text: String) -> Self {
        Self(text.into())
    }

    /// The secret itself, to store it or to show it once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The form that Standard Webhooks libraries take: itself, or `whsec_` and its bytes in base64.
    pub fn standard_webhooks_form(&self) -> String {
        if self.expose().starts_with(PREFIX) {
            self.expose().to_owned()
        } else {
            format!("{PREFIX}{}", STANDARD.encode(self.expose()))
        }
    }

    fn standard_key(&self) -> Vec<u8> {
        let decoded = self.expose().strip_prefix(PREFIX).and_then(|encoded| STANDARD.decode(encoded).ok());
        decoded.unwrap_or_else(|| self.expose().as_bytes().to_vec())
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// The two signature headers of one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureHeaders {
    /// Value of `X-Webhook-Signature`.
    pub x_webhook_signature: String,
    /// Value of `webhook-signature`.
    pub webhook_signature: String,
}

#[derive(Clone)]
struct Keys {
    plain: HmacSha256,
    standard: HmacSha256,
}

/// An endpoint's secrets, prepared: the keyed hash states are cloned for each signature.
#[derive(Clone)]
pub struct Signer {
    keys: Vec<Keys>,
}

impl Signer {
    /// Signs with `current` first and, during a rotation's overlap, with `previous` too.
    pub fn new(current: &SigningSecret, previous: Option<&SigningSecret>) -> Self {
        let keyed = |key: &[u8]| HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length");
        let keys = std::iter::once(current)
            .chain(previous)
            .map(|s| Keys { plain: keyed(s.expose().as_bytes()), standard: keyed(&s.standard_key()) })
            .collect();
        Self { keys }
    }

    /// Both headers for a body sent at `timestamp` (unix seconds).
    pub fn sign(&self, event_id: &str, timestamp: i64, body: &[u8]) -> SignatureHeaders {
        let stamp = timestamp.to_string();
        let mut x_webhook_signature = format!("t={stamp}");
        let mut webhook_signature = String::new();
        for keys in &self.keys {
            let digest = mac(&keys.plain, &[stamp.as_bytes(), b".", body]);
            x_webhook_signature.push_str(",v1=");
            x_webhook_signature.push_str(&hex::encode(digest));
            let digest = mac(&keys.standard, &[event_id.as_bytes(), b".", stamp.as_bytes(), b".", body]);
            let gap = if webhook_signature.is_empty() { "" } else { " " };
            let _ = write!(webhook_signature, "{gap}v1,{}", STANDARD.encode(digest));
        }
        SignatureHeaders { x_webhook_signature, webhook_signature }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} secrets)", self.keys.len())
    }
}

fn mac(keyed: &HmacSha256, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed.clone();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// What `/inbound/verify` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundVerdict {
    /// Signature and time are right.
    pub valid: bool,
    /// |now − t|, where t can be read.
    pub timestamp_age_seconds: Option<i64>,
    /// What is wrong.
    pub error: Option<&'static str>,
}

/// Verifies an `X-Webhook-Signature` header: any `v1` may match, in constant time.
pub fn verify_inbound(header: &[u8], secret: &str, body: &[u8], now: i64) -> InboundVerdict {
    let failed =
        |age| InboundVerdict { valid: false, timestamp_age_seconds: age, error: Some("Signature verification failed") };
    let Ok(header) = std::str::from_utf8(header) else {
        return failed(None);
    };
    let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
    let stamp = parts().find(|(name, _)| *name == "t").map(|(_, value)| value);
    let Some((stamp, t)) = stamp.and_then(|s| s.parse::<i64>().ok().filter(|t| *t != 0).map(|t| (s, t))) else {
        return failed(None);
    };
    let age = now.saturating_sub(t).saturating_abs();
    let keyed = HmacSha256::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    let wanted = mac(&keyed, &[stamp.as_bytes(), b".", body]);
    let mut matched = subtle::Choice::from(0);
    for (_, value) in parts().filter(|(name, _)| *name == "v1") {
        if let Ok(given) = hex::decode(value) {
            matched |= given.ct_eq(&wanted);
        }
    }
    if !bool::from(matched) {
        return failed(Some(age));
    }
    if age > TOLERANCE_SECONDS {
        return InboundVerdict {
            valid: false,
            timestamp_age_seconds: Some(age),
            error: Some("Timestamp outside the tolerance of 300 seconds"),
        };
    }
    InboundVerdict { valid: true, timestamp_age_seconds: Some(age), error: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEED_SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn v1(secret: &str, t: i64, body: &[u8]) -> String {
        let signer = Signer::new(&SigningSecret::trusted(secret.to_owned()), None);
        signer.sign("x", t, body).x_webhook_signature
    }

    #[test]
    fn the_vectors_of_the_python_project_hold() {
        let vectors: [(i64, &[u8], &str); 3] = [
            (
                1_614_556_800,
                br#"{"order_id":42,"total":99.99}"#,
                "be7fa47a42aea905427961f57a4a353c4a21ce1eb5dfcd702999fb5b3ac9d705",
            ),
            (1_700_000_000, b"{}", "edb7e8d0128566d96a08fd9a3b35bed9226c3363fb5da1f4cda941cc7250d93e"),
            (
                1_700_000_000,
                br#"{"A":"x/\"\\\n\u007f","a":{"y":"\u20ac\ud83d\ude00","z":"\u00e9"},"b":[1,2.0,null,true]}"#,
                "2b308ec0ee4568eb01580f3863f47ee773549fb32081bd01a7b3d63b9faf3825",
            ),
        ];
        for (t, body, digest) in vectors {
            assert_eq!(v1(SEED_SECRET, t, body), format!("t={t},v1={digest}"));
        }
    }

    #[test]
    fn the_vector_of_standard_webhooks_holds() {
        let secret = SigningSecret::trusted("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let headers =
            Signer::new(&secret, None).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(headers.webhook_signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_rotation_signs_twice_and_either_secret_verifies() {
        let (new, old) = (SigningSecret::generate([1; 32]), SigningSecret::generate([2; 32]));
        let headers = Signer::new(&new, Some(&old)).sign("id", 1000, b"body");
        for secret in [&new, &old] {
            assert!(verify_inbound(headers.x_webhook_signature.as_bytes(), secret.expose(), b"body", 1000).valid);
        }
        assert_eq!(headers.webhook_signature.split(' ').count(), 2);
    }

    #[test]
    fn verification_says_what_is_wrong() {
        let header = v1(SEED_SECRET, 1000, b"body");
        let check = |header: &str, secret: &str, body: &[u8], now| verify_inbound(header.as_bytes(), secret, body, now);
        assert_eq!(
            check(&header, SEED_SECRET, b"body", 1300),
            InboundVerdict { valid: true, timestamp_age_seconds: Some(300), error: None }
        );
        assert!(!check(&header, SEED_SECRET, b"body", 1301).valid);
        assert!(check(&header, SEED_SECRET, b"body", 700).valid);
        assert!(!check(&header, SEED_SECRET, b"Body", 1000).valid);
        assert!(!check(&header, "other secret", b"body", 1000).valid);
        for bad in ["", "t=1000", "v1=ab", "t=x,v1=ab", "invalid-format", "t=1000,v1=zz", "t=9223372036854775807,v1=00"]
        {
            assert!(!check(bad, SEED_SECRET, b"body", 1000).valid, "{bad}");
        }
        assert!(!verify_inbound(b"t=1000,v1=\xff", SEED_SECRET, b"body", 1000).valid);
    }

    #[test]
    fn secrets_are_checked_and_never_shown() {
        assert!(SigningSecret::parse("short".to_owned()).is_err());
        assert!(SigningSecret::parse("x".repeat(257)).is_err());
        assert!(SigningSecret::parse("whsec_not base64 at all".to_owned()).is_err());
        assert!(SigningSecret::parse("sixteen chars ok".to_owned()).is_ok());
        let secret = SigningSecret::generate([7; 32]);
        assert!(SigningSecret::parse(secret.expose().to_owned()).is_ok());
        assert!(!format!("{secret:?}").contains(secret.expose()));
        let plain = SigningSecret::parse(SEED_SECRET.to_owned()).unwrap();
        assert!(plain.standard_webhooks_form().starts_with("whsec_"));
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies(body: Vec<u8>, t in 1i64..4_000_000_000, key: [u8; 32]) {
            let secret = SigningSecret::generate(key);
            let headers = Signer::new(&secret, None).sign("id", t, &body);
            prop_assert!(verify_inbound(headers.x_webhook_signature.as_bytes(), secret.expose(), &body, t).valid);
        }

        #[test]
        fn nothing_makes_verification_panic(header: Vec<u8>, body: Vec<u8>, now: i64) {
            let _ = verify_inbound(&header, "0123456789abcdef", &body, now);
        }
    }
}
