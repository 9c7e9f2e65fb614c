//! How many requests one endpoint may have in flight: additive increase, multiplicative decrease, by time-outs and by
//! latency. Pure.
//!
//! Increase: one more with each success until the first decrease or [`FAST_GROWTH_UNTIL`], then one more with every
//! [`SLOW_GROWTH_EVERY`] successes, and only while half of what is allowed is used. Decrease: to a half by a time-out;
//! to three quarters when answers take twice as long as they did at best ([`Concurrency::is_congested`]), which is what a
//! receiver does whose own queue grows. Either counts once for what was in flight together. And while the last answer was
//! a failure only as many go as at first: if the receiver is dead, few requests find that out.

use super::Completion;

/// Below this many in flight an endpoint's limit grows with every success (it doubles in a round trip).
pub const FAST_GROWTH_UNTIL: usize = 64;
/// Above it the limit grows by one with this many successes.
pub const SLOW_GROWTH_EVERY: u32 = 8;
/// Answers may be slower by this much, in milliseconds, before that is taken for congestion: what a busy pod and
/// network add themselves.
const SLACK_MS: f32 = 250.0;
/// Weight of the newest answer in the mean.
const MEAN_WEIGHT: f32 = 0.1;
/// So many congested answers in a row with as few requests as there ever are say that the receiver is just so.
const RELEARN_AFTER: u32 = 32;
/// An answer, or none, that takes this long is slow, in milliseconds.
pub const SLOW_MS: u32 = 5000;
/// Weight of the newest request in the share of slow ones.
const SLOW_WEIGHT: f32 = 0.05;
/// From this share of slow requests on the endpoint counts as slow.
const SLOW_FROM: f32 = 0.1;
/// Until the share falls below this.
const SLOW_UNTIL: f32 = 0.025;

/// What is learnt from the requests of one endpoint.
#[derive(Clone, Debug)]
pub struct Concurrency {
    limit: usize,
    least: usize,
    most: usize,
    /// Above this the limit grows slowly.
    threshold: usize,
    /// Successes since the limit last grew, while it grows slowly.
    credit: u32,
    /// The next so many completions belong to the decrease that was.
    settling: usize,
    /// Of the last answers.
    mean_ms: Option<f32>,
    /// The least that the mean has been.
    best_ms: f32,
    /// Congested answers in a row at the least limit.
    at_least: u32,
    slow_share: f32,
    is_slow: bool,
    /// The last answer was a failure.
    is_failing: bool,
}

impl Concurrency {
    /// Nothing is known: `initial` requests, at most `most`.
    pub fn new(initial: usize, most: usize) -> Self {
        let most = most.max(1);
        let limit = initial.clamp(1, most);
        Self {
            limit,
            least: limit,
            most,
            threshold: FAST_GROWTH_UNTIL,
            credit: 0,
            settling: 0,
            mean_ms: None,
            best_ms: f32::MAX,
            at_least: 0,
            slow_share: 0.0,
            is_slow: false,
            is_failing: false,
        }
    }

    /// Requests in flight at most.
    pub fn limit(&self) -> usize {
        if self.is_failing { self.limit.min(self.least) } else { self.limit }
    }

    /// Whether answers take at least twice as long as this endpoint's best ones, and not just a moment.
    pub fn is_congested(&self) -> bool {
        self.mean_ms.is_some_and(|mean| mean > self.best_ms * 2.0 + SLACK_MS)
    }

    /// Requests that the endpoint can take in a second, by how long its last answers took and how many it may have in
    /// flight; 0 where that isn't known, or its last answer was a failure.
    pub fn capacity_per_second(&self) -> f64 {
        let mean_ms = self.mean_ms.filter(|_| !self.is_failing);
        // Answers of no time at all are those of less than a millisecond.
        mean_ms.map_or(0.0, |mean| self.limit as f64 * 1000.0 / f64::from(mean.max(1.0)))
    }

    /// Whether many requests take [`SLOW_MS`] or longer.
    pub fn is_slow(&self) -> bool {
        self.is_slow
    }

    /// A request is over, with `in_flight` others still out.
    pub fn completed(&mut self, how: Completion, took_ms: u32, in_flight: usize) {
        if how == Completion::NotSent {
            return;
        }
        self.learn_slowness(took_ms);
        let is_settling = self.settling > 0;
        self.settling = self.settling.saturating_sub(1);
        match how {
            Completion::Success => {
                self.is_failing = false;
                self.learn_latency(took_ms);
                if self.is_congested() {
                    self.congested(is_settling, in_flight);
                } else if (in_flight + 1) * 2 >= self.limit {
                    self.increase();
                }
            }
            Completion::TimedOut if !is_settling => self.decrease(self.limit / 2, in_flight),
            Completion::Failed => self.is_failing = true,
            Completion::TimedOut | Completion::NotSent => {}
        }
    }

    fn learn_latency(&mut self, took_ms: u32) {
        let took = took_ms as f32;
        let mean = self.mean_ms.map_or(took, |mean| mean + (took - mean) * MEAN_WEIGHT);
        self.mean_ms = Some(mean);
        self.best_ms = self.best_ms.min(mean);
    }

    fn congested(&mut self, is_settling: bool, in_flight: usize) {
        if self.limit > self.least {
            if !is_settling {
                self.decrease((self.limit * 3 / 4).max(self.least), in_flight);
            }
            return;
        }
        self.at_least += 1;
        if self.at_least >= RELEARN_AFTER {
            self.at_least = 0;
            self.best_ms = self.mean_ms.unwrap_or(f32::MAX);
        }
    }

    fn learn_slowness(&mut self, took_ms: u32) {
        let is_slow = if took_ms >= SLOW_MS { 1.0 } else { 0.0 };
        self.slow_share += (is_slow - self.slow_share) * SLOW_WEIGHT;
        self.is_slow = self.slow_share > if self.is_slow { SLOW_UNTIL } else { SLOW_FROM };
    }

    fn decrease(&mut self, limit: usize, in_flight: usize) {
        self.limit = limit.max(1);
        self.threshold = self.limit;
        self.credit = 0;
        self.settling = in_flight;
    }

    fn increase(&mut self) {
        self.at_least = 0;
        if self.limit < self.threshold {
            self.limit += 1;
        } else {
            self.credit += 1;
            if self.credit >= SLOW_GROWTH_EVERY {
                self.credit = 0;
                self.limit += 1;
            }
        }
        self.limit = self.limit.min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slow_for_good_is_no_congestion() {
        let mut c = Concurrency::new(4, 256);
        for _ in 0..2000 {
            c.completed(Completion::Success, 2000, c.limit() - 1);
        }
        assert!(!c.is_congested());
        assert_eq!(c.limit(), 256);
        // It became slower for good: that is answered, and then it grows again.
        let mut least = 256;
        for _ in 0..3000 {
            c.completed(Completion::Success, 6000, c.limit() - 1);
            least = least.min(c.limit());
        }
        assert!(!c.is_congested());
        assert!(least < 16 && c.limit() > 100, "{least}, then {}", c.limit());
    }

    #[test]
    fn an_endpoint_is_slow_by_its_last_requests() {
        let mut c = Concurrency::new(4, 256);
        for _ in 0..100 {
            c.completed(Completion::Success, 20, 0);
        }
        c.completed(Completion::Success, SLOW_MS, 0);
        assert!(!c.is_slow(), "one is no habit");
        for _ in 0..2 {
            c.completed(Completion::TimedOut, 30_000, 0);
        }
        assert!(c.is_slow());
        let mut needed = 0;
        while c.is_slow() {
            c.completed(Completion::Success, 20, 0);
            needed += 1;
        }
        assert!((20..60).contains(&needed), "{needed}");
    }

    #[test]
    fn while_the_last_answer_was_a_failure_few_go() {
        let mut c = Concurrency::new(4, 256);
        for _ in 0..100 {
            c.completed(Completion::Success, 20, c.limit() - 1);
        }
        let limit = c.limit();
        assert!(limit > 60);
        c.completed(Completion::Failed, 20, limit - 1);
        assert_eq!(c.limit(), 4);
        c.completed(Completion::Success, 20, 3);
        assert_eq!(c.limit(), limit, "what was learnt stays");
    }

    /// A receiver that works on `capacity` requests at a time, `work_ms` each, the others waiting in its own queue.
    /// Returns the mean limit of the second half and the requests that were done.
    fn against(capacity: usize, work_ms: u64, steps: usize) -> (f64, u64) {
        let mut c = Concurrency::new(4, 256);
        let mut busy: BinaryHeap<std::cmp::Reverse<u64>> = (0..capacity).map(|_| std::cmp::Reverse(0)).collect();
        let mut out: std::collections::VecDeque<(u64, u64)> = std::collections::VecDeque::new();
        let (mut now, mut limits, mut counted) = (0u64, 0usize, 0usize);
        for step in 0..steps {
            while out.len() < c.limit() {
                let free = busy.pop().unwrap().0.max(now);
                busy.push(std::cmp::Reverse(free + work_ms));
                out.push_back((now, free + work_ms));
            }
            let (begun, ends) = out.pop_front().unwrap();
            now = ends;
            c.completed(Completion::Success, u32::try_from(ends - begun).unwrap(), out.len());
            if step * 2 >= steps {
                limits += c.limit();
                counted += 1;
            }
        }
        (limits as f64 / counted as f64, now)
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_bounds(
            events in prop::collection::vec((0u8..4, 0u32..40_000, 0usize..300), 0..500),
            initial in 0usize..20,
            most in 0usize..300,
        ) {
            let mut c = Concurrency::new(initial, most);
            for (how, took, in_flight) in events {
                let how = [Completion::Success, Completion::TimedOut, Completion::Failed, Completion::NotSent][how as usize];
                let before = c.limit;
                c.completed(how, took, in_flight);
                prop_assert!((1..=most.max(1)).contains(&c.limit()));
                prop_assert!(c.limit <= before + 1, "at most one more at a time");
                prop_assert!(c.limit * 2 + 1 >= before, "at most halved");
                if how != Completion::Success && how != Completion::TimedOut {
                    prop_assert_eq!(c.limit, before);
                }
            }
        }

        /// A receiver with a queue of its own is kept busy, and its queue stays short.
        #[test]
        fn a_receivers_capacity_is_found(capacity in 8usize..60, work_ms in 300u64..1500) {
            let (limit, took) = against(capacity, work_ms, 6000);
            let best = 6000 / capacity as u64 * work_ms;
            prop_assert!(took <= best * 5 / 4, "{took} ms where {best} would do");
            prop_assert!(limit <= capacity as f64 * 4.0, "{limit} in flight for {capacity}");
        }

        /// Time-outs alone lead to one request at a time.
        #[test]
        fn a_dead_receiver_gets_one_at_a_time(initial in 1usize..256) {
            let mut c = Concurrency::new(initial, 256);
            for _ in 0..600 {
                c.completed(Completion::TimedOut, 30_000, c.limit() - 1);
            }
            prop_assert_eq!(c.limit(), 1);
            prop_assert!(c.is_slow());
        }
    }
}
