//! The fields of an endpoint in a request (creation and change): read strictly, checked against the limits of
//! the interface, every wrong field named. Called by the endpoint routes. No I/O.

use relay_core::address::{self, AddressPolicy};
use relay_core::endpoint::limits;
use relay_core::headers::{self, GivenHeader, GivenHeaders};
use relay_core::matching::TypeFilter;
use relay_core::rate::RateLimit;
use relay_core::signature::{InvalidSchemes, Schemes, SigningSecret};
use serde_json::value::RawValue;

use crate::fields::{self, BodyError, Faults, is_null};
use crate::refusal::Refusal;

const FIELDS: &[&str; 17] = &[
    "name",
    "url",
    "max_retries",
    "retry_backoff_base",
    "retry_max_delay_seconds",
    "retry_schedule_seconds",
    "timeout_seconds",
    "event_types_filter",
    "custom_headers",
    "circuit_failure_threshold",
    "circuit_window_seconds",
    "circuit_recovery_seconds",
    "rate_limit",
    "is_active",
    "paused",
    "signing_secret",
    "signature_schemes",
];

/// What a request says about an endpoint; `None` where it says nothing (or `null`).
#[derive(Debug, Default)]
pub struct Settings {
    /// What people call it.
    pub name: Option<String>,
    /// Where to POST.
    pub url: Option<String>,
    /// Attempts in all.
    pub max_retries: Option<u32>,
    /// Multiplier of the delays.
    pub retry_backoff_base: Option<f64>,
    /// Cap of a delay, in seconds.
    pub retry_max_delay_seconds: Option<u32>,
    /// Explicit delays; `Some(None)` is an explicit null: back to the formula.
    pub retry_schedule_seconds: Option<Option<Vec<u32>>>,
    /// Time-out of one attempt, in seconds.
    pub timeout_seconds: Option<u32>,
    /// Which types it wants.
    pub event_types_filter: Option<TypeFilter>,
    /// Headers that go with each delivery.
    pub custom_headers: Option<GivenHeaders>,
    /// Failures that open its circuit.
    pub circuit_failure_threshold: Option<u32>,
    /// Window of those failures, in seconds.
    pub circuit_window_seconds: Option<u32>,
    /// Time until a probe, in seconds.
    pub circuit_recovery_seconds: Option<u32>,
    /// How often it may be called; `Some(None)` is an explicit null: as often as it can take.
    pub rate_limit: Option<Option<RateLimit>>,
    /// Whether it takes events.
    pub is_active: Option<bool>,
    /// Whether its deliveries wait.
    pub paused: Option<bool>,
    /// A secret to move in with.
    pub signing_secret: Option<SigningSecret>,
    /// Which signatures its deliveries carry.
    pub signature_schemes: Option<Schemes>,
}

/// Reads the body of a creation: name and URL must be there.
pub fn creation(body: &[u8], policy: &AddressPolicy) -> Result<Settings, Refusal> {
    let (settings, mut faults) = read(body, policy)?;
    for (name, header) in settings.custom_headers.iter().flatten() {
        if matches!(header, GivenHeader::Kept) {
            faults.add(format_args!("custom_headers.{name}"), VALUE_NEEDED);
        }
    }
    for (field, given) in [("name", settings.name.is_some()), ("url", settings.url.is_some())] {
        if !given && !faults.0.iter().any(|e| e.field.strip_prefix("body.") == Some(field)) {
            faults.add(field, "is required");
        }
    }
    faults.is_empty().then_some(settings).ok_or(Refusal::Invalid(faults.0))
}

/// Reads the body of a change: only what is there is changed.
pub fn change(body: &[u8], policy: &AddressPolicy) -> Result<Settings, Refusal> {
    let (settings, mut faults) = read(body, policy)?;
    if settings.signing_secret.is_some() {
        faults.add("signing_secret", "is changed by rotate-secret, which lets the old one overlap");
    }
    faults.is_empty().then_some(settings).ok_or(Refusal::Invalid(faults.0))
}

fn read(body: &[u8], policy: &AddressPolicy) -> Result<(Settings, Faults), Refusal> {
    let values = fields::read(body, FIELDS)?;
    let field = |name: &str| {
        let index = FIELDS.iter().position(|f| *f == name);
        index.and_then(|i| values[i])
    };
    let given = |name: &'static str| field(name).filter(|v| !is_null(v)).map(|v| (name, v));
    let mut faults = Faults::default();
    let f = &mut faults;

    let settings = Settings {
        name: given("name").and_then(|(name, v)| text_of(f, name, v, limits::NAME_CHARS.clone())),
        url: given("url").and_then(|(name, v)| {
            let text = f.string(name, v)?;
            note(f, name, address::check_url(&text, policy)).map(|url| url.to_string())
        }),
        max_retries: given("max_retries").and_then(|(n, v)| f.integer(n, v, &limits::MAX_RETRIES)),
        retry_backoff_base: given("retry_backoff_base").and_then(|(n, v)| f.number(n, v, &limits::RETRY_BACKOFF_BASE)),
        retry_max_delay_seconds: given("retry_max_delay_seconds")
            .and_then(|(n, v)| f.integer(n, v, &limits::RETRY_MAX_DELAY_SECONDS)),
        retry_schedule_seconds: match field("retry_schedule_seconds") {
            Some(v) if is_null(v) => Some(None),
            Some(v) => schedule(f, v).map(Some),
            None => None,
        },
        timeout_seconds: given("timeout_seconds").and_then(|(n, v)| f.integer(n, v, &limits::TIMEOUT_SECONDS)),
        event_types_filter: given("event_types_filter").and_then(|(n, v)| filter(f, n, v)),
        custom_headers: given("custom_headers").and_then(|(n, v)| custom_headers(f, n, v)),
        circuit_failure_threshold: given("circuit_failure_threshold")
            .and_then(|(n, v)| f.integer(n, v, &limits::CIRCUIT_THRESHOLD)),
        circuit_window_seconds: given("circuit_window_seconds")
            .and_then(|(n, v)| f.integer(n, v, &limits::CIRCUIT_SECONDS)),
        circuit_recovery_seconds: given("circuit_recovery_seconds")
            .and_then(|(n, v)| f.integer(n, v, &limits::CIRCUIT_SECONDS)),
        rate_limit: match field("rate_limit") {
            Some(v) if is_null(v) => Some(None),
            Some(v) => rate_limit(f, v).map(Some),
            None => None,
        },
        is_active: given("is_active").and_then(|(n, v)| f.boolean(n, v)),
        paused: given("paused").and_then(|(n, v)| f.boolean(n, v)),
        signing_secret: given("signing_secret").and_then(|(n, v)| f.secret(n, v)),
        signature_schemes: given("signature_schemes").and_then(|(n, v)| schemes(f, n, v)),
    };
    Ok((settings, faults))
}

fn note<T, E: std::fmt::Display>(faults: &mut Faults, name: &str, checked: Result<T, E>) -> Option<T> {
    checked.map_err(|why| faults.add(name, why)).ok()
}

/// A text within limits of its length, without control characters (a NUL can't be stored).
pub fn text_of(
    faults: &mut Faults,
    name: &str,
    value: &RawValue,
    chars: std::ops::RangeInclusive<usize>,
) -> Option<String> {
    let text = faults.string(name, value)?;
    if !chars.contains(&text.chars().count()) {
        faults.add(name, format_args!("must have {} to {} characters", chars.start(), chars.end()));
        return None;
    }
    if text.chars().any(char::is_control) {
        faults.add(name, "must not contain control characters");
        return None;
    }
    Some(text.into_owned())
}

fn schedule(faults: &mut Faults, value: &RawValue) -> Option<Vec<u32>> {
    const NAME: &str = "retry_schedule_seconds";
    let items = faults.list(NAME, value)?;
    if !limits::SCHEDULE_LEN.contains(&items.len()) {
        faults.add(
            NAME,
            format_args!("must have {} to {} delays", limits::SCHEDULE_LEN.start(), limits::SCHEDULE_LEN.end()),
        );
        return None;
    }
    let delays: Vec<Option<u32>> = items
        .iter()
        .enumerate()
        .map(|(i, item)| faults.integer(&format!("{NAME}.{i}"), item, &limits::SCHEDULE_DELAY_SECONDS))
        .collect();
    delays.into_iter().collect()
}

fn rate_limit(faults: &mut Faults, value: &RawValue) -> Option<RateLimit> {
    const NAME: &str = "rate_limit";
    const PARTS: &[&str; 2] = &["requests_per_second", "burst"];
    let parts = fields::read(value.get().as_bytes(), PARTS);
    let [per_second, burst] = parts
        .map_err(|why| match why {
            BodyError::Repeated(part) => faults.add(format_args!("{NAME}.{part}"), "stands there twice"),
            BodyError::NotAnObject | BodyError::Malformed(_) => {
                faults.add(NAME, "must be an object with requests_per_second and burst, or null");
            }
        })
        .ok()?;
    let Some(per_second) = per_second else {
        faults.add(format_args!("{NAME}.requests_per_second"), "is required");
        return None;
    };
    let per_second = faults.number(&format!("{NAME}.requests_per_second"), per_second, &limits::RATE_PER_SECOND);
    let burst = match burst.filter(|v| !is_null(v)) {
        Some(burst) => faults.integer(&format!("{NAME}.burst"), burst, &limits::RATE_BURST),
        None => per_second.map(RateLimit::burst_of),
    };
    Some(RateLimit { per_second: per_second?, burst: burst? })
}

fn filter(faults: &mut Faults, name: &str, value: &RawValue) -> Option<TypeFilter> {
    let types = faults.strings(name, value)?;
    TypeFilter::parse(&types).map_err(|e| faults.add(format!("{name}.{}", e.index), e.why)).ok()
}

fn schemes(faults: &mut Faults, name: &str, value: &RawValue) -> Option<Schemes> {
    let names = faults.strings(name, value)?;
    Schemes::parse(&names)
        .map_err(|why| match why {
            InvalidSchemes::Empty => faults.add(name, why),
            InvalidSchemes::Unknown(index) => faults.add(format_args!("{name}.{index}"), why),
        })
        .ok()
}

/// What is wrong with a secret header without a value, where none is stored.
pub const VALUE_NEEDED: &str = "needs a value: none is stored";

fn custom_headers(faults: &mut Faults, name: &str, value: &RawValue) -> Option<GivenHeaders> {
    let map = faults.map(name, value, custom_header)?;
    headers::check(&map)
        .map_err(|e| {
            let path = if e.name.is_empty() { name.to_owned() } else { format!("{name}.{}", e.name) };
            faults.add(path, e.why);
        })
        .ok()?;
    Some(map)
}

/// A string, or `{"value": "…", "secret": true}`; without `value` the stored one stays. Values don't come back in errors.
fn custom_header(faults: &mut Faults, path: &str, given: &RawValue) -> Option<GivenHeader> {
    if !given.get().starts_with('{') {
        const MUST: &str = r#"must be a string, or {"value": "…", "secret": true}"#;
        return faults.string_or(path, given, MUST).map(|text| GivenHeader::Plain(text.into_owned()));
    }
    let [value, secret] = match fields::read(given.get().as_bytes(), &["value", "secret"]) {
        Ok(read) => read.map(|v| v.filter(|v| !is_null(v))),
        Err(why) => {
            faults.add(path, why);
            return None;
        }
    };
    let is_secret = match secret {
        Some(secret) => faults.boolean(&format!("{path}.secret"), secret)?,
        None => false,
    };
    let value = match value {
        Some(value) => Some(faults.string(&format!("{path}.value"), value)?.into_owned()),
        None => None,
    };
    match (value, is_secret) {
        (Some(value), true) => Some(GivenHeader::Secret(value.into())),
        (Some(value), false) => Some(GivenHeader::Plain(value)),
        (None, true) => Some(GivenHeader::Kept),
        // To show a stored secret one would have to know it.
        (None, false) => {
            faults.add(path, "needs a value, or \"secret\": true to keep the stored one");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> AddressPolicy {
        AddressPolicy::new(vec![])
    }

    fn wrong(body: &str) -> Vec<String> {
        match creation(body.as_bytes(), &policy()) {
            Err(Refusal::Invalid(errors)) => errors.into_iter().map(|e| e.field).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn with(fields: &str) -> String {
        format!(r#"{{"name":"n","url":"https://example.com/hook"{fields}}}"#)
    }

    #[test]
    fn a_creation_needs_a_name_and_a_url() {
        let settings = creation(with("").as_bytes(), &policy()).unwrap();
        assert_eq!(settings.name.as_deref(), Some("n"));
        assert_eq!(settings.url.as_deref(), Some("https://example.com/hook"));
        assert_eq!(wrong("{}"), ["body.name", "body.url"]);
        assert_eq!(wrong(r#"{"name":null,"url":7}"#), ["body.url", "body.name"]);
        assert_eq!(wrong(r#"{"name":"","url":"ftp://example.com"}"#), ["body.name", "body.url"]);
        assert_eq!(wrong(r#"{"name":"a\u0000b","url":"http://127.0.0.1/"}"#), ["body.name", "body.url"]);
    }

    #[test]
    fn limits_hold_at_both_edges() {
        for (field, least, most) in [
            ("max_retries", 1, 20),
            ("retry_backoff_base", 1, 10),
            ("retry_max_delay_seconds", 60, 86_400),
            ("timeout_seconds", 5, 120),
            ("circuit_failure_threshold", 1, 100),
            ("circuit_window_seconds", 1, 3600),
            ("circuit_recovery_seconds", 1, 3600),
        ] {
            for good in [least, most] {
                assert!(
                    creation(with(&format!(r#","{field}":{good}"#)).as_bytes(), &policy()).is_ok(),
                    "{field} {good}"
                );
            }
            for bad in [least - 1, most + 1] {
                assert_eq!(wrong(&with(&format!(r#","{field}":{bad}"#))), [format!("body.{field}")]);
            }
            assert_eq!(wrong(&with(&format!(r#","{field}":"{least}""#))), [format!("body.{field}")]);
        }
    }

    #[test]
    fn a_schedule_is_a_list_of_delays_or_null() {
        let read = |list: &str| change(format!(r#"{{"retry_schedule_seconds":{list}}}"#).as_bytes(), &policy());
        assert_eq!(read("[0,1,86400]").unwrap().retry_schedule_seconds, Some(Some(vec![0, 1, 86_400])));
        assert_eq!(read("null").unwrap().retry_schedule_seconds, Some(None));
        assert_eq!(change(b"{}", &policy()).unwrap().retry_schedule_seconds, None);
        for bad in ["[]", "[86401]", "[-1]", "[1.5]", "7", &format!("[{}0]", "0,".repeat(19))] {
            assert!(matches!(read(bad), Err(Refusal::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn lists_and_maps_name_their_wrong_items() {
        assert_eq!(wrong(&with(r#","event_types_filter":["a",7]"#)), ["body.event_types_filter.1"]);
        assert_eq!(wrong(&with(r#","event_types_filter":["order.*","a..b"]"#)), ["body.event_types_filter.1"]);
        assert_eq!(wrong(&with(r#","custom_headers":{"Host":"x"}"#)), ["body.custom_headers.Host"]);
        assert_eq!(wrong(&with(r#","custom_headers":{"X-A":"a\nb"}"#)), ["body.custom_headers.X-A"]);
        assert_eq!(wrong(&with(r#","custom_headers":[]"#)), ["body.custom_headers"]);
        let good = with(r#","event_types_filter":["order.*"],"custom_headers":{"X-A":"b"},"unknown":{}"#);
        let settings = creation(good.as_bytes(), &policy()).unwrap();
        assert!(settings.event_types_filter.unwrap().matches("order.created"));
        assert!(matches!(&settings.custom_headers.unwrap()["X-A"], GivenHeader::Plain(value) if value == "b"));
    }

    #[test]
    fn headers_are_marked_secret_and_their_values_do_not_come_back() {
        let body = r#"{"custom_headers":{"A":{"value":"sesame","secret":true},"B":{"secret":true},"C":{"value":"c"}}}"#;
        let settings = change(body.as_bytes(), &policy()).unwrap();
        assert!(!format!("{settings:?}").contains("sesame"));
        let headers = settings.custom_headers.unwrap();
        assert!(matches!(&headers["A"], GivenHeader::Secret(_)) && matches!(headers["B"], GivenHeader::Kept));
        assert!(matches!(&headers["C"], GivenHeader::Plain(value) if value == "c"));
        let header = |given: &str| wrong(&with(&format!(r#","custom_headers":{{"X-A":{given}}}"#)));
        let path = "body.custom_headers.X-A";
        assert_eq!(header(r#"{"secret":true}"#), [path], "nothing is stored yet");
        for bad in ["7", "null", "[]", "{}", r#"{"secret":false}"#, r#"{"value":null}"#, r#"{"value":"a","value":"b"}"#]
        {
            assert_eq!(header(bad), [path], "{bad}");
        }
        assert_eq!(header(r#"{"value":7,"secret":true}"#), [format!("{path}.value")]);
        assert_eq!(header(r#"{"value":"sesame","secret":"yes"}"#), [format!("{path}.secret")]);
        let refused = with(r#","custom_headers":{"X-A":{"value":"sesame\n","secret":true}}"#);
        let refused = creation(refused.as_bytes(), &policy()).unwrap_err();
        assert!(!format!("{refused:?}").contains("sesame"));
    }

    #[test]
    fn schemes_are_a_list_of_names() {
        let good = creation(with(r#","signature_schemes":["standard-v1a"]"#).as_bytes(), &policy()).unwrap();
        assert_eq!(good.signature_schemes.unwrap().names(), ["standard-v1a"]);
        assert_eq!(wrong(&with(r#","signature_schemes":[]"#)), ["body.signature_schemes"]);
        assert_eq!(wrong(&with(r#","signature_schemes":["standard-v1","v2"]"#)), ["body.signature_schemes.1"]);
        assert_eq!(wrong(&with(r#","signature_schemes":"standard-v1""#)), ["body.signature_schemes"]);
    }

    #[test]
    fn a_rate_limit_has_two_parts_or_is_null() {
        let read = |limit: &str| change(format!(r#"{{"rate_limit":{limit}}}"#).as_bytes(), &policy());
        let of = |per_second, burst| Some(Some(RateLimit { per_second, burst }));
        assert_eq!(read(r#"{"requests_per_second":10,"burst":20}"#).unwrap().rate_limit, of(10.0, 20));
        assert_eq!(read(r#"{"requests_per_second":2.5}"#).unwrap().rate_limit, of(2.5, 3), "a second's worth");
        assert_eq!(read(r#"{"requests_per_second":0.1,"burst":null}"#).unwrap().rate_limit, of(0.1, 1));
        assert_eq!(read("null").unwrap().rate_limit, Some(None));
        assert_eq!(change(b"{}", &policy()).unwrap().rate_limit, None);
        for (bad, field) in [
            ("7", "rate_limit"),
            ("[]", "rate_limit"),
            ("{}", "rate_limit.requests_per_second"),
            (r#"{"requests_per_second":null}"#, "rate_limit.requests_per_second"),
            (r#"{"requests_per_second":0}"#, "rate_limit.requests_per_second"),
            (r#"{"requests_per_second":"5"}"#, "rate_limit.requests_per_second"),
            (r#"{"requests_per_second":10001}"#, "rate_limit.requests_per_second"),
            (r#"{"requests_per_second":5,"burst":0}"#, "rate_limit.burst"),
            (r#"{"requests_per_second":5,"burst":1.5}"#, "rate_limit.burst"),
            (r#"{"requests_per_second":5,"burst":1,"burst":2}"#, "rate_limit.burst"),
        ] {
            let Err(Refusal::Invalid(errors)) = read(bad) else { panic!("{bad}") };
            let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, [format!("body.{field}")], "{bad}");
        }
    }

    #[test]
    fn a_change_changes_no_secret() {
        let refused = change(br#"{"signing_secret":"correct-horse-battery"}"#, &policy()).unwrap_err();
        let Refusal::Invalid(errors) = &refused else { panic!("{refused:?}") };
        assert_eq!(errors[0].field, "body.signing_secret");
        assert!(!format!("{refused:?}").contains("horse"));
    }

    #[test]
    fn nulls_change_nothing_and_secrets_stay_secret() {
        let nulls =
            br#"{"name":null,"url":null,"max_retries":null,"custom_headers":null,"is_active":null,"paused":null}"#;
        let settings = change(nulls, &policy()).unwrap();
        assert!(settings.name.is_none() && settings.url.is_none() && settings.is_active.is_none());
        let errors = creation(with(r#","signing_secret":"short-one""#).as_bytes(), &policy()).unwrap_err();
        assert!(!format!("{errors:?}").contains("short-one"));
        let given = creation(with(r#","signing_secret":"correct-horse-battery""#).as_bytes(), &policy()).unwrap();
        assert!(!format!("{given:?}").contains("horse"));
        assert_eq!(given.signing_secret.unwrap().expose(), "correct-horse-battery");
    }
}
