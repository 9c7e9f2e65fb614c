//! Checking signatures as a receiver does, for `POST /inbound/verify` and the self-check: which scheme holds, and
//! where one doesn't, why. What can't be told apart (another secret, a changed body) is not guessed at.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::{PublicKey, Scheme, SigningSecret, keyed, mac, signed_content};

/// How far a signature's time may be from now, either way, in seconds; exactly this far still passes.
pub const TOLERANCE_SECONDS: u64 = 300;

/// What `/inbound/verify` says in `error` where a header is missing or empty.
pub const MISSING_HEADER: &str = "Missing X-Webhook-Signature or X-Webhook-Secret header";
/// What it says there about every signature that doesn't pass.
pub const VERIFICATION_FAILED: &str = "Signature verification failed";

/// The verdict on `X-Webhook-Signature` alone, as the Python WebhookRelay gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundVerdict {
    /// Whether the signature is good and recent.
    pub valid: bool,
    /// How far its time is from now, either way, also where it isn't valid; `None` where it can't be read or is 0.
    pub timestamp_age_seconds: Option<i64>,
    /// [`MISSING_HEADER`] or [`VERIFICATION_FAILED`].
    pub error: Option<&'static str>,
}

/// The headers of a request that is checked; empty ones count as missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inbound<'a> {
    /// `X-Webhook-Signature`.
    pub x_webhook_signature: Option<&'a [u8]>,
    /// `webhook-id`.
    pub webhook_id: Option<&'a [u8]>,
    /// `webhook-timestamp`.
    pub webhook_timestamp: Option<&'a [u8]>,
    /// `webhook-signature`.
    pub webhook_signature: Option<&'a [u8]>,
    /// The endpoint's secret, for both HMAC schemes.
    pub secret: Option<&'a [u8]>,
    /// The endpoint's public key, for `v1a`.
    pub public_key: Option<&'a [u8]>,
}

/// The kind of a failure. The names are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A header that the check needs isn't there.
    MissingHeader,
    /// A header can't be read.
    MalformedHeader,
    /// The secret or the public key that was given is none.
    BadKey,
    /// The signature is right, but older than the tolerance.
    Expired,
    /// The signature is right, but its time is further ahead than the tolerance.
    FromTheFuture,
    /// No signature matches.
    NoMatch,
}

impl Reason {
    /// Its name in the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MissingHeader => "missing_header",
            Self::MalformedHeader => "malformed_header",
            Self::BadKey => "bad_key",
            Self::Expired => "expired",
            Self::FromTheFuture => "from_the_future",
            Self::NoMatch => "no_match",
        }
    }
}

/// Why a check failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of which kind.
    pub reason: Reason,
    /// In words: which part of which header.
    pub detail: String,
}

impl Failure {
    fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }

    fn malformed(detail: impl fmt::Display) -> Self {
        Self::new(Reason::MalformedHeader, detail)
    }
}

/// What the check of one scheme said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Which.
    pub scheme: Scheme,
    /// How far the signature's time is from now, either way, where it can be read.
    pub timestamp_age_seconds: Option<u64>,
    /// Why it doesn't hold.
    pub failure: Option<Failure>,
}

/// What all checks together say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Each scheme that could be checked with what was given, at most one entry a scheme.
    pub checks: Vec<Check>,
    /// Why nothing could be checked.
    pub unchecked: Option<Failure>,
}

impl Verdict {
    /// Whether something was checked and all of it holds.
    pub fn valid(&self) -> bool {
        self.unchecked.is_none() && self.checks.iter().all(|c| c.failure.is_none())
    }

    /// The first failure.
    pub fn failure(&self) -> Option<&Failure> {
        self.unchecked.as_ref().or_else(|| self.checks.iter().find_map(|c| c.failure.as_ref()))
    }
}

/// Checks every scheme whose signature and key are there: `X-Webhook-Signature` and the `v1` entries of
/// `webhook-signature` with the secret, the `v1a` entries with the public key. A public key that is given must be
/// used by some entry; a secret, by at least one of the two. `now` is in Unix seconds.
pub fn verify(inbound: &Inbound<'_>, body: &[u8], now: i64) -> Verdict {
    let there = |header: Option<&'_ [u8]>| header.is_some_and(|h| !h.is_empty());
    let (relay, standard) = (there(inbound.x_webhook_signature), there(inbound.webhook_signature));
    let unchecked = match (relay || standard, there(inbound.secret), there(inbound.public_key)) {
        (false, ..) => Some("the request has neither X-Webhook-Signature nor webhook-signature"),
        (true, false, false) => Some("X-Webhook-Secret (or X-Webhook-Public-Key for v1a) must say what to check with"),
        (true, false, true) if !standard => Some("the public key is for webhook-signature, which is missing"),
        _ => None,
    };
    if let Some(why) = unchecked {
        return Verdict { checks: Vec::new(), unchecked: Some(Failure::new(Reason::MissingHeader, why)) };
    }
    let mut checks = Vec::new();
    if let Some(secret) = inbound.secret.filter(|s| !s.is_empty()) {
        if relay {
            let checked = relay_check(inbound.x_webhook_signature.unwrap_or_default(), secret, body, now);
            checks.push(checked.named(Scheme::Relay));
        }
        // A `webhook-signature` without `v1` entries beside a good `X-Webhook-Signature` is for the public key.
        if standard && (!relay || has_version(inbound, "v1")) {
            checks.push(standard_check(inbound, Key::Secret(secret), body, now).named(Scheme::StandardV1));
        }
    }
    if let Some(key) = inbound.public_key.filter(|k| !k.is_empty()) {
        checks.push(standard_check(inbound, Key::Public(key), body, now).named(Scheme::StandardV1a));
    }
    Verdict { checks, unchecked: None }
}

/// Verifies an `X-Webhook-Signature` alone, with the answer of the Python WebhookRelay. `now` is in Unix seconds.
pub fn verify_inbound(header: &[u8], secret: &str, body: &[u8], now: i64) -> InboundVerdict {
    if header.is_empty() || secret.is_empty() {
        return InboundVerdict { valid: false, timestamp_age_seconds: None, error: Some(MISSING_HEADER) };
    }
    let checked = relay_check(header, secret.as_bytes(), body, now);
    let valid = checked.failure.is_none();
    InboundVerdict {
        valid,
        timestamp_age_seconds: checked.age.and_then(|age| i64::try_from(age).ok()),
        error: (!valid).then_some(VERIFICATION_FAILED),
    }
}

struct Checked {
    age: Option<u64>,
    failure: Option<Failure>,
}

impl Checked {
    fn failed(age: Option<u64>, failure: Failure) -> Self {
        Self { age, failure: Some(failure) }
    }

    fn named(self, scheme: Scheme) -> Check {
        Check { scheme, timestamp_age_seconds: self.age, failure: self.failure }
    }

    /// What a signature that could be read comes to.
    fn of(matches: bool, timestamp: i64, now: i64, what: &str) -> Self {
        let age = now.abs_diff(timestamp);
        let failure = if !matches {
            Some(Failure::new(
                Reason::NoMatch,
                format_args!(
                    "no {what} signature matches: it was made with another secret or key, or over other bytes \
                     (check the body as it was received, before any parsing)"
                ),
            ))
        } else if age > TOLERANCE_SECONDS && timestamp < now {
            let text = format_args!("the signature is right, but {age} s old; {TOLERANCE_SECONDS} s are allowed");
            Some(Failure::new(Reason::Expired, text))
        } else if age > TOLERANCE_SECONDS {
            let text = format_args!(
                "the signature is right, but its time is {age} s ahead; {TOLERANCE_SECONDS} s are allowed"
            );
            Some(Failure::new(Reason::FromTheFuture, text))
        } else {
            None
        };
        // 0 is no time that anybody signs at: shown as unknown.
        Self { age: Some(age).filter(|_| timestamp != 0), failure }
    }
}

fn number(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// As the Python WebhookRelay does it: parts split at commas, names and values at the first `=`, digests in lower
/// case; but any `v1` may be the good one. Of several `t` the last one counts.
fn relay_check(header: &[u8], secret: &[u8], body: &[u8], now: i64) -> Checked {
    const NAME: &str = "X-Webhook-Signature";
    let (mut time, mut digests, mut broken) = (None, Vec::new(), None);
    for (n, part) in (1..).zip(header.split(|b| *b == b',')) {
        match part.iter().position(|b| *b == b'=').map(|at| (&part[..at], &part[at + 1..])) {
            None => broken = broken.or(Some(n)),
            Some((b"t", value)) => time = Some(value),
            Some((b"v1", value)) => digests.push(value),
            Some(_) => {}
        }
    }
    let timestamp = time.and_then(number);
    let age = timestamp.filter(|t| *t != 0).map(|t| now.abs_diff(t));
    let malformed = if let Some(n) = broken {
        Some(Failure::malformed(format_args!("part {n} of {NAME} has no '='")))
    } else if time.is_none() {
        Some(Failure::malformed(format_args!("{NAME} has no t=")))
    } else if timestamp.is_none() {
        Some(Failure::malformed(format_args!("t in {NAME} is not a number of seconds")))
    } else if digests.is_empty() {
        Some(Failure::malformed(format_args!("{NAME} has no v1=")))
    } else if !digests.iter().any(|d| d.len() == 64 && d.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))) {
        Some(Failure::malformed(format_args!("v1 in {NAME} is not 64 hexadecimal digits in lower case")))
    } else {
        None
    };
    let (Some(timestamp), None) = (timestamp, &malformed) else {
        return Checked { age, failure: malformed };
    };
    let time = timestamp.to_string();
    let wanted = hex::encode(mac(&keyed(secret), &[time.as_bytes(), body]));
    // No early end: how long it takes says nothing about which digest was good.
    let matches = digests.iter().fold(false, |found, given| found | bool::from(given.ct_eq(wanted.as_bytes())));
    Checked::of(matches, timestamp, now, NAME)
}

/// What Standard Webhooks is checked with.
#[derive(Clone, Copy)]
enum Key<'a> {
    Secret(&'a [u8]),
    Public(&'a [u8]),
}

fn has_version(inbound: &Inbound<'_>, version: &str) -> bool {
    entries(inbound).any(|e| e.split_once(',').is_some_and(|(v, _)| v == version))
}

fn entries<'a>(inbound: &Inbound<'a>) -> impl Iterator<Item = &'a str> {
    std::str::from_utf8(inbound.webhook_signature.unwrap_or_default()).unwrap_or_default().split(' ')
}

/// The entries of one version in `webhook-signature`: blank between entries, comma behind the version.
fn standard_check(inbound: &Inbound<'_>, key: Key<'_>, body: &[u8], now: i64) -> Checked {
    let timestamp = inbound.webhook_timestamp.and_then(number);
    let age = timestamp.filter(|t| *t != 0).map(|t| now.abs_diff(t));
    let fail = |failure| Checked::failed(age, failure);
    let (version, bytes) = match key {
        Key::Secret(_) => ("v1", 32),
        Key::Public(_) => ("v1a", 64),
    };
    for (name, value) in [("webhook-id", inbound.webhook_id), ("webhook-timestamp", inbound.webhook_timestamp)] {
        if value.is_none_or(<[u8]>::is_empty) {
            return fail(Failure::new(Reason::MissingHeader, format_args!("{name} is missing")));
        }
    }
    let Some(timestamp) = timestamp else {
        return fail(Failure::malformed("webhook-timestamp is not a number of seconds"));
    };
    let mut signatures = Vec::new();
    let mut of_version = 0;
    for (n, entry) in (1..).zip(entries(inbound)) {
        let Some((v, text)) = entry.split_once(',') else {
            return fail(Failure::malformed(format_args!("entry {n} of webhook-signature has no ','")));
        };
        if v == version {
            of_version += 1;
            signatures.extend(STANDARD.decode(text).ok().filter(|s| s.len() == bytes));
        }
    }
    if signatures.is_empty() {
        return fail(Failure::malformed(if of_version == 0 {
            format!("webhook-signature has no {version} entry")
        } else {
            format!("{version} in webhook-signature is not the base64 (with padding) of {bytes} bytes")
        }));
    }
    let (id, time) = (inbound.webhook_id.unwrap_or_default(), timestamp.to_string());
    let matches = match key {
        Key::Secret(text) => {
            let secret = match std::str::from_utf8(text).map(|t| SigningSecret::parse(t.to_owned())) {
                Ok(Ok(secret)) => secret,
                Ok(Err(why)) => return fail(Failure::new(Reason::BadKey, format_args!("X-Webhook-Secret: {why}"))),
                Err(_) => return fail(Failure::new(Reason::BadKey, "X-Webhook-Secret is not ASCII")),
            };
            let wanted = mac(&keyed(&secret.standard_key()), &[id, time.as_bytes(), body]);
            signatures.iter().fold(false, |found, given| found | bool::from(given.ct_eq(&wanted)))
        }
        Key::Public(text) => {
            let key = match PublicKey::parse(&String::from_utf8_lossy(text)) {
                Ok(key) => key,
                Err(why) => return fail(Failure::new(Reason::BadKey, format_args!("X-Webhook-Public-Key: {why}"))),
            };
            let content = signed_content(id, time.as_bytes(), body);
            signatures.iter().any(|given| key.verifies(&content, given))
        }
    };
    Checked::of(matches, timestamp, now, version)
}

#[cfg(test)]
#[path = "inbound_tests.rs"]
mod tests;
