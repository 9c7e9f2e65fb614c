//! When a failed attempt is repeated. The randomness of the jitter comes in as a number.

use std::time::Duration;

/// Delay after the first failure, before base and cap: that of the Python WebhookRelay.
pub const INITIAL: Duration = Duration::from_secs(30);
/// Jitter: up to this share of the delay is added.
pub const JITTER: f64 = 0.25;

/// The delays of one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// min(30 s × base^(n−1), cap) plus up to 25 %.
    Formula {
        /// Attempts in all.
        max_attempts: u32,
        /// Multiplier.
        base: f64,
        /// Greatest delay before jitter.
        cap: Duration,
    },
    /// These delays, to the second, without jitter.
    Explicit {
        /// One fewer than attempts.
        delays: Vec<Duration>,
    },
}

impl Schedule {
    /// Attempts in all.
    pub fn max_attempts(&self) -> u32 {
        match self {
            Self::Formula { max_attempts, .. } => *max_attempts,
            Self::Explicit { delays } => u32::try_from(delays.len()).unwrap_or(u32::MAX - 1) + 1,
        }
    }

    /// The delay after attempt number `attempt_in_life` (from 1, counted from the last replay) has failed; `None`
    /// where it was the last one. `roll` is uniform in 0..1.
    pub fn delay_after(&self, attempt_in_life: u32, roll: f64) -> Option<Duration> {
        if attempt_in_life >= self.max_attempts() {
            return None;
        }
        let n = attempt_in_life.max(1) - 1;
        match self {
            Self::Formula { base, cap, .. } => {
                let raw = INITIAL.as_secs_f64() * base.powi(i32::try_from(n).unwrap_or(i32::MAX));
                let raw = raw.min(cap.as_secs_f64());
                Some(Duration::from_secs_f64(raw + raw * JITTER * roll.clamp(0.0, 1.0)))
            }
            Self::Explicit { delays } => delays.get(n as usize).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn formula(max_attempts: u32, base: f64, cap: u64) -> Schedule {
        Schedule::Formula { max_attempts, base, cap: Duration::from_secs(cap) }
    }

    #[test]
    fn the_defaults_are_30_60_120_240() {
        let schedule = formula(5, 2.0, 3600);
        let delays: Vec<_> = (1..=5).map(|n| schedule.delay_after(n, 0.0).map(|d| d.as_secs())).collect();
        assert_eq!(delays, [Some(30), Some(60), Some(120), Some(240), None]);
        assert_eq!(schedule.delay_after(1, 1.0), Some(Duration::from_millis(37_500)));
    }

    #[test]
    fn an_explicit_schedule_is_kept_to_the_second() {
        let schedule = Schedule::Explicit { delays: vec![Duration::from_secs(1), Duration::ZERO] };
        assert_eq!(schedule.max_attempts(), 3);
        assert_eq!(schedule.delay_after(1, 0.9), Some(Duration::from_secs(1)));
        assert_eq!(schedule.delay_after(2, 0.9), Some(Duration::ZERO));
        assert_eq!(schedule.delay_after(3, 0.9), None);
    }

    proptest! {
        #[test]
        fn delays_stay_within_cap_and_jitter(n in 1u32..25, max in 1u32..21, base in 1.0f64..10.0, cap in 60u64..86_400, roll in 0.0f64..1.0) {
            match formula(max, base, cap).delay_after(n, roll) {
                None => prop_assert!(n >= max),
                Some(d) => {
                    prop_assert!(n < max);
                    prop_assert!(d >= INITIAL.min(Duration::from_secs(cap)));
                    prop_assert!(d.as_secs_f64() <= cap as f64 * (1.0 + JITTER) + 1e-6);
                }
            }
        }

        #[test]
        fn delays_never_shrink_and_a_capped_one_stays_capped(base in 1.0f64..=10.0, cap in 60u64..=86_400, roll in 0.0f64..1.0) {
            let schedule = formula(u32::MAX, base, cap);
            let top = Duration::from_secs(cap).mul_f64(1.0 + JITTER * roll);
            let mut last = Duration::ZERO;
            for n in (1..40).chain([1000, u32::MAX - 1]) {
                let delay = schedule.delay_after(n, roll).unwrap();
                prop_assert!(delay >= last && delay <= top + Duration::from_micros(1), "{n}: {delay:?} after {last:?}");
                last = delay;
            }
        }

        #[test]
        fn jitter_only_ever_adds_up_to_a_quarter(n in 1u32..20, base in 1.0f64..=10.0, roll in 0.0f64..1.0) {
            let schedule = formula(21, base, 3600);
            let (plain, jittered) = (schedule.delay_after(n, 0.0).unwrap(), schedule.delay_after(n, roll).unwrap());
            prop_assert!(jittered >= plain && jittered <= plain.mul_f64(1.0 + JITTER) + Duration::from_micros(1));
        }

        #[test]
        fn explicit_delays_come_back_whatever_the_roll(seconds in prop::collection::vec(0u64..86_400, 1..20), roll: f64) {
            let delays: Vec<_> = seconds.iter().copied().map(Duration::from_secs).collect();
            let schedule = Schedule::Explicit { delays: delays.clone() };
            let given: Vec<_> = (1u32..).map_while(|n| schedule.delay_after(n, roll)).collect();
            prop_assert_eq!(u32::try_from(given.len() + 1).unwrap(), schedule.max_attempts());
            prop_assert_eq!(given, delays);
        }
    }
}
