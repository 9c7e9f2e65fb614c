//! Fuzz targets: the bodies of requests that make events and endpoints.

use bytes::Bytes;
use relay_core::address::{self, AddressPolicy};
use relay_core::event::check_payload;
use relay_fuzz::{fuzz, parts};

use crate::admit::{self, Draft, Headers};
use crate::batch;
use crate::refusal::Refusal;
use crate::settings;

const PAYLOAD_MAX: usize = 4096;
const WORDS: &[&[u8]] = &[
    b"\"event_type\":",
    b"\"payload\":",
    b"\"idempotency_key\":",
    b"\"endpoint_id\":",
    b"{",
    b"[",
    b"null",
    b"true",
    b",",
    b"\"a\":",
    b"\\u0065",
    b"\\u0000",
    b"\xff",
];

/// What must hold for an event that would be accepted from `body`.
fn check_draft(draft: &Draft, body: &Bytes) {
    assert!(check_payload(&draft.payload, PAYLOAD_MAX).is_ok());
    let (start, end) = (body.as_ptr() as usize, body.as_ptr() as usize + body.len());
    assert!((start..=end).contains(&(draft.payload.as_ptr() as usize)), "the payload is a slice of the body");
    assert!(draft.key.as_ref().is_none_or(|key| !key.as_str().contains('\0')));
    assert!(draft.trace.as_ref().is_none_or(|trace| trace.bytes().all(|b| b.is_ascii_graphic())));
}

/// A refusal, coarsely; each must be the client's fault and say where.
fn coarse(refusal: &Refusal) -> String {
    assert!(refusal.is_the_clients(), "{refusal:?}");
    match refusal {
        Refusal::Invalid(errors) => {
            assert!((1..=100).contains(&errors.len()), "{} faults", errors.len());
            assert!(errors.iter().all(|e| e.field.starts_with("body") || e.field.starts_with("header.")), "{errors:?}");
            errors.iter().map(|e| e.field.as_str()).take(3).collect::<Vec<_>>().join(" ")
        }
        Refusal::Malformed(why) => why.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn events() {
    let seeds = [
        &br#"{"event_type":"order.created","payload":{"a":1}}"#[..],
        b"{\"event_type\":\"a\",\"payload\":1,\"idempotency_key\":\"k\",\"endpoint_id\":\"0190a5b2-7c00-7000-8000-000000000001\"}\xffk\xff00-1-2-01",
        br#"{"event_type":"a","payload":1,"payload":2,"other":[[{}]]}"#,
        br#"[{"event_type":"a"}]"#,
    ];
    fuzz("events", &seeds, WORDS, |input| {
        let [body, key, trace] = parts(input);
        let there = |bytes| Some(bytes).filter(|bytes: &&[u8]| !bytes.is_empty());
        let body = Bytes::copy_from_slice(body);
        let draft = admit::draft(&body, Headers { key: there(key), trace: there(trace) }, PAYLOAD_MAX);
        if let Ok(draft) = &draft {
            check_draft(draft, &body);
            let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            assert!(value.is_null() || value["event_type"] == draft.event_type.as_str());
        }
        draft.map(|draft| (draft.endpoint.is_some(), draft.key.is_some())).map_err(|refusal| coarse(&refusal))
    });
}

#[test]
fn batches() {
    let seeds = [
        r#"{"events":[{"event_type":"a","payload":1},{"event_type":"b","payload":{},"idempotency_key":"k"}]}"#,
        r#"{"events":[{"event_type":"a","payload":1,"idempotency_key":"k"},{"event_type":"b","payload":1,"idempotency_key":"k"},7]}"#,
        r#"{"events":[]}"#,
    ];
    fuzz("batches", &seeds, &[WORDS, &[b"\"events\":", b"},{"]].concat(), |input| {
        let body = Bytes::copy_from_slice(input);
        let drafts = batch::drafts(&body, None, PAYLOAD_MAX).map_err(|refusal| coarse(&refusal))?;
        assert!((1..=batch::EVENTS_MAX).contains(&drafts.len()));
        let outcomes = drafts.iter().map(|draft| match draft {
            Ok(draft) => {
                check_draft(draft, &body);
                "ok".to_owned()
            }
            Err(refusal) => coarse(refusal),
        });
        Ok::<_, String>(outcomes.take(4).collect::<Vec<_>>())
    });
}

#[test]
fn endpoints() {
    let seeds = [
        r#"{"name":"n","url":"https://example.com/hook","max_retries":3,"custom_headers":{"X-A":"b"},"event_types_filter":["a.*"]}"#,
        r#"{"name":"n","url":"http://u:p@example.com","retry_schedule_seconds":[0,1,86400],"retry_backoff_base":1.5,"timeout_seconds":5}"#,
        r#"{"is_active":false,"paused":true,"signature_schemes":["relay","standard-v1a"],"signing_secret":"correct-horse-battery"}"#,
        r#"{"name":null,"url":"http://127.0.0.1/","circuit_failure_threshold":1e400,"retry_schedule_seconds":null}"#,
    ];
    let words: &[&[u8]] = &[
        b"\"name\":",
        b"\"url\":",
        b"\"max_retries\":",
        b"\"custom_headers\":",
        b"\"signing_secret\":",
        b"https://",
        b"1e400",
        b"-0",
        b"[",
        b"{",
        b"null",
        b"\\u0000",
    ];
    let policy = AddressPolicy::default();
    fuzz("endpoints", &seeds, words, |input| {
        let read = [settings::creation(input, &policy), settings::change(input, &policy)];
        read.map(|read| match read {
            Ok(settings) => {
                if let Some(url) = &settings.url {
                    assert!(address::check_url(url, &policy).is_ok_and(|same| same.as_str() == url), "{url}");
                }
                assert!(settings.name.as_ref().is_none_or(|name| !name.is_empty() && !name.contains('\0')));
                assert!(settings.retry_backoff_base.is_none_or(|base| (1.0..=10.0).contains(&base)));
                assert!(settings.timeout_seconds.is_none_or(|s| (5..=120).contains(&s)));
                let shown = format!("{settings:?}");
                let secret = settings.signing_secret.as_ref().map(|s| s.expose()).filter(|s| s.starts_with("correct"));
                assert!(secret.is_none_or(|secret| !shown.contains(secret)), "a secret is shown");
                "ok".to_owned()
            }
            Err(refusal) => coarse(&refusal),
        })
    });
}
