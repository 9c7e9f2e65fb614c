//! Jobs that work on many dead letters: what a runner does next, by the job's state, its pace and the clock. Called
//! by the DLQ manager's duty; `relay_store::jobs` carries it out, a step a statement.
//!
//! Invariant: whatever the runners do (stop, go on, change over), a job takes at most its rate times the time that
//! passed, and [`BURST`] more: what was not used while nobody ran is lost.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// Letters of one step.
pub const STEP_LETTERS_MAX: u32 = 1000;
/// The greatest rate, in letters per second.
pub const RATE_MAX: u32 = 10_000;
/// Unused pace that may be made up for.
pub const BURST: Duration = Duration::from_millis(250);
/// A paced job takes about this many steps a second, not one for each letter.
const STEPS_PER_SECOND: u32 = 10;

macro_rules! texts {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// As it is stored and shown.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// From its text.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

texts! {
    /// What a job does with each letter.
    JobKind {
        /// Sends it again.
        Replay => "replay",
        /// Gives it up.
        Discard => "discard",
    }
}

texts! {
    /// How far a job is.
    JobState {
        /// Made; nobody has begun.
        Queued => "queued",
        /// On its way.
        Running => "running",
        /// Went over all letters.
        Done => "done",
        /// Ended by somebody; what is done is done.
        Cancelled => "cancelled",
        /// Ended by an error that trying again doesn't mend.
        Failed => "failed",
    }
}

impl JobState {
    /// Whether nothing changes any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed)
    }
}

/// How fast a job may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Letters per second, 1 to [`RATE_MAX`]; `None`: as fast as it goes.
    pub rate: Option<u32>,
    /// What is taken uses the pace up until then.
    pub until: Option<DateTime<Utc>>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Count, and begin.
    Begin,
    /// Take this many letters at most.
    Take(u32),
    /// Nothing before this time has passed.
    Wait(Duration),
    /// Nothing any more.
    Over,
}

/// What a runner does next with a job.
pub fn next_step(state: JobState, pace: Pace, now: DateTime<Utc>) -> NextStep {
    match state {
        JobState::Queued => NextStep::Begin,
        JobState::Running => pace.next(now),
        JobState::Done | JobState::Cancelled | JobState::Failed => NextStep::Over,
    }
}

impl Pace {
    fn next(&self, now: DateTime<Utc>) -> NextStep {
        let Some(rate) = self.rate.map(i64::from) else { return NextStep::Take(STEP_LETTERS_MAX) };
        let quantum = (rate / i64::from(STEPS_PER_SECOND)).clamp(1, i64::from(STEP_LETTERS_MAX));
        // A slow job's burst is one letter.
        let ready = self.used_until(now) + micros_of(quantum, rate);
        if ready > now {
            return NextStep::Wait((ready - now).to_std().unwrap_or_default());
        }
        let free = (now - self.used_until(now)).num_microseconds().unwrap_or(0).saturating_mul(rate) / 1_000_000;
        NextStep::Take(u32::try_from(free.clamp(quantum, i64::from(STEP_LETTERS_MAX))).unwrap_or(1))
    }

    /// Until when the pace is used up once `taken` letters more are.
    #[must_use]
    pub fn used(&self, now: DateTime<Utc>, taken: usize) -> Option<DateTime<Utc>> {
        let rate = i64::from(self.rate?);
        Some(self.used_until(now) + micros_of(i64::try_from(taken).unwrap_or(i64::MAX), rate))
    }

    fn used_until(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let rate = i64::from(self.rate.unwrap_or(RATE_MAX));
        let burst = TimeDelta::from_std(BURST).unwrap_or_default().max(micros_of(1, rate));
        // A job that begins has nothing to make up for.
        self.until.unwrap_or(now).max(now - burst)
    }
}

/// The time that so many letters take, rounded up.
fn micros_of(letters: i64, rate: i64) -> TimeDelta {
    let rate = rate.max(1);
    TimeDelta::microseconds(letters.saturating_mul(1_000_000).saturating_add(rate - 1) / rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(micros: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(1_700_000_000_000_000 + micros).unwrap()
    }

    #[test]
    fn states_lead_to_steps() {
        let free = Pace { rate: None, until: None };
        assert_eq!(next_step(JobState::Queued, free, at(0)), NextStep::Begin);
        assert_eq!(next_step(JobState::Running, free, at(0)), NextStep::Take(STEP_LETTERS_MAX));
        for state in [JobState::Done, JobState::Cancelled, JobState::Failed] {
            assert!(state.is_over());
            assert_eq!(next_step(state, free, at(0)), NextStep::Over);
        }
        assert_eq!(JobState::parse("running"), Some(JobState::Running));
        assert_eq!(JobKind::parse("move"), None);
    }

    #[test]
    fn a_paced_job_waits_takes_and_waits() {
        let slow = Pace { rate: Some(2), until: Some(at(0)) };
        assert_eq!(slow.next(at(0)), NextStep::Wait(Duration::from_millis(500)));
        assert_eq!(slow.next(at(500_000)), NextStep::Take(1));
        assert_eq!(slow.used(at(500_000), 1), Some(at(500_000)));
        // Away for an hour: one letter, not 7,200.
        assert_eq!(slow.next(at(3_600_000_000)), NextStep::Take(1));
        assert_eq!(slow.used(at(3_600_000_000), 1), Some(at(3_600_000_000)));
        let fast = Pace { rate: Some(1000), until: Some(at(0)) };
        assert_eq!(fast.next(at(99_000)), NextStep::Wait(Duration::from_millis(1)));
        assert_eq!(fast.next(at(100_000)), NextStep::Take(100));
        assert_eq!(fast.next(at(9_000_000)), NextStep::Take(250));
        assert_eq!(fast.used(at(100_000), 0), Some(at(0)), "looking costs nothing");
    }

    proptest! {
        /// Runners that look at any times, and go away for any times, keep the rate; one that looks often reaches it.
        #[test]
        fn the_rate_is_kept_and_reached(rate in 1u32..=RATE_MAX, gaps in proptest::collection::vec(0i64..2_000_000, 1..100), eager: bool) {
            let mut pace = Pace { rate: Some(rate), until: None };
            let (mut now, mut taken, start) = (0i64, 0u64, 0i64);
            for gap in gaps {
                match pace.next(at(now)) {
                    NextStep::Take(n) => {
                        taken += u64::from(n);
                        pace.until = pace.used(at(now), n as usize);
                    }
                    NextStep::Wait(wait) => {
                        prop_assert!(wait <= Duration::from_micros(1_000_000 / u64::from(rate) + 110_000));
                        if pace.until.is_none() { pace.until = pace.used(at(now), 0); }
                        now += if eager { i64::try_from(wait.as_micros()).unwrap() } else { gap };
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
                let passed = now - start;
                let may = (f64::from(rate) * passed as f64 / 1e6) + (f64::from(rate) * BURST.as_secs_f64()).max(1.0) + 1.0;
                prop_assert!(taken as f64 <= may, "{} in {} us at {}", taken, passed, rate);
                if eager {
                    let must = f64::from(rate) * passed as f64 / 1e6 - f64::from(rate / STEPS_PER_SECOND + 2);
                    prop_assert!(taken as f64 >= must, "{} in {} us at {}", taken, passed, rate);
                }
            }
        }
    }
}
