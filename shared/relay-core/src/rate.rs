//! How often an endpoint may be called: a limit that all pods keep together. Pure: times come in as microseconds of
//! one clock.
//!
//! The rule is the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"), with reservations: a pod leases
//! tokens of the near future in one go, each with the time from which it may be used, so what it sends keeps to the
//! rate whichever pods take turns. Redis runs [`Bucket::reserve`] as a script; without Redis each pod runs it here with
//! its share of the limit.

mod pacer;

pub use pacer::{Pace, Pacer};

/// A token is leased when it may be used within this time, in microseconds.
pub const RESERVE_US: i64 = 1_000_000;
/// Further ones of the same lease may be used within this time after the first, in microseconds.
pub const BATCH_US: i64 = 100_000;

/// Requests per second, and how many may come at once after a silence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Requests per second, greater than zero.
    pub per_second: f64,
    /// Requests at once, at least 1.
    pub burst: u32,
}

impl RateLimit {
    /// Microseconds between two requests.
    pub fn interval_us(&self) -> i64 {
        // A float that is cast saturates.
        ((1e6 / self.per_second) as i64).max(1)
    }

    /// The burst of a limit that names none: what comes within a second.
    pub fn burst_of(per_second: f64) -> u32 {
        (per_second.ceil() as u32).max(1)
    }

    /// How much may come within `seconds`, at least 1.
    pub fn within(&self, seconds: f64) -> u32 {
        ((self.per_second * seconds) as u32).max(1)
    }

    /// The part of one pod where `pods` keep it without hearing of each other.
    pub fn share(&self, pods: u32) -> Self {
        let pods = pods.max(1);
        Self { per_second: self.per_second / f64::from(pods), burst: (self.burst / pods).max(1) }
    }
}

/// Tokens that were leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How many; 0: none now.
    pub count: u32,
    /// In how many microseconds the first may be used, counted from the answer (it may be negative: that long ago); the
    /// others follow by [`RateLimit::interval_us`]. With a count of 0: when one that isn't leased yet could be used.
    pub first_us: i64,
}

/// What is remembered of a limit: when the next token would be due if they were evenly spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    next_us: i64,
}

impl Bucket {
    /// Leases up to `wanted` tokens.
    pub fn reserve(&mut self, limit: &RateLimit, wanted: u32, now_us: i64) -> Lease {
        let interval = limit.interval_us();
        let slack = i64::from(limit.burst.saturating_sub(1)).saturating_mul(interval);
        // The greatest debt that this limit allows: what a lower one left behind is forgotten.
        let latest = now_us.saturating_add(slack).saturating_add(RESERVE_US + BATCH_US).saturating_add(interval);
        let next = self.next_us.clamp(now_us, latest);
        let first_us = next - slack - now_us;
        if first_us > RESERVE_US {
            return Lease { count: 0, first_us };
        }
        let within = (first_us.max(0) + BATCH_US - first_us) / interval + 1;
        let count = wanted.min(u32::try_from(within).unwrap_or(u32::MAX));
        self.next_us = next.saturating_add(i64::from(count).saturating_mul(interval));
        Lease { count, first_us }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN: RateLimit = RateLimit { per_second: 10.0, burst: 3 };

    #[test]
    fn a_burst_comes_at_once_and_the_rest_evenly() {
        let mut bucket = Bucket::default();
        let now = 5_000_000;
        assert_eq!(bucket.reserve(&TEN, 3, now), Lease { count: 3, first_us: -200_000 });
        assert_eq!(bucket.reserve(&TEN, 1, now), Lease { count: 1, first_us: 100_000 });
        assert_eq!(bucket.reserve(&TEN, 1, now), Lease { count: 1, first_us: 200_000 });
        // After a silence the burst is back, and no more than it.
        assert_eq!(bucket.reserve(&TEN, 9, now + 60_000_000), Lease { count: 4, first_us: -200_000 });
    }

    #[test]
    fn what_lies_too_far_ahead_is_not_leased() {
        let (mut bucket, slow) = (Bucket::default(), RateLimit { per_second: 0.5, burst: 1 });
        assert_eq!(bucket.reserve(&slow, 5, 0), Lease { count: 1, first_us: 0 });
        assert_eq!(bucket.reserve(&slow, 5, 0), Lease { count: 0, first_us: 2_000_000 });
        assert_eq!(bucket.reserve(&slow, 5, 1_000_000), Lease { count: 1, first_us: 1_000_000 });
    }

    #[test]
    fn a_limit_that_was_raised_counts_soon() {
        let (mut bucket, slow) = (Bucket::default(), RateLimit { per_second: 0.1, burst: 100 });
        bucket.reserve(&slow, 100, 0);
        let fast = RateLimit { per_second: 1000.0, burst: 1 };
        assert!(bucket.reserve(&fast, 1, 0).first_us <= RESERVE_US + BATCH_US + 1000);
    }

    #[test]
    fn a_share_is_never_nothing() {
        assert_eq!(TEN.share(4), RateLimit { per_second: 2.5, burst: 1 });
        assert_eq!(TEN.share(0), TEN);
    }

    proptest! {
        /// However many ask, and whenever: within any span no more tokens are due than the burst and the rate give,
        /// and nothing is lost while somebody wants more.
        #[test]
        fn tokens_keep_to_the_rate(
            asks in prop::collection::vec((0i64..400_000, 1u32..40), 1..80),
            per_second in 0.2f64..2000.0,
            burst in 1u32..20,
        ) {
            let (limit, mut bucket, mut now) = (RateLimit { per_second, burst }, Bucket::default(), 1_000_000i64);
            let interval = limit.interval_us();
            let mut due: Vec<i64> = Vec::new();
            for (pause, wanted) in asks {
                now += pause;
                let lease = bucket.reserve(&limit, wanted, now);
                prop_assert!(lease.count <= wanted);
                prop_assert!(lease.count > 0 || lease.first_us > RESERVE_US);
                // A token is used when it may be, or later: at the earliest now.
                due.extend((0..i64::from(lease.count)).map(|i| (now + lease.first_us + i * interval).max(now)));
            }
            due.sort_unstable();
            for (i, from) in due.iter().enumerate() {
                for (n, to) in due.iter().enumerate().skip(i) {
                    let most = i64::from(burst) + (to - from) / interval;
                    prop_assert!((n - i + 1) as i64 <= most, "{} in {} us", n - i + 1, to - from);
                }
            }
        }

        #[test]
        fn a_queue_that_never_ends_gets_the_whole_rate(per_second in 1.0f64..3000.0, burst in 1u32..50, pods in 1usize..5) {
            let (limit, mut bucket) = (RateLimit { per_second, burst }, Bucket::default());
            let mut free: Vec<i64> = vec![0; pods];
            let (mut sent, end) = (0i64, 20_000_000i64);
            // Each pod asks again when it has used its last token.
            while let Some((pod, now)) = free.iter().copied().enumerate().min_by_key(|(_, at)| *at).filter(|(_, at)| *at < end) {
                let lease = bucket.reserve(&limit, limit.within(0.1), now);
                let last = lease.first_us + i64::from(lease.count.saturating_sub(1)) * limit.interval_us();
                free[pod] = if lease.count > 0 { now + last.max(0) } else { now + lease.first_us - RESERVE_US };
                sent += i64::from(lease.count);
            }
            let due = end / limit.interval_us();
            prop_assert!(sent >= due - 1, "{sent} of {due}");
        }
    }
}
