//! Tests of the signatures: the published vectors, rotation, and every way in which verification must fail.

use chrono::DateTime;
use proptest::prelude::*;

use super::*;
use crate::endpoint::PreviousSecrets;

const SEED_SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn secret(text: &str) -> SigningSecret {
    SigningSecret::parse(text.to_owned()).unwrap()
}

/// Both headers of an attempt.
struct Signed {
    x_webhook_signature: String,
    webhook_signature: String,
}

fn signed(signer: &Signer, id: &str, t: i64, body: &[u8]) -> Signed {
    let headers = signer.sign(id, t, body);
    Signed {
        x_webhook_signature: headers.x_webhook_signature.unwrap(),
        webhook_signature: headers.webhook_signature.unwrap(),
    }
}

/// What one attempt is signed with.
fn sign(id: &str, t: i64, body: &[u8], secret: &SigningSecret) -> Signed {
    signed(&Signer::new(Schemes::default(), &Secrets::of(secret.clone()), false), id, t, body)
}

fn rotated(current: &SigningSecret, previous: Option<&SigningSecret>) -> Secrets {
    let previous = previous.map(|old| PreviousSecrets { secret: old.clone(), key: None, until: DateTime::UNIX_EPOCH });
    Secrets { previous, ..Secrets::of(current.clone()) }
}

/// Time, body and digest that the Python WebhookRelay gives for [`SEED_SECRET`].
const SEED_VECTORS: [(i64, &str, &str); 3] = [
    (
        1_614_556_800,
        r#"{"order_id":42,"total":99.99}"#,
        "be7fa47a42aea905427961f57a4a353c4a21ce1eb5dfcd702999fb5b3ac9d705",
    ),
    (1_700_000_000, "{}", "edb7e8d0128566d96a08fd9a3b35bed9226c3363fb5da1f4cda941cc7250d93e"),
    (
        1_700_000_000,
        r#"{"A":"x/\"\\\n\u007f","a":{"y":"\u20ac\ud83d\ude00","z":"\u00e9"},"b":[1,2.0,null,true]}"#,
        "2b308ec0ee4568eb01580f3863f47ee773549fb32081bd01a7b3d63b9faf3825",
    ),
];

#[test]
fn the_python_relays_vectors_hold() {
    for (t, body, digest) in SEED_VECTORS {
        let header = format!("t={t},v1={digest}");
        let signed = sign("e", t, body.as_bytes(), &secret(SEED_SECRET));
        assert_eq!(signed.x_webhook_signature, header);
        let verdict = verify_inbound(header.as_bytes(), SEED_SECRET, body.as_bytes(), t);
        assert_eq!(verdict, InboundVerdict { valid: true, timestamp_age_seconds: Some(0), error: None });
    }
}

#[test]
fn the_vectors_of_standard_webhooks_hold() {
    let vectors = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
    ];
    for (key, id, t, body, wanted) in vectors {
        assert_eq!(sign(id, t, body.as_bytes(), &secret(key)).webhook_signature, wanted);
    }
}

#[test]
fn an_overlap_signs_with_both_the_new_one_first() {
    let (new, old) = (SigningSecret::generate([1; 32]), secret(SEED_SECRET));
    let both = signed(&Signer::new(Schemes::default(), &rotated(&new, Some(&old)), true), "id", 5, b"{}");
    let (a, b) = (sign("id", 5, b"{}", &new), sign("id", 5, b"{}", &old));
    let digest = |s: &Signed| s.x_webhook_signature.split_once(',').unwrap().1.to_owned();
    assert_eq!(both.x_webhook_signature, format!("t=5,{},{}", digest(&a), digest(&b)));
    assert_eq!(both.webhook_signature, format!("{} {}", a.webhook_signature, b.webhook_signature));
    for key in [new.expose(), old.expose()] {
        assert!(verify_inbound(both.x_webhook_signature.as_bytes(), key, b"{}", 5).valid);
    }
}

#[test]
fn secrets_are_checked_and_hidden() {
    let made = SigningSecret::generate([7; 32]);
    assert!(made.expose().starts_with("whsec_") && made.expose().len() == 50);
    assert!(SigningSecret::parse(made.expose().to_owned()).is_ok());
    assert_eq!(made.standard_webhooks_form(), made.expose());
    let shown = format!("{made:?} {:?}", Signer::new(Schemes::default(), &Secrets::of(made.clone()), false));
    assert!(!shown.contains(&made.expose()[6..]), "{shown}");

    let parse = |text: &str| SigningSecret::parse(text.to_owned()).err();
    for bad in ["x".repeat(15), "x".repeat(257), "a line break here\n".to_owned(), "sécret-sécret-sécret".to_owned()]
    {
        assert_eq!(parse(&bad), Some(InvalidSecret::Characters), "{bad:?}");
    }
    for good in ["x".repeat(16), "x".repeat(256), "with a blank in it".to_owned()] {
        assert_eq!(parse(&good), None, "{good}");
    }
    assert_eq!(parse("whsec_this-is-not-base64"), Some(InvalidSecret::NotBase64));
}

#[test]
fn a_plain_secret_has_a_standard_webhooks_form_that_signs_alike() {
    let plain = secret("plain-secret-of-another-system");
    let form = secret(&plain.standard_webhooks_form());
    let signature = |s: &SigningSecret| sign("id", 9, b"[]", s).webhook_signature;
    assert_eq!(signature(&plain), signature(&form));
}

#[test]
fn verification_fails_as_it_should() {
    let (t, body, digest) = SEED_VECTORS[0];
    let check = |header: &str| verify_inbound(header.as_bytes(), SEED_SECRET, body.as_bytes(), t).valid;
    let other = "0".repeat(64);
    for good in [
        format!("t={t},v1={digest}"),
        format!("v1={digest},t={t}"),
        format!("t={t},v0={other},v1={digest}"),
        format!("t={t},v1={other},v1={digest}"),
        format!("t={t},v1={digest},v1={other}"),
        format!("t=1,t={t},v1={digest}"),
    ] {
        assert!(check(&good), "{good}");
    }
    for bad in [
        format!("t={t}, v1={digest}"),
        format!("t={t},v1={digest},"),
        format!("t={t},v1={}", digest.to_uppercase()),
        format!("t={t},v1={}", &digest[..62]),
        format!("t={t},v1={other}"),
        format!("t={t},v1="),
        format!("t={t}"),
        format!("v1={digest}"),
        format!("t=,v1={digest}"),
        format!("t=9999999999999999999999,v1={digest}"),
        format!("t={t},v1,{digest}"),
        "invalid-format".to_owned(),
    ] {
        assert!(!check(&bad), "{bad}");
    }
    let header = format!("t={t},v1={digest}");
    let at = |now: i64| verify_inbound(header.as_bytes(), SEED_SECRET, body.as_bytes(), now);
    for (now, valid) in [(t + 300, true), (t - 300, true), (t + 301, false), (t - 301, false)] {
        let verdict = at(now);
        assert_eq!(verdict.valid, valid);
        assert_eq!(verdict.timestamp_age_seconds, Some((now - t).abs()));
        assert_eq!(verdict.error, (!valid).then_some(VERIFICATION_FAILED));
    }
    assert!(!verify_inbound(header.as_bytes(), "another", body.as_bytes(), t).valid);
    assert!(!verify_inbound(header.as_bytes(), SEED_SECRET, b"{}", t).valid);
}

#[test]
fn missing_headers_and_unreadable_times_are_named() {
    let missing = InboundVerdict { valid: false, timestamp_age_seconds: None, error: Some(MISSING_HEADER) };
    assert_eq!(verify_inbound(b"", "secret", b"", 1), missing);
    assert_eq!(verify_inbound(b"t=1,v1=a", "", b"", 1), missing);
    for header in [&b"t=x,v1=a"[..], b"t=0,v1=a", b"\xff\xfe", b"t=\xff,v1=\xff"] {
        let verdict = verify_inbound(header, "secret", b"", 1_000_000);
        assert_eq!((verdict.timestamp_age_seconds, verdict.error), (None, Some(VERIFICATION_FAILED)));
    }
    assert_eq!(verify_inbound(b"t=10,v1=a", "secret", b"", 4).timestamp_age_seconds, Some(6));
}

proptest! {
    #[test]
    fn what_is_signed_verifies_and_a_changed_byte_does_not(
        key: [u8; 32], old in prop::option::of("[ -~]{16,256}"), t in 0i64..4_000_000_000, body: Vec<u8>, at: prop::sample::Index
    ) {
        let current = SigningSecret::generate(key);
        // What happens to start with whsec_ may be refused.
        let previous = old.and_then(|text| SigningSecret::parse(text).ok());
        let signed = signed(&Signer::new(Schemes::default(), &rotated(&current, previous.as_ref()), true), "id", t, &body);
        let header = signed.x_webhook_signature.as_bytes();
        prop_assert!(verify_inbound(header, current.expose(), &body, t).valid);
        if let Some(previous) = &previous {
            prop_assert!(verify_inbound(header, previous.expose(), &body, t).valid);
        }
        let mut changed = body.clone();
        match changed.len() {
            0 => changed.push(b' '),
            len => changed[at.index(len)] ^= 1,
        }
        prop_assert!(!verify_inbound(header, current.expose(), &changed, t).valid);
    }

    #[test]
    fn any_header_is_survived(header: Vec<u8>, secret in "\\PC{0,20}", body: Vec<u8>, now: i64) {
        let _ = verify_inbound(&header, &secret, &body, now);
    }

    #[test]
    fn any_time_is_survived(t: i64, now: i64) {
        prop_assert_eq!(verify_inbound(format!("t={t},v1=00").as_bytes(), "secret", b"", now).valid, false);
    }
}
