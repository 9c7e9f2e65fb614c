//! The counters of attempts, made once: looking a metric up by name costs more than counting. They show 0 before the
//! first attempt.

use metrics::{Counter, Histogram};
use relay_core::delivery::Outcome;
use relay_runtime::metrics::counters;

/// See the module.
pub struct Meters {
    outcomes: [Counter; 4],
    checks: [Counter; 3],
    seconds: Histogram,
}

/// What a check came to.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// The row is the job's.
    Taken = 0,
    /// The row has moved on.
    Stale = 1,
    /// Nobody knows.
    Unknown = 2,
}

const DELIVERED: usize = 0;
const RETRY: usize = 1;
const DEAD: usize = 2;
const ABORTED: usize = 3;
const OUTCOMES: [&str; 4] = ["delivered", "retry", "dead", "aborted"];

impl Meters {
    /// After the recorder of the process is installed.
    pub fn new() -> Self {
        Self {
            outcomes: counters("relay_deliverer_attempts_total", "outcome", OUTCOMES),
            checks: counters("relay_deliverer_checks_total", "result", ["taken", "stale", "unknown"]),
            seconds: metrics::histogram!("relay_deliverer_attempt_seconds"),
        }
    }

    /// An attempt is over. Returns the outcome's name.
    pub fn attempt(&self, outcome: &Outcome, total_us: u32) -> &'static str {
        let outcome = match outcome {
            Outcome::Delivered => DELIVERED,
            Outcome::Retry { .. } => RETRY,
            Outcome::Dead { .. } => DEAD,
            Outcome::HandedBack { .. } => ABORTED,
        };
        self.outcomes[outcome].increment(1);
        self.seconds.record(f64::from(total_us) / 1e6);
        OUTCOMES[outcome]
    }

    /// A check was made.
    pub fn check(&self, result: Check) {
        self.checks[result as usize].increment(1);
    }
}
