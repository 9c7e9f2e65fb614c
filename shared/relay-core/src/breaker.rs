//! The circuit breaker of an endpoint: when it opens, when it lets a probe through, how it comes back. Pure: the
//! counting of one pod ([`Tracker`]) and the states ([`step`]); Redis scripts and the local breaker follow the same
//! rules. The numbers come from the endpoint ([`CircuitRule`]).
//!
//! Invariant: what is kept of an endpoint is bounded, however many calls there are.

mod circuit;

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};

pub use circuit::{Circuit, CircuitEvent, PROBE_MARGIN, RAMP_END, Transition, step};

/// Calls in the window from which the share of failures counts.
pub const CALLS_MIN: u32 = 20;
/// The share of failures, in percent, that opens the circuit from [`CALLS_MIN`] calls on.
pub const FAILURE_PERCENT: u32 = 50;
/// The open time is stretched by up to this share, so that circuits don't close together.
pub const JITTER: f64 = 0.2;
/// Parts that the window is counted in.
const BUCKETS: i64 = 12;

/// When an endpoint's circuit opens and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitRule {
    /// Failures within the window, with no success between them, that open it.
    pub threshold: u32,
    /// The window.
    pub window: Duration,
    /// How long it stays open before a probe.
    pub recovery: Duration,
}

impl Default for CircuitRule {
    fn default() -> Self {
        Self { threshold: 5, window: Duration::from_secs(60), recovery: Duration::from_secs(300) }
    }
}

impl CircuitRule {
    /// How long an opening lasts; `roll` is uniform in 0..1.
    pub fn open_time(&self, roll: f64) -> Duration {
        self.recovery.mul_f64(1.0 + JITTER * roll.clamp(0.0, 1.0))
    }
}

/// A circuit's state, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// Everything goes.
    Closed,
    /// Nothing goes.
    Open,
    /// One probe goes.
    HalfOpen,
}

impl CircuitState {
    /// As it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What a call showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// An answer that doesn't count against the endpoint.
    Success,
    /// Connect, TLS, DNS, time-out, 5xx, 408.
    Failure,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    number: i64,
    calls: u32,
    failures: u32,
}

/// One endpoint's calls in one pod, counted in parts of the window: memory is bounded however many calls there are.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    buckets: VecDeque<Bucket>,
    /// Failures since the last success, by when they happened; never longer than the greatest threshold.
    streak: VecDeque<DateTime<Utc>>,
}

impl Tracker {
    /// Counts a call. `true`: by the rule the circuit opens now.
    pub fn observe(&mut self, rule: &CircuitRule, what: Observation, now: DateTime<Utc>) -> bool {
        let number = part(rule, now);
        // A clock that was set back or a window that changed: parts from the future don't count.
        while self.buckets.front().is_some_and(|b| b.number <= number - BUCKETS || b.number > number) {
            self.buckets.pop_front();
        }
        while self.buckets.back().is_some_and(|b| b.number > number) {
            self.buckets.pop_back();
        }
        if self.buckets.back().is_none_or(|b| b.number != number) {
            self.buckets.push_back(Bucket { number, calls: 0, failures: 0 });
        }
        let failed = what == Observation::Failure;
        if let Some(bucket) = self.buckets.back_mut() {
            bucket.calls = bucket.calls.saturating_add(1);
            bucket.failures = bucket.failures.saturating_add(u32::from(failed));
        }
        if !failed {
            self.streak.clear();
            return false;
        }
        self.streak.push_back(now);
        while self.streak.len() > rule.threshold as usize
            || self.streak.front().is_some_and(|at| is_before(*at, now, rule.window))
        {
            self.streak.pop_front();
        }
        let sum = |of: fn(&Bucket) -> u32| self.buckets.iter().map(|b| u64::from(of(b))).sum::<u64>();
        let (calls, failures) = (sum(|b| b.calls), sum(|b| b.failures));
        self.streak.len() >= rule.threshold as usize
            || (calls >= u64::from(CALLS_MIN) && failures * 100 >= calls * u64::from(FAILURE_PERCENT))
    }

    /// Whether a failure lies in the window: only such endpoints are worth reporting.
    pub fn in_trouble(&self, rule: &CircuitRule, now: DateTime<Utc>) -> bool {
        let number = part(rule, now);
        self.buckets.iter().any(|b| b.failures > 0 && b.number > number - BUCKETS)
            || self.streak.back().is_some_and(|at| !is_before(*at, now, rule.window))
    }

    /// Forgets everything (the circuit opened or closed).
    pub fn clear(&mut self) {
        self.buckets.clear();
        self.streak.clear();
    }
}

/// How many requests may be in flight after a recovery, by the successes since: 1, 2, 4 … and no limit from
/// [`RAMP_END`] on.
pub fn ramp(successes_since: u32) -> Option<u32> {
    let allowed = 1u32.checked_shl(successes_since).unwrap_or(u32::MAX);
    (allowed < RAMP_END).then_some(allowed)
}

/// The part of the window that `now` lies in.
fn part(rule: &CircuitRule, now: DateTime<Utc>) -> i64 {
    let length_ms = (i64::try_from(rule.window.as_millis()).unwrap_or(i64::MAX) / BUCKETS).max(1);
    now.timestamp_millis().div_euclid(length_ms)
}

fn is_before(at: DateTime<Utc>, now: DateTime<Utc>, window: Duration) -> bool {
    (now - at).to_std().is_ok_and(|age| age > window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;
    use proptest::prelude::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn five_failures_in_a_minute_with_no_success_between_open_it() {
        let (rule, mut t) = (CircuitRule::default(), Tracker::default());
        let opened: Vec<bool> = (0..5).map(|i| t.observe(&rule, Observation::Failure, at(i))).collect();
        assert_eq!(opened, [false, false, false, false, true]);
    }

    #[test]
    fn a_success_between_them_keeps_it_closed() {
        let (rule, mut t) = (CircuitRule::default(), Tracker::default());
        for i in 0..50 {
            assert!(!t.observe(&rule, Observation::Failure, at(i / 10)));
            assert!(!t.observe(&rule, Observation::Success, at(i / 10)));
            assert!(!t.observe(&rule, Observation::Success, at(i / 10)));
        }
    }

    #[test]
    fn failures_59_seconds_apart_do_not_open_it() {
        let (rule, mut t) = (CircuitRule::default(), Tracker::default());
        assert!((0..20).all(|i| !t.observe(&rule, Observation::Failure, at(i * 59))));
    }

    #[test]
    fn half_of_twenty_calls_opens_it() {
        let (rule, mut t) = (CircuitRule { threshold: 100, ..Default::default() }, Tracker::default());
        for i in 0..19 {
            assert!(!t.observe(&rule, if i % 2 == 0 { Observation::Success } else { Observation::Failure }, at(0)));
        }
        assert!(t.observe(&rule, Observation::Failure, at(1)));
    }

    #[test]
    fn trouble_ends_with_the_window() {
        let (rule, mut t) = (CircuitRule::default(), Tracker::default());
        assert!(!t.in_trouble(&rule, at(0)));
        t.observe(&rule, Observation::Failure, at(0));
        t.observe(&rule, Observation::Success, at(1));
        assert!(t.in_trouble(&rule, at(30)));
        assert!(!t.in_trouble(&rule, at(66)));
        t.observe(&rule, Observation::Failure, at(70));
        t.clear();
        assert!(!t.in_trouble(&rule, at(70)));
    }

    proptest! {
        #[test]
        fn memory_is_bounded(calls in prop::collection::vec((any::<bool>(), 0i64..5), 0..500), threshold in 1u32..100) {
            let (rule, mut t) = (CircuitRule { threshold, ..Default::default() }, Tracker::default());
            let mut now = 0;
            for (fails, step) in calls {
                now += step;
                t.observe(&rule, if fails { Observation::Failure } else { Observation::Success }, at(now));
                prop_assert!(t.streak.len() <= threshold as usize);
                prop_assert!(t.buckets.len() <= BUCKETS as usize);
            }
        }
    }
}
