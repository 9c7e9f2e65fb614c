//! Tests of the check by all schemes: each way in which one fails has its reason.

use proptest::prelude::*;

use super::*;
use crate::endpoint::Secrets;
use crate::signature::{Schemes, SignatureHeaders, Signer, SigningKey};

const T: i64 = 1_800_000_000;
const BODY: &[u8] = br#"{"a":1}"#;

fn secrets() -> Secrets {
    Secrets { key: Some(SigningKey::generate([2; 32])), ..Secrets::of(SigningSecret::generate([1; 32])) }
}

fn signed(secrets: &Secrets) -> SignatureHeaders {
    let all = Schemes::parse(&["webhook-relay", "standard-v1", "standard-v1a"]).unwrap();
    Signer::new(all, secrets, true).sign("evt", T, BODY)
}

/// A request with all headers and both keys, as texts.
struct Case {
    x: String,
    id: String,
    time: String,
    signature: String,
    secret: String,
    key: String,
}

impl Case {
    fn good() -> Self {
        let secrets = secrets();
        let headers = signed(&secrets);
        Self {
            x: headers.x_webhook_signature.unwrap(),
            id: "evt".to_owned(),
            time: T.to_string(),
            signature: headers.webhook_signature.unwrap(),
            secret: secrets.current.expose().to_owned(),
            key: secrets.key.unwrap().public().to_string(),
        }
    }

    fn verdict(&self, body: &[u8], now: i64) -> Verdict {
        let inbound = Inbound {
            x_webhook_signature: Some(self.x.as_bytes()),
            webhook_id: Some(self.id.as_bytes()),
            webhook_timestamp: Some(self.time.as_bytes()),
            webhook_signature: Some(self.signature.as_bytes()),
            secret: Some(self.secret.as_bytes()),
            public_key: Some(self.key.as_bytes()),
        };
        verify(&inbound, body, now)
    }

    /// The reasons by scheme.
    fn reasons(&self, body: &[u8], now: i64) -> Vec<(Scheme, Option<Reason>)> {
        let verdict = self.verdict(body, now);
        verdict.checks.iter().map(|c| (c.scheme, c.failure.as_ref().map(|f| f.reason))).collect()
    }
}

fn all(reason: Option<Reason>) -> Vec<(Scheme, Option<Reason>)> {
    Scheme::ALL.into_iter().map(|scheme| (scheme, reason)).collect()
}

#[test]
fn all_schemes_are_checked_with_what_is_there() {
    let good = Case::good();
    assert_eq!(good.reasons(BODY, T), all(None));
    assert!(good.verdict(BODY, T).valid());
    assert_eq!(good.reasons(BODY, T + 300), all(None));
    assert_eq!(good.reasons(BODY, T + 301), all(Some(Reason::Expired)));
    assert_eq!(good.reasons(BODY, T - 301), all(Some(Reason::FromTheFuture)));
    assert_eq!(good.reasons(b"{}", T), all(Some(Reason::NoMatch)));
    // Another body is no question of age.
    assert_eq!(good.reasons(b"{}", T + 301), all(Some(Reason::NoMatch)));
    let only = Case { x: String::new(), key: String::new(), ..Case::good() };
    assert_eq!(only.reasons(BODY, T), [(Scheme::StandardV1, None)]);
    let only = Case { signature: String::new(), key: String::new(), ..Case::good() };
    assert_eq!(only.reasons(BODY, T), [(Scheme::Relay, None)]);
    let only = Case { secret: String::new(), ..Case::good() };
    assert_eq!(only.reasons(BODY, T), [(Scheme::StandardV1a, None)]);
}

#[test]
fn what_is_missing_is_named() {
    let none = Case { x: String::new(), signature: String::new(), ..Case::good() };
    let keyless = Case { secret: String::new(), key: String::new(), ..Case::good() };
    let public = Case { secret: String::new(), signature: String::new(), ..Case::good() };
    for (case, word) in [(none, "neither"), (keyless, "X-Webhook-Secret"), (public, "webhook-signature")] {
        let verdict = case.verdict(BODY, T);
        let failure = verdict.failure().unwrap();
        assert!(!verdict.valid() && verdict.checks.is_empty());
        assert!(failure.reason == Reason::MissingHeader && failure.detail.contains(word), "{failure:?}");
    }
    for (case, name) in [
        (Case { id: String::new(), ..Case::good() }, "webhook-id"),
        (Case { time: String::new(), ..Case::good() }, "webhook-timestamp"),
    ] {
        let verdict = case.verdict(BODY, T);
        assert_eq!(verdict.checks[0].failure, None);
        let failure = verdict.failure().unwrap();
        assert!(failure.reason == Reason::MissingHeader && failure.detail.contains(name), "{failure:?}");
    }
}

#[test]
fn what_is_malformed_is_named() {
    let relay = |x: &str| Case { x: x.to_owned(), ..Case::good() }.verdict(BODY, T).checks.remove(0);
    for (x, word) in [
        ("rubbish", "part 1"),
        ("t=1,v1", "part 2"),
        ("v1=00", "no t="),
        ("t=now,v1=00", "number of seconds"),
        ("t=1", "no v1="),
        ("t=1,v1=00", "64 hexadecimal"),
    ] {
        let failure = relay(x).failure.unwrap();
        assert!(failure.reason == Reason::MalformedHeader && failure.detail.contains(word), "{x}: {failure:?}");
    }
    let standard = |case: Case| case.verdict(BODY, T).checks.remove(1).failure.unwrap();
    for (case, word) in [
        (Case { time: "x".to_owned(), ..Case::good() }, "webhook-timestamp"),
        (Case { signature: "v1,AAAA".to_owned(), ..Case::good() }, "32 bytes"),
        (Case { signature: "v1,AAAA broken".to_owned(), ..Case::good() }, "entry 2"),
    ] {
        let failure = standard(case);
        assert!(failure.reason == Reason::MalformedHeader && failure.detail.contains(word), "{failure:?}");
    }
    let other = Case { x: String::new(), key: String::new(), signature: "v2,AAAA".to_owned(), ..Case::good() };
    assert!(other.verdict(BODY, T).failure().unwrap().detail.contains("no v1 entry"));
}

#[test]
fn a_wrong_or_unreadable_key_has_its_reason_and_is_not_repeated() {
    let secret = Case { secret: "another-secret-here".to_owned(), ..Case::good() };
    assert_eq!(
        secret.reasons(BODY, T),
        [
            (Scheme::Relay, Some(Reason::NoMatch)),
            (Scheme::StandardV1, Some(Reason::NoMatch)),
            (Scheme::StandardV1a, None)
        ]
    );
    let key = Case { key: SigningKey::generate([9; 32]).public().to_string(), ..Case::good() };
    assert_eq!(key.reasons(BODY, T)[2], (Scheme::StandardV1a, Some(Reason::NoMatch)));
    for case in [
        Case { secret: "whsec_never-show-this".to_owned(), x: String::new(), ..Case::good() },
        Case { key: "whsk_never-show-this".to_owned(), secret: String::new(), ..Case::good() },
    ] {
        let verdict = case.verdict(BODY, T);
        assert_eq!(verdict.failure().unwrap().reason, Reason::BadKey);
        assert!(!format!("{verdict:?}").contains("never-show-this"));
    }
}

#[test]
fn keys_are_read_back_and_hidden() {
    let key = SigningKey::generate([5; 32]);
    let again = SigningKey::parse(key.expose().to_owned()).unwrap();
    assert_eq!(again.public(), key.public());
    assert!(key.expose().starts_with("whsk_") && key.public().to_string().starts_with("whpk_"));
    assert_eq!(PublicKey::parse(&key.public().to_string()), Ok(key.public()));
    let shown = format!("{key:?} {:?}", Secrets { key: Some(key.clone()), ..secrets() });
    assert!(!shown.contains(&key.expose()[5..]), "{shown}");
    // Half of one pair and half of another.
    let mixed = STANDARD.encode([[5; 32], [6; 32]].concat());
    for bad in ["", "whsk_", "whsk_AAAA", &format!("whsk_{mixed}"), &key.expose().replace("whsk", "whpk")] {
        assert!(SigningKey::parse((*bad).to_owned()).is_err(), "{bad}");
    }
    assert!(PublicKey::parse(key.expose()).is_err());
}

proptest! {
    #[test]
    fn any_headers_are_survived(headers: [Option<Vec<u8>>; 6], body: Vec<u8>, now: i64) {
        let [x, id, time, signature, secret, key] = &headers;
        let inbound = Inbound {
            x_webhook_signature: x.as_deref(),
            webhook_id: id.as_deref(),
            webhook_timestamp: time.as_deref(),
            webhook_signature: signature.as_deref(),
            secret: secret.as_deref(),
            public_key: key.as_deref(),
        };
        let verdict = verify(&inbound, &body, now);
        prop_assert_eq!(verdict.valid(), verdict.failure().is_none());
    }

    #[test]
    fn what_every_scheme_signs_verifies_with_both_generations(old: [u8; 32], new: [u8; 32], body: Vec<u8>, t in 1i64..4_000_000_000) {
        prop_assume!(old != new);
        let of = |seed| (SigningSecret::generate(seed), SigningKey::generate(seed));
        let (previous, current) = (of(old), of(new));
        let secrets = Secrets {
            current: current.0.clone(),
            key: Some(current.1.clone()),
            previous: Some(crate::endpoint::PreviousSecrets {
                secret: previous.0.clone(),
                key: Some(previous.1.clone()),
                until: chrono::DateTime::UNIX_EPOCH,
            }),
            ..secrets()
        };
        let every = Schemes::parse(&["webhook-relay", "standard-v1", "standard-v1a"]).unwrap();
        for (in_overlap, generation, good) in [(true, &previous, true), (true, &current, true), (false, &previous, false), (false, &current, true)] {
            let headers = Signer::new(every, &secrets, in_overlap).sign("id", t, &body);
            let case = Case {
                x: headers.x_webhook_signature.unwrap(),
                id: "id".to_owned(),
                time: t.to_string(),
                signature: headers.webhook_signature.unwrap(),
                secret: generation.0.expose().to_owned(),
                key: generation.1.public().to_string(),
            };
            let expected = if good { None } else { Some(Reason::NoMatch) };
            prop_assert_eq!(case.reasons(&body, t), all(expected));
        }
    }
}
