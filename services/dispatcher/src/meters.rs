//! The counters of a dispatcher, made once, after the recorder of the process is installed: they show 0 before the
//! first event.

use metrics::{Counter, Histogram};
use relay_runtime::metrics::{counter, counters};
use relay_store::DispatchOutcome;

/// See the module.
pub struct Meters {
    events: [Counter; 5],
    batch_events: Histogram,
    jobs: Counter,
    claimed: Counter,
}

const OUTCOMES: [&str; 5] = ["inserted", "present", "alias", "stale", "dead_letter"];

impl Meters {
    /// Registers them.
    pub fn new() -> Self {
        Self {
            events: counters("relay_dispatcher_events_total", "outcome", OUTCOMES),
            batch_events: metrics::histogram!("relay_dispatcher_batch_events"),
            jobs: counter("relay_dispatcher_jobs_total"),
            claimed: counter("relay_scheduler_claimed_total"),
        }
    }

    /// What became of an event.
    pub fn event(&self, outcome: &DispatchOutcome) {
        let index = match outcome {
            DispatchOutcome::Inserted => 0,
            DispatchOutcome::Present => 1,
            DispatchOutcome::Alias(_) => 2,
            DispatchOutcome::Stale => 3,
            DispatchOutcome::Poison(_) | DispatchOutcome::Expired(_) => 4,
        };
        self.events[index].increment(1);
    }

    /// How many events went into a statement.
    pub fn batch(&self, events: usize) {
        self.batch_events.record(events as f64);
    }

    /// Jobs of fresh events were published.
    pub fn jobs(&self, n: usize) {
        self.jobs.increment(n as u64);
    }

    /// Due deliveries were claimed and published.
    pub fn claimed(&self, n: usize) {
        self.claimed.increment(n as u64);
    }
}
