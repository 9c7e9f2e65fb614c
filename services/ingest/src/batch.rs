//! Many events in one request: the request becomes drafts, one by one, each with its own refusal. Called by the batch
//! route. No I/O here.
//!
//! Invariant: the outcomes are in the order of the events, and no event's refusal touches another event.

use std::collections::HashMap;

use bytes::Bytes;
use relay_core::ids::IdempotencyKey;
use relay_core::problem::FieldError;

use crate::admit::{self, Draft, Headers};
use crate::fields::{self, Faults};
use crate::refusal::Refusal;

/// Events of one request at most.
pub const EVENTS_MAX: usize = 1000;
/// Bytes of one request at most.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The field of a request.
const FIELDS: &[&str; 1] = &["events"];

/// The drafts of a request, or why it can't be read at all. `payload_max` is in bytes.
pub fn drafts(body: &Bytes, trace: Option<&[u8]>, payload_max: usize) -> Result<Vec<Result<Draft, Refusal>>, Refusal> {
    let [events] = fields::read(body, FIELDS)?;
    let mut faults = Faults::default();
    let items = match events {
        Some(value) => faults.list("events", value),
        None => {
            faults.add("events", "is required");
            None
        }
    };
    let items = items.unwrap_or_default();
    if faults.is_empty() && !(1..=EVENTS_MAX).contains(&items.len()) {
        faults.add("events", format_args!("must have 1 to {EVENTS_MAX} events"));
    }
    if !faults.is_empty() {
        return Err(Refusal::Invalid(faults.0));
    }
    let headers = Headers { key: None, trace };
    let drafts = items.into_iter().enumerate().map(|(index, item)| {
        let item = body.slice_ref(item.get().as_bytes());
        admit::draft(&item, headers, payload_max).map_err(|refusal| located(refusal, index))
    });
    Ok(refuse_reused(drafts.collect()))
}

/// Field errors of one event, named from the root of the request.
fn located(refusal: Refusal, index: usize) -> Refusal {
    let Refusal::Invalid(errors) = refusal else { return refusal };
    let rename = |e: FieldError| {
        let rest = e.field.strip_prefix("body").unwrap_or(&e.field);
        FieldError { field: format!("body.events.{index}{rest}"), message: e.message }
    };
    Refusal::Invalid(errors.into_iter().map(rename).collect())
}

/// Refuses what has the key of an event before it and says something else.
fn refuse_reused(mut drafts: Vec<Result<Draft, Refusal>>) -> Vec<Result<Draft, Refusal>> {
    let mut firsts: HashMap<IdempotencyKey, usize> = HashMap::new();
    for index in 0..drafts.len() {
        let Some(key) = drafts[index].as_ref().ok().and_then(|d| d.key.clone()) else { continue };
        let first = *firsts.entry(key).or_insert(index);
        let is_same = match (&drafts[first], &drafts[index]) {
            (Ok(a), Ok(b)) => a.endpoint == b.endpoint && a.event_type == b.event_type && a.payload == b.payload,
            _ => true,
        };
        if !is_same {
            drafts[index] = Err(Refusal::KeyReused);
        }
    }
    drafts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<Vec<Result<Draft, Refusal>>, Refusal> {
        drafts(&Bytes::from(body.to_owned()), None, 100)
    }

    fn field(refusal: &Refusal) -> &str {
        match refusal {
            Refusal::Invalid(errors) => &errors[0].field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_event_has_its_own_outcome() {
        let large = "x".repeat(100);
        let body = format!(
            r#"{{"events":[{{"event_type":"a","payload": {{"n":1}} }},{{"payload":1}},7,{{"event_type":"a","payload":"{large}"}}]}}"#
        );
        let outcomes = read(&body).unwrap();
        assert_eq!(outcomes[0].as_ref().unwrap().payload, r#"{"n":1}"#);
        assert_eq!(field(outcomes[1].as_ref().unwrap_err()), "body.events.1.event_type");
        assert_eq!(field(outcomes[2].as_ref().unwrap_err()), "body.events.2");
        assert_eq!(outcomes[3], Err(Refusal::TooLarge { limit: 100 }));
    }

    #[test]
    fn a_request_without_events_is_refused_as_a_whole() {
        for bad in ["{}", r#"{"events":null}"#, r#"{"events":[]}"#, r#"{"events":{}}"#] {
            assert_eq!(field(&read(bad).unwrap_err()), "body.events", "{bad}");
        }
        assert_eq!(field(&read("[]").unwrap_err()), "body");
        let event = r#"{"event_type":"a","payload":1}"#;
        let many = |n: usize| format!(r#"{{"events":[{}]}}"#, vec![event; n].join(","));
        assert_eq!(field(&read(&many(EVENTS_MAX + 1)).unwrap_err()), "body.events");
        assert_eq!(read(&many(EVENTS_MAX)).unwrap().len(), EVENTS_MAX);
        assert!(matches!(read(r#"{"events":[{]}"#), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn a_key_that_comes_twice_must_say_the_same() {
        let event = |payload: u32| format!(r#"{{"event_type":"a","payload":{payload},"idempotency_key":"k"}}"#);
        let body = format!(r#"{{"events":[{},{},{}]}}"#, event(1), event(1), event(2));
        let outcomes = read(&body).unwrap();
        assert!(outcomes[0].is_ok() && outcomes[1].is_ok());
        assert_eq!(outcomes[2], Err(Refusal::KeyReused));
    }

    proptest! {
        #[test]
        fn any_body_is_drafts_or_a_refusal(body: Vec<u8>) {
            let _ = drafts(&Bytes::from(body), None, 100);
        }

        #[test]
        fn any_events_have_as_many_outcomes(events in prop::collection::vec("(\\{\\}|7|null|\\{\"event_type\":\"[a.]{0,3}\",\"payload\":[0-9]\\})", 1..20)) {
            prop_assert_eq!(read(&format!(r#"{{"events":[{}]}}"#, events.join(","))).unwrap().len(), events.len());
        }
    }
}
