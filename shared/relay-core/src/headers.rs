//! The custom headers of an endpoint: which names and values may go with its deliveries. Asked when an endpoint is
//! saved; the deliverer relies on it.
//!
//! Refused are headers that belong to the connection (RFC 9110, 7.6.1), those that describe the body, and ours:
//! a signature header that a user could set would be worth nothing.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::{ExposeSecret, SecretString};

use crate::sealing::is_sealed;

/// Headers of one endpoint at most.
pub const HEADERS_MAX: usize = 50;
/// Bytes of a name at most.
pub const NAME_BYTES_MAX: usize = 256;
/// Bytes of a value at most.
pub const VALUE_BYTES_MAX: usize = 4096;

/// About this connection, not about the request.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
];
/// Set by us or by the HTTP client. A constant idempotency key would make receivers drop all but one event.
const RESERVED: &[&str] = &[
    "host",
    "user-agent",
    "accept-encoding",
    "content-encoding",
    "content-length",
    "content-type",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];
/// Names that start like this are taken as well, those of later versions included.
const RESERVED_PREFIXES: &[&str] = &["x-webhook-"];
/// It could not be told from what we store in place of a secret.
const STARTS_SEALED: &str = "a header value must not start with sealed:";

/// Words in the names of headers that carry credentials.
const SECRET_WORDS: &[&str] =
    &["authorization", "cookie", "token", "secret", "key", "password", "signature", "credential"];

/// Which header can't be used, and why. The value is not repeated: it may be a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct HeaderError {
    /// The name, as it was given; empty where all of them together are too many.
    pub name: String,
    /// What is wrong.
    pub why: &'static str,
}

/// What a request says of one custom header. `Debug` hides secret values.
#[derive(Clone, Debug)]
pub enum GivenHeader {
    /// It is shown with the endpoint.
    Plain(String),
    /// It is stored sealed, and never shown again.
    Secret(SecretString),
    /// The stored value stays, and is secret from now on.
    Kept,
}

/// Custom headers by name.
pub type GivenHeaders = BTreeMap<String, GivenHeader>;

/// Checks all custom headers of an endpoint.
pub fn check(headers: &GivenHeaders) -> Result<(), HeaderError> {
    if headers.len() > HEADERS_MAX {
        return Err(HeaderError { name: String::new(), why: "at most 50 custom headers are allowed" });
    }
    let mut seen = BTreeSet::new();
    for (name, given) in headers {
        let refused = |why| HeaderError { name: name.clone(), why };
        let value = match given {
            GivenHeader::Plain(value) => check_value(value),
            GivenHeader::Secret(value) => check_value(value.expose_secret()),
            GivenHeader::Kept => Ok(()),
        };
        check_name(name).and(value).map_err(refused)?;
        if !seen.insert(name.to_ascii_lowercase()) {
            return Err(refused("the name stands there twice (case doesn't matter)"));
        }
    }
    Ok(())
}

/// Whether a header's value is kept out of the attempt log: by its name it carries a credential.
pub fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| lower.contains(word))
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err("a header name has 1 to 256 characters");
    }
    if !name.bytes().all(is_token_byte) {
        return Err("a header name consists of letters, digits and !#$%&'*+-.^_`|~");
    }
    let lower = name.to_ascii_lowercase();
    if HOP_BY_HOP.contains(&lower.as_str()) || lower.starts_with("proxy-") {
        return Err("this header belongs to the connection and can't be set");
    }
    if RESERVED.contains(&lower.as_str()) || RESERVED_PREFIXES.iter().any(|p| lower.starts_with(p)) {
        return Err("this header is set by the system and can't be replaced");
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), &'static str> {
    if value.len() > VALUE_BYTES_MAX {
        return Err("a header value has at most 4096 bytes");
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b) || b == b'\t') {
        return Err("a header value consists of printable ASCII characters");
    }
    if is_sealed(value) {
        return Err(STARTS_SEALED);
    }
    if value.trim_matches([' ', '\t']) != value {
        return Err("a header value must not start or end with a blank");
    }
    Ok(())
}

/// The characters of a token (RFC 9110, 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(headers: &[(&str, &str)]) -> GivenHeaders {
        headers.iter().map(|(n, v)| ((*n).to_owned(), GivenHeader::Plain((*v).to_owned()))).collect()
    }

    #[test]
    fn ordinary_headers_pass_unchanged() {
        let headers = map(&[
            ("Authorization", "Bearer abc.def"),
            ("X-Tenant", ""),
            ("X-Tabs", "a\tb"),
            ("Cookie", "a=b; c=d"),
            ("X-Webhook", "no prefix of ours"),
            ("webhook-source", "not one of the three"),
        ]);
        assert_eq!(check(&headers), Ok(()));
    }

    #[test]
    fn headers_of_the_connection_and_ours_are_refused_in_any_case() {
        for name in [
            "Connection",
            "KEEP-ALIVE",
            "Proxy-Authorization",
            "proxy-connection",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "Expect",
            "Host",
            "User-Agent",
            "Content-Length",
            "content-type",
            "Content-Encoding",
            "Idempotency-Key",
            "X-Webhook-Signature",
            "x-webhook-anything",
            "Webhook-Id",
            "webhook-timestamp",
            "webhook-signature",
            "traceparent",
        ] {
            assert_eq!(check(&map(&[(name, "x")])).unwrap_err().name, name);
        }
    }

    #[test]
    fn nothing_can_break_out_of_its_line() {
        for (name, value) in [
            ("X\r\nHost", "a"),
            ("X-A", "a\r\nHost: b"),
            ("X-A", "a\nb"),
            ("X-A", "a\0b"),
            ("X-A", "a\u{7f}"),
            ("X-A", " a"),
            ("X-A", "a\t"),
            ("X-A", "é"),
            ("X A", "a"),
            ("X-A:", "a"),
            (":path", "/"),
            ("é", "a"),
            ("", "a"),
        ] {
            assert!(check(&map(&[(name, value)])).is_err(), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn limits_hold_at_their_edges() {
        let many = |n: usize| (0..n).map(|i| (format!("X-{i}"), GivenHeader::Kept)).collect::<GivenHeaders>();
        assert!(check(&many(HEADERS_MAX)).is_ok());
        assert!(check(&many(HEADERS_MAX + 1)).is_err());
        assert!(check(&map(&[(&"x".repeat(NAME_BYTES_MAX), &"v".repeat(VALUE_BYTES_MAX))])).is_ok());
        assert!(check(&map(&[(&"x".repeat(NAME_BYTES_MAX + 1), "")])).is_err());
        assert!(check(&map(&[("x", &"v".repeat(VALUE_BYTES_MAX + 1))])).is_err());
        assert!(check(&map(&[("X-A", "1"), ("x-a", "2")])).is_err());
    }

    #[test]
    fn secret_values_are_checked_as_others_are_and_hidden() {
        let secret = |name: &str, value: &str| {
            GivenHeaders::from([(name.to_owned(), GivenHeader::Secret(value.to_owned().into()))])
        };
        assert!(!format!("{:?}", secret("X-A", "sesame")).contains("sesame"));
        assert_eq!(check(&secret("X-A", "sesame")), Ok(()));
        for (name, value) in [("X-A", "a\nb"), ("X-A", "sealed:v1:"), ("Host", "a")] {
            assert_eq!(check(&secret(name, value)).unwrap_err().name, name);
        }
        assert!(check(&map(&[("X-A", "sealed:v1:")])).is_err());
        assert!(check(&GivenHeaders::from([("Host".to_owned(), GivenHeader::Kept)])).is_err());
    }

    #[test]
    fn credentials_are_known_by_name() {
        for name in ["Authorization", "X-Api-Key", "Cookie", "x-auth-token", "X-Hub-Signature"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("X-Tenant"));
    }

    proptest! {
        #[test]
        fn what_passes_is_one_line(name in "\\PC{0,12}", value in any::<String>()) {
            if check(&map(&[(&name, &value)])).is_ok() {
                let line = format!("{name}: {value}");
                prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b) || b == b'\t'));
                prop_assert_eq!(line.split_once(": "), Some((name.as_str(), value.as_str())));
            }
        }

        #[test]
        fn reserved_names_are_found_in_any_case(index in 0..RESERVED.len(), upper: u64) {
            let name: String = RESERVED[index]
                .chars()
                .enumerate()
                .map(|(i, c)| if upper >> (i % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
                .collect();
            prop_assert!(check(&map(&[(&name, "x")])).is_err());
        }
    }
}
