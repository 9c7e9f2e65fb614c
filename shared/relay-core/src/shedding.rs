//! Which requests are refused while the processors can't keep up: the part that doesn't fit, and of those who send
//! most. What waits for a processor stands in no queue that could be counted, so it is told by its lag: how long
//! after its answer was there a request went on. Pure; times come in as arguments.
//!
//! What waited for one slow write goes on all at once, and lags for a moment. That is no overload, so nothing is refused until
//! the lag has been too long for a while without a break, as CoDel does for packets (RFC 8289, section 3.1).
//!
//! With a lag of `r` times the one that is borne, `1 / r` of the requests are taken. They are shared out evenly:
//! of `n` requests of `k` tenants, each tenant has `n / (k r)`, and what it doesn't need is nobody's loss, as the lag falls then.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::TenantId;

/// What was measured so long ago says nothing about now.
const LAG_LIFE: Duration = Duration::from_millis(250);
/// So long the lag is too long before anything is refused.
const PATIENCE: Duration = Duration::from_millis(250);
/// The weight of the newest measurement.
const LAG_WEIGHT: f64 = 0.05;
/// Over how long the requests of a tenant are counted.
const WINDOW: Duration = Duration::from_millis(100);

/// The lag, and what tenants ask for while it is too long.
#[derive(Debug)]
pub struct Shedder {
    /// The lag that is borne.
    lag_max: Duration,
    /// In seconds, and when it was measured.
    lag: Option<(f64, Instant)>,
    /// Since when it has been longer than what is borne.
    over_since: Option<Instant>,
    /// Empty while nothing is refused.
    tenants: HashMap<TenantId, Share>,
    /// When the window began.
    since: Option<Instant>,
    /// Requests in the window before, and of how many tenants.
    before: (usize, usize),
}

/// What a tenant asks for.
#[derive(Debug, Default)]
struct Share {
    /// Requests in the window before, and in this one.
    before: usize,
    now: usize,
    /// The part of a request that it may send and hasn't yet.
    credit: f64,
}

impl Shedder {
    /// Bears this lag. A request meets it twice at least: before it is read, and before it is answered.
    pub fn new(lag_max: Duration) -> Self {
        Self { lag_max, lag: None, over_since: None, tenants: HashMap::new(), since: None, before: (0, 0) }
    }

    /// A request went on so long after it could have.
    pub fn lagged(&mut self, lag: Duration, now: Instant) {
        let known = self.lag(now).unwrap_or(0.0);
        let lag = known + LAG_WEIGHT * (lag.as_secs_f64() - known);
        self.lag = Some((lag, now));
        let is_over = lag > self.lag_max.as_secs_f64();
        self.over_since = is_over.then(|| self.over_since.unwrap_or(now));
    }

    fn lag(&self, now: Instant) -> Option<f64> {
        self.lag.filter(|(_, at)| now.saturating_duration_since(*at) < LAG_LIFE).map(|(lag, _)| lag)
    }

    /// Whether a request of this tenant that begins now is taken.
    pub fn takes(&mut self, tenant: &TenantId, now: Instant) -> bool {
        let is_long = self.over_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
        let lag = self.lag(now).filter(|_| is_long);
        let part = lag.map_or(1.0, |lag| self.lag_max.as_secs_f64() / lag);
        if part >= 1.0 {
            self.tenants.clear();
            self.since = None;
            self.before = (0, 0);
            return true;
        }
        self.roll(now);
        let (all, tenants) = self.before;
        let share = self.tenants.entry(tenant.clone()).or_default();
        share.now += 1;
        share.credit += match share.before {
            0 if tenants > 0 => 1.0,
            0 => part,
            own => (part * all as f64 / (tenants * own) as f64).min(1.0),
        };
        let takes = share.credit >= 1.0;
        if takes {
            share.credit -= 1.0;
        }
        takes
    }

    fn roll(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < WINDOW {
            return;
        }
        self.since = Some(now);
        self.tenants.retain(|_, share| share.now > 0);
        for share in self.tenants.values_mut() {
            share.before = std::mem::take(&mut share.now);
        }
        self.before = (self.tenants.values().map(|share| share.before).sum(), self.tenants.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LAG_MAX: Duration = Duration::from_millis(40);

    fn tenant(n: usize) -> TenantId {
        TenantId::trusted(&format!("t{n}"))
    }

    /// A shedder that has seen this lag long enough to believe it.
    fn lagging(lag: Duration, now: Instant) -> Shedder {
        let mut shedder = Shedder::new(LAG_MAX);
        for step in (0..=5).rev() {
            for _ in 0..1000 {
                shedder.lagged(lag, now - PATIENCE * step / 4);
            }
        }
        shedder
    }

    /// How many of its requests each tenant gets through in the second of ten windows.
    fn taken(lag: Duration, per_window: &[usize]) -> Vec<usize> {
        let start = Instant::now();
        let mut shedder = lagging(lag, start);
        let mut taken = vec![0; per_window.len()];
        for window in 0..10u32 {
            let now = start + WINDOW * window;
            for _ in 0..100 {
                shedder.lagged(lag, now);
            }
            for (t, n) in per_window.iter().enumerate() {
                for _ in 0..*n {
                    let takes = shedder.takes(&tenant(t), now);
                    taken[t] += usize::from(takes && window > 0);
                }
            }
        }
        taken
    }

    #[test]
    fn a_lag_that_is_borne_refuses_nobody() {
        assert_eq!(taken(LAG_MAX.mul_f64(0.99), &[1000, 1]), [9000, 9]);
    }

    #[test]
    fn one_tenant_gets_what_fits() {
        assert!(taken(LAG_MAX * 2, &[1000])[0].abs_diff(4500) < 10);
        assert!(taken(LAG_MAX * 10, &[1000])[0].abs_diff(900) < 10);
    }

    #[test]
    fn who_sends_little_is_not_refused_for_who_sends_much() {
        let taken = taken(LAG_MAX * 4, &[1000, 100, 1]);
        assert!(taken[0].abs_diff(825) < 10, "a third of a quarter of 1,101, in nine windows: {taken:?}");
        assert!(taken[1] >= 810 && taken[2] == 9, "less than an even part: {taken:?}");
    }

    #[test]
    fn one_hiccup_is_no_overload_and_an_old_lag_is_none() {
        let now = Instant::now();
        let mut shedder = Shedder::new(LAG_MAX);
        shedder.lagged(MS, now);
        shedder.lagged(700 * MS, now);
        assert!(shedder.takes(&tenant(0), now));
        // What waited for a slow write lags together, and then nobody does.
        for n in 0..1000 {
            shedder.lagged(n / 10 * MS, now);
            assert!(shedder.takes(&tenant(0), now + PATIENCE / 2));
        }
        for _ in 0..100 {
            shedder.lagged(Duration::ZERO, now + PATIENCE / 2);
        }
        shedder.lagged(10 * LAG_MAX, now + PATIENCE);
        assert!(shedder.takes(&tenant(0), now + PATIENCE));
        let mut shedder = lagging(10 * LAG_MAX, now);
        assert!(!shedder.takes(&tenant(0), now));
        assert!(shedder.takes(&tenant(0), now + LAG_LIFE));
        assert!(shedder.tenants.is_empty(), "nothing is kept of it");
    }

    proptest! {
        /// However long the lag, some requests of everybody are taken, so it goes on being measured.
        #[test]
        fn nobody_is_shut_out(lag_ms in 41u64..2_000, many in 1usize..2_000, few in 1usize..2_000) {
            let taken = taken(Duration::from_millis(lag_ms), &[many, few]);
            let part = LAG_MAX.as_secs_f64() / Duration::from_millis(lag_ms).as_secs_f64();
            for (taken, sent) in taken.iter().zip([many, few]) {
                let even = part * (many + few) as f64 / 2.0;
                let expected = 9.0 * even.min(sent as f64);
                prop_assert!((*taken as f64 - expected).abs() <= 0.1 * expected + 3.0, "{taken} of {sent}, {expected}");
            }
        }
    }
}
