//! An endpoint's custom headers: which may be set. Ours, those of the connection and those that carry the body
//! can't be replaced.

use std::collections::BTreeMap;

/// Headers at most.
pub const HEADERS_MAX: usize = 50;
/// Bytes of a name at most.
pub const NAME_BYTES_MAX: usize = 256;
/// Bytes of a value at most.
pub const VALUE_BYTES_MAX: usize = 4096;

/// Names that are ours or the connection's (RFC 9110, 7.6.1), in lower case.
const RESERVED: [&str; 22] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "accept-encoding",
    "traceparent",
    "tracestate",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// Which header can't be set, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct HeaderError {
    /// The name, as it was given.
    pub name: String,
    /// Why.
    pub why: &'static str,
}

/// Checks all custom headers of an endpoint.
pub fn check(headers: &BTreeMap<String, String>) -> Result<(), HeaderError> {
    let refuse = |name: &str, why| Err(HeaderError { name: name.to_owned(), why });
    if headers.len() > HEADERS_MAX {
        return refuse("", "at most 50 custom headers are allowed");
    }
    let mut seen = std::collections::BTreeSet::new();
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token) {
            return refuse(name, "not a header name");
        }
        if RESERVED.contains(&lower.as_str()) || lower.starts_with("x-webhook-") {
            return refuse(name, "this header is set by the system and can't be replaced");
        }
        if value.len() > VALUE_BYTES_MAX {
            return refuse(name, "a header value has at most 4096 bytes");
        }
        if !value.bytes().all(|b| (0x20..0x7f).contains(&b) || b == b'\t') {
            return refuse(name, "a header value consists of printable ASCII characters");
        }
        if !seen.insert(lower) {
            return refuse(name, "the name stands there twice, in different spelling");
        }
    }
    Ok(())
}

/// Whether a header's value is kept out of the attempt log: it carries a credential by its name.
pub fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["authorization", "cookie", "token", "secret", "key", "password", "signature", "credential"]
        .iter()
        .any(|s| lower.contains(s))
}

/// A token character of RFC 9110, 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(name: &str, value: &str) -> Result<(), HeaderError> {
        check(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn ours_and_the_connections_are_refused() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "X-Webhook-Signature",
            "x-webhook-anything",
            "Webhook-Id",
            "Connection",
            "Content-Type",
        ] {
            assert!(one(name, "x").is_err(), "{name}");
        }
        for (name, value) in [("", "x"), ("a b", "x"), ("é", "x"), ("a", "x\r\ny: z"), ("a", "\0"), ("a", "é")] {
            assert!(one(name, value).is_err(), "{name:?} {value:?}");
        }
        assert!(one("Authorization", "Bearer abc").is_ok());
        assert!(one("X-Tenant", "a\tb").is_ok());
        let twice = BTreeMap::from([("X-A".to_owned(), String::new()), ("x-a".to_owned(), String::new())]);
        assert!(check(&twice).is_err());
    }

    #[test]
    fn credentials_are_known_by_name() {
        for name in ["Authorization", "X-Api-Key", "Cookie", "x-auth-token"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("X-Tenant"));
    }

    proptest! {
        #[test]
        fn what_passes_is_safe_on_the_wire(name in "\\PC{0,10}", value in "\\PC{0,10}") {
            if one(&name, &value).is_ok() {
                prop_assert!(!name.contains([':', ' ', '\r', '\n']));
                prop_assert!(value.is_ascii());
            }
        }
    }
}
