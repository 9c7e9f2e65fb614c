//! What an endpoint's answer means. Step 10 of an event's way.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// The longest wait that `Retry-After` can ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longer header values are not looked at.
const HEADER_BYTES_MAX: usize = 64;

/// Why there was no answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TransportError {
    /// No connection.
    Connect,
    /// No TLS session.
    Tls,
    /// No address.
    Dns,
    /// The time-out ran out.
    Timeout,
    /// The address may not be called (the guard against server-side request forgery).
    AddressRefused,
    /// The connection ended before the answer did.
    ConnectionClosed,
    /// Not HTTP.
    Protocol,
}

impl TransportError {
    /// All classes.
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::Tls,
        Self::Dns,
        Self::Timeout,
        Self::AddressRefused,
        Self::ConnectionClosed,
        Self::Protocol,
    ];

    /// The stable name of the class, as attempts show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Dns => "dns",
            Self::Timeout => "timeout",
            Self::AddressRefused => "address_refused",
            Self::ConnectionClosed => "connection_closed",
            Self::Protocol => "protocol",
        }
    }
}

/// What came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// An HTTP status.
    Status {
        /// The code.
        code: u16,
        /// `Retry-After`, where it could be read.
        retry_after: Option<Duration>,
    },
    /// Nothing.
    Transport(TransportError),
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The endpoint has it.
    Delivered,
    /// Try again.
    Retry {
        /// Not before this, for the whole endpoint.
        not_before: Option<Duration>,
        /// Whether it counts against the circuit.
        counts_for_circuit: bool,
    },
    /// Never try again.
    Permanent {
        /// 410: deactivate the endpoint.
        gone: bool,
    },
}

/// Judges an answer. An address that the guard refuses is retried (the name may point elsewhere tomorrow) and counts
/// for the circuit like any connection that can't be made.
pub fn classify(answer: &Answer) -> Verdict {
    match *answer {
        Answer::Transport(_) => Verdict::Retry { not_before: None, counts_for_circuit: true },
        Answer::Status { code, retry_after } => match code {
            200..=299 => Verdict::Delivered,
            410 => Verdict::Permanent { gone: true },
            408 => Verdict::Retry { not_before: None, counts_for_circuit: true },
            425 => Verdict::Retry { not_before: None, counts_for_circuit: false },
            429 => Verdict::Retry { not_before: retry_after, counts_for_circuit: false },
            400..=499 => Verdict::Permanent { gone: false },
            503 => Verdict::Retry { not_before: retry_after, counts_for_circuit: true },
            // 1xx, 3xx and what nobody defined: not what was asked for, and no failure of the endpoint's health.
            0..=499 => Verdict::Retry { not_before: None, counts_for_circuit: false },
            500.. => Verdict::Retry { not_before: None, counts_for_circuit: true },
        },
    }
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or an HTTP date, which is taken relative to the answer's own
/// `Date` where it has one. Decimals are rounded up; senseless values are `None`; at most [`RETRY_AFTER_MAX`].
pub fn parse_retry_after(value: &[u8], response_date: Option<&[u8]>, now: DateTime<Utc>) -> Option<Duration> {
    if value.len() > HEADER_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?.trim();
    if text.bytes().next()?.is_ascii_digit() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let seconds: f64 = text.parse().ok()?;
        let seconds = seconds.ceil().min(RETRY_AFTER_MAX.as_secs_f64());
        return Some(Duration::from_secs_f64(seconds));
    }
    let until = http_date(text)?;
    let from = response_date
        .filter(|d| d.len() <= HEADER_BYTES_MAX)
        .and_then(|d| http_date(std::str::from_utf8(d).ok()?.trim()))
        .unwrap_or(now);
    Some((until - from).to_std().unwrap_or(Duration::ZERO).min(RETRY_AFTER_MAX))
}

fn http_date(text: &str) -> Option<DateTime<Utc>> {
    let since = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    DateTime::from_timestamp(i64::try_from(since.as_secs()).ok()?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;
    use proptest::prelude::*;

    fn now() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 11, 25, 12, 0, 0).unwrap()
    }

    fn status(code: u16) -> Verdict {
        classify(&Answer::Status { code, retry_after: Some(Duration::from_secs(7)) })
    }

    #[test]
    fn statuses_are_judged() {
        for code in [200, 201, 202, 204, 299] {
            assert_eq!(status(code), Verdict::Delivered);
        }
        for code in [400, 401, 403, 404, 409, 422, 451] {
            assert_eq!(status(code), Verdict::Permanent { gone: false });
        }
        assert_eq!(status(410), Verdict::Permanent { gone: true });
        for code in [500, 502, 504, 599] {
            assert_eq!(status(code), Verdict::Retry { not_before: None, counts_for_circuit: true });
        }
        assert_eq!(status(503), Verdict::Retry { not_before: Some(Duration::from_secs(7)), counts_for_circuit: true });
        assert_eq!(status(429), Verdict::Retry { not_before: Some(Duration::from_secs(7)), counts_for_circuit: false });
        assert_eq!(status(408), Verdict::Retry { not_before: None, counts_for_circuit: true });
        for code in [301, 302, 304, 425] {
            assert_eq!(status(code), Verdict::Retry { not_before: None, counts_for_circuit: false });
        }
        for error in TransportError::ALL {
            assert_eq!(
                classify(&Answer::Transport(error)),
                Verdict::Retry { not_before: None, counts_for_circuit: true }
            );
        }
    }

    #[test]
    fn retry_after_is_read_with_care() {
        let seconds = |v: &str| parse_retry_after(v.as_bytes(), None, now()).map(|d| d.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 7 "), Some(7));
        assert_eq!(seconds("1.2"), Some(2));
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds("1000000000"), Some(86_400));
        for bad in ["", "-5", "inf", "nan", "1e12", "soon", "1.2.3", "1_0", &"9".repeat(400)] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(seconds("Wed, 25 Nov 2026 12:00:30 GMT"), Some(30));
        assert_eq!(seconds("Wed, 25 Nov 2026 11:00:30 GMT"), Some(0));
        let by_its_own_clock =
            parse_retry_after(b"Wed, 25 Nov 2026 15:00:30 GMT", Some(b"Wed, 25 Nov 2026 15:00:00 GMT"), now());
        assert_eq!(by_its_own_clock, Some(Duration::from_secs(30)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(value: Vec<u8>, date: Option<Vec<u8>>) {
            let wait = parse_retry_after(&value, date.as_deref(), now());
            prop_assert!(wait.is_none_or(|w| w <= RETRY_AFTER_MAX));
        }

        #[test]
        fn every_status_has_a_verdict(code: u16) {
            let verdict = classify(&Answer::Status { code, retry_after: None });
            prop_assert_eq!(verdict == Verdict::Delivered, (200..300).contains(&code));
            prop_assert_eq!(matches!(verdict, Verdict::Permanent { gone: true }), code == 410);
        }

        #[test]
        fn retry_after_counts_on_429_and_503_only(code: u16, seconds in 0u64..100_000) {
            let asked = Some(Duration::from_secs(seconds));
            if let Verdict::Retry { not_before, .. } = classify(&Answer::Status { code, retry_after: asked }) {
                prop_assert_eq!(not_before, asked.filter(|_| [429, 503].contains(&code)));
            }
        }

        #[test]
        fn seconds_are_never_shortened(seconds in 0u64..100_000, tenths in 0u64..10) {
            let wait = parse_retry_after(format!("{seconds}.{tenths}").as_bytes(), None, now()).unwrap();
            let asked = Duration::from_millis(seconds * 1000 + tenths * 100);
            prop_assert!(wait >= asked.min(RETRY_AFTER_MAX) && wait < asked + Duration::from_secs(1));
        }

        #[test]
        fn dates_count_from_the_answers_own_clock(skew in -100_000_000i64..100_000_000, seconds in 0u64..86_400) {
            let theirs = std::time::SystemTime::from(now() + chrono::Duration::seconds(skew));
            let until = httpdate::fmt_http_date(theirs + Duration::from_secs(seconds));
            let date = httpdate::fmt_http_date(theirs);
            let wait = parse_retry_after(until.as_bytes(), Some(date.as_bytes()), now());
            prop_assert_eq!(wait, Some(Duration::from_secs(seconds)));
        }
    }
}
