//! A pod's tokens: which it has, when they may be used, when to ask for more. It asks only for what is queued, so few
//! tokens go unused.

use std::collections::HashMap;

use super::{Bucket, Lease, RESERVE_US, RateLimit};
use crate::ids::EndpointId;

/// A lease covers this much time at most, in seconds.
const BATCH_SECONDS: f64 = 0.1;
/// Tokens that were not used within this time after they could have been are dropped, in microseconds: they would
/// come on top of a later burst.
const STALE_US: i64 = 1_000_000;
/// Longer waits are spent in the table, in microseconds.
const PATIENCE_US: i64 = 3_000_000;
/// An answer to a question for tokens is waited for this long, in microseconds.
const ANSWER_US: i64 = 500_000;
/// An endpoint that nothing was sent to for this long is forgotten, in microseconds.
const FORGET_US: i64 = 60_000_000;

/// Whether a job may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Yes: it has used a token.
    Go,
    /// From this time on, in microseconds of the pod's clock.
    At(i64),
    /// Tokens are to be leased: this many. Until [`Pacer::granted`], or this time, the endpoint waits.
    Ask(u32, i64),
    /// In so many microseconds: too long to keep it in the pod.
    TooLong(i64),
}

#[derive(Default)]
struct Paced {
    left: u32,
    /// From when the next token may be used.
    next_us: i64,
    interval_us: i64,
    /// Nothing is asked before.
    ask_us: i64,
    /// When a token could be used that was refused.
    refused_us: i64,
    /// Without Redis: what this pod keeps to.
    own: Bucket,
    /// Pods that shared the limit at the last answer.
    pods: u32,
    used_us: i64,
}

/// The tokens of all limited endpoints of a pod.
#[derive(Default)]
pub struct Pacer {
    paced: HashMap<EndpointId, Paced>,
    swept_us: i64,
}

impl Pacer {
    /// Asks for one request; `queued` more wait behind it.
    pub fn take(&mut self, endpoint: EndpointId, limit: &RateLimit, queued: usize, now_us: i64) -> Pace {
        self.sweep(now_us);
        let paced = self.paced.entry(endpoint).or_default();
        paced.used_us = now_us;
        if paced.left > 0 && now_us - paced.next_us - paced.interval_us * i64::from(paced.left - 1) > STALE_US {
            paced.left = 0;
        }
        if paced.left > 0 && paced.next_us <= now_us {
            paced.left -= 1;
            paced.next_us += paced.interval_us;
            Pace::Go
        } else if paced.left > 0 {
            Pace::At(paced.next_us)
        } else if now_us < paced.ask_us && paced.refused_us - now_us > PATIENCE_US {
            Pace::TooLong(paced.refused_us - now_us)
        } else if now_us < paced.ask_us {
            Pace::At(paced.ask_us)
        } else {
            let queued = u32::try_from(queued).unwrap_or(u32::MAX).saturating_add(1);
            paced.refused_us = 0;
            paced.ask_us = now_us + ANSWER_US;
            Pace::Ask(queued.min(limit.within(BATCH_SECONDS).max(limit.burst)), paced.ask_us)
        }
    }

    /// The answer to [`Pace::Ask`]: tokens, and how many pods ask for this endpoint's.
    pub fn granted(&mut self, endpoint: EndpointId, limit: &RateLimit, lease: Lease, pods: u32, now_us: i64) {
        self.paced.entry(endpoint).or_default().pods = pods;
        self.put(endpoint, limit, lease, now_us);
    }

    fn put(&mut self, endpoint: EndpointId, limit: &RateLimit, lease: Lease, now_us: i64) {
        let paced = self.paced.entry(endpoint).or_default();
        paced.left = lease.count;
        paced.next_us = now_us + lease.first_us;
        paced.interval_us = limit.interval_us();
        (paced.ask_us, paced.refused_us) = match lease.count {
            0 => ((now_us + lease.first_us - RESERVE_US).max(now_us + 1000), now_us + lease.first_us),
            _ => (0, 0),
        };
    }

    /// There was no answer to [`Pace::Ask`]: the pod keeps to its own part of the limit, as one of those that shared it
    /// when there last was one.
    pub fn granted_alone(&mut self, endpoint: EndpointId, limit: &RateLimit, wanted: u32, now_us: i64) {
        let paced = self.paced.entry(endpoint).or_default();
        let share = limit.share(paced.pods);
        let lease = paced.own.reserve(&share, wanted.min(share.within(BATCH_SECONDS).max(share.burst)), now_us);
        self.put(endpoint, &share, lease, now_us);
    }

    fn sweep(&mut self, now_us: i64) {
        if now_us - self.swept_us > FORGET_US {
            self.paced.retain(|_, paced| now_us - paced.used_us < FORGET_US);
            self.swept_us = now_us;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const SHOP: EndpointId = EndpointId(Uuid::nil());
    const TEN: RateLimit = RateLimit { per_second: 10.0, burst: 2 };

    #[test]
    fn tokens_are_asked_for_used_and_asked_for_again() {
        let (mut pacer, now) = (Pacer::default(), 7_000_000);
        assert_eq!(pacer.take(SHOP, &TEN, 5, now), Pace::Ask(2, now + ANSWER_US));
        assert_eq!(pacer.take(SHOP, &TEN, 5, now), Pace::At(now + ANSWER_US), "one question at a time");
        pacer.granted(SHOP, &TEN, Lease { count: 2, first_us: 50_000 }, 1, now);
        assert_eq!(pacer.take(SHOP, &TEN, 5, now), Pace::At(now + 50_000));
        assert_eq!(pacer.take(SHOP, &TEN, 5, now + 50_000), Pace::Go);
        assert_eq!(pacer.take(SHOP, &TEN, 4, now + 60_000), Pace::At(now + 150_000));
        assert_eq!(pacer.take(SHOP, &TEN, 4, now + 150_000), Pace::Go);
        assert_eq!(pacer.take(SHOP, &TEN, 0, now + 150_000), Pace::Ask(1, now + 150_000 + ANSWER_US));
    }

    #[test]
    fn a_long_wait_is_not_spent_in_the_pod() {
        let mut pacer = Pacer::default();
        pacer.granted(SHOP, &TEN, Lease { count: 0, first_us: 1_500_000 }, 1, 0);
        assert_eq!(pacer.take(SHOP, &TEN, 0, 0), Pace::At(500_000));
        assert_eq!(pacer.take(SHOP, &TEN, 0, 500_000), Pace::Ask(1, 500_000 + ANSWER_US));
        pacer.granted(SHOP, &TEN, Lease { count: 0, first_us: 8_000_000 }, 1, 0);
        assert_eq!(pacer.take(SHOP, &TEN, 0, 0), Pace::TooLong(8_000_000));
        assert_eq!(pacer.take(SHOP, &TEN, 0, 7_000_000), Pace::Ask(1, 7_000_000 + ANSWER_US));
    }

    #[test]
    fn old_tokens_do_not_add_to_a_burst() {
        let mut pacer = Pacer::default();
        pacer.granted(SHOP, &TEN, Lease { count: 2, first_us: 0 }, 1, 0);
        assert_eq!(pacer.take(SHOP, &TEN, 0, 100_000 + STALE_US), Pace::Go, "the second is just not stale");
        assert!(matches!(pacer.take(SHOP, &TEN, 0, 100_001 + STALE_US), Pace::Ask(..)));
    }

    proptest! {
        /// Without Redis a pod sends its share, however its jobs come.
        #[test]
        fn alone_it_keeps_to_its_share(pods in 1u32..6, per_second in 1.0f64..500.0, burst in 1u32..20) {
            let (mut pacer, limit) = (Pacer::default(), RateLimit { per_second, burst });
            let (mut now, mut sent) = (1i64, 0i64);
            pacer.granted(SHOP, &limit, Lease { count: 0, first_us: 0 }, pods, now);
            while now < 10_000_000 {
                match pacer.take(SHOP, &limit, 100, now) {
                    Pace::Go => sent += 1,
                    Pace::At(at) => now = at.max(now + 1),
                    Pace::Ask(wanted, _) => pacer.granted_alone(SHOP, &limit, wanted, now),
                    Pace::TooLong(wait) => now += wait,
                }
            }
            let due = (now / limit.share(pods).interval_us()) + i64::from(limit.share(pods).burst);
            prop_assert!(sent <= due && sent * 20 >= due * 19 - 40, "{sent} of {due}");
        }
    }
}
