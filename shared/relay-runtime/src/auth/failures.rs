//! Wrong keys per client address: counted, and logged once a window. Asked by the guard, which doesn't look up more
//! unknown keys for an address that had many wrong ones.
//!
//! Invariant: memory is bounded. Who comes when all places are taken shares one more place with the others who do.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long failures are counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// Wrong keys of one address in a window; with more, they aren't looked for any longer.
const FAILURES_MAX: u32 = 20;
/// Addresses that are counted apart.
const ADDRESSES_MAX: usize = 4096;

/// What is known of an address.
#[derive(Clone, Copy)]
struct Count {
    since: Instant,
    failures: u32,
}

/// Wrong keys by address.
#[derive(Default)]
pub(super) struct Failures {
    counts: Mutex<HashMap<IpAddr, Count>>,
}

/// An IPv6 customer has a /64 at least: it counts as one address.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

impl Failures {
    /// For how long an address gets no answer about its keys any more, if so.
    pub(super) fn blocked(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let place = counts.get(&counted_as(address)).or_else(|| {
            (counts.len() >= ADDRESSES_MAX).then(|| counts.get(&IpAddr::V6(Ipv6Addr::UNSPECIFIED))).flatten()
        })?;
        let left = WINDOW.checked_sub(now.duration_since(place.since)).filter(|left| !left.is_zero())?;
        (place.failures >= FAILURES_MAX).then_some(left)
    }

    /// Counts a wrong key. `why` is logged with the first of a window.
    pub(super) fn note(&self, address: IpAddr, now: Instant, why: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut place = counted_as(address);
        if counts.len() >= ADDRESSES_MAX && !counts.contains_key(&place) {
            counts.retain(|_, count| now.duration_since(count.since) < WINDOW);
            if counts.len() >= ADDRESSES_MAX {
                place = Ipv6Addr::UNSPECIFIED.into();
            }
        }
        let count = counts.entry(place).or_insert(Count { since: now, failures: 0 });
        let before = count.failures;
        if now.duration_since(count.since) >= WINDOW {
            *count = Count { since: now, failures: 0 };
        }
        count.failures = count.failures.saturating_add(1);
        let failures = count.failures;
        drop(counts);
        if failures == 1 {
            tracing::warn!(client = %address, why, earlier = before, "a request with a wrong API key was refused");
        } else if failures == FAILURES_MAX {
            tracing::warn!(client = %address, failures, "many wrong API keys: unknown ones are answered 429 for some seconds");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_blocked_for_the_rest_of_its_window() {
        let failures = Failures::default();
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let start = Instant::now();
        for _ in 0..FAILURES_MAX {
            assert_eq!(failures.blocked(a, start), None);
            failures.note(a, start, "wrong");
        }
        let later = start + Duration::from_secs(4);
        assert_eq!(failures.blocked(a, later), Some(Duration::from_secs(6)));
        assert_eq!(failures.blocked(b, later), None);
        assert_eq!(failures.blocked(a, start + WINDOW), None);
        failures.note(a, start + WINDOW, "wrong");
        assert_eq!(failures.blocked(a, start + WINDOW), None);
    }

    #[test]
    fn the_addresses_of_one_network_count_together() {
        let of = |text: &str| counted_as(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn memory_is_bounded_and_the_overflow_is_limited_too() {
        let failures = Failures::default();
        let start = Instant::now();
        for i in 0..u32::try_from(2 * ADDRESSES_MAX).unwrap() {
            failures.note(IpAddr::V4(i.into()), start, "wrong");
        }
        assert_eq!(failures.counts.lock().unwrap().len(), ADDRESSES_MAX + 1);
        assert!(failures.blocked(IpAddr::V4(u32::MAX.into()), start).is_some());
        assert_eq!(failures.blocked(IpAddr::V4(1.into()), start), None, "who has a place of its own isn't affected");
        let later = start + WINDOW;
        failures.note(IpAddr::V4(u32::MAX.into()), later, "wrong");
        assert_eq!(failures.counts.lock().unwrap().len(), 1);
    }
}
