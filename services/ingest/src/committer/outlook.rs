//! How long an event would wait in the committer if it came now: by the pace of the last publishes, and by how long nothing
//! has come back. No I/O here; times come in as arguments.
//!
//! A queue that is bounded by number alone makes everybody wait for seconds once it is full. Bounded by time, it refuses
//! the part that doesn't fit and serves the rest soon.

use std::time::Duration;

use relay_core::bundle::EVENTS_MAX;
use tokio::time::Instant;

/// What was measured so long ago says nothing about now.
const PACE_LIFE: Duration = Duration::from_secs(1);
/// The weight of the last publish in the pace.
const PACE_WEIGHT: f64 = 0.2;
/// So many events may always wait: the next bundle has room for them.
pub const ALWAYS: usize = EVENTS_MAX;

/// What the last publishes say about the next ones.
#[derive(Debug)]
pub struct Outlook {
    /// Publishes under way, and the events in them.
    out: usize,
    events_out: usize,
    /// When a publish ended last, or began while none was under way.
    progress_at: Instant,
    /// Seconds an event, measured while more waited than went out, and when that was.
    pace: Option<(f64, Instant)>,
}

impl Outlook {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { out: 0, events_out: 0, progress_at: now, pace: None }
    }

    /// A publish of `events` begins.
    pub fn began(&mut self, events: usize, now: Instant) {
        if self.out == 0 {
            self.progress_at = now;
        }
        self.out += 1;
        self.events_out += events;
    }

    /// A publish of `events` has ended; `more`: others waited when it began, so it went as fast as it could.
    pub fn ended(&mut self, events: usize, more: bool, now: Instant) {
        let took = now.saturating_duration_since(self.progress_at).as_secs_f64();
        self.out = self.out.saturating_sub(1);
        self.events_out = self.events_out.saturating_sub(events);
        self.progress_at = now;
        let sample = took / events.max(1) as f64;
        let known = self.pace(now);
        if more || known.is_some_and(|pace| sample < pace) {
            let pace = known.map_or(sample, |pace| pace + PACE_WEIGHT * (sample - pace));
            self.pace = Some((pace, now));
        }
    }

    fn pace(&self, now: Instant) -> Option<f64> {
        self.pace.filter(|(_, at)| now.saturating_duration_since(*at) < PACE_LIFE).map(|(pace, _)| pace)
    }

    /// How long an event waits that comes now behind `waiting` others, as far as anybody can tell.
    pub fn wait(&self, waiting: usize, now: Instant) -> Duration {
        if waiting < ALWAYS {
            return Duration::ZERO;
        }
        let by_pace = self.pace(now).unwrap_or(0.0) * (waiting + self.events_out) as f64;
        let stalled = if self.out > 0 { now.saturating_duration_since(self.progress_at) } else { Duration::ZERO };
        Duration::try_from_secs_f64(by_pace).unwrap_or(Duration::MAX).max(stalled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_on_an_idle_service_is_taken() {
        let now = Instant::now();
        let mut outlook = Outlook::new(now);
        assert_eq!(outlook.wait(20_000, now + 3_600_000 * MS), Duration::ZERO, "nothing is known");
        // Lone events at an easy pace say nothing about bundles.
        for n in 0..100 {
            outlook.began(1, now + n * 20 * MS);
            outlook.ended(1, false, now + (n * 20 + 5) * MS);
        }
        assert_eq!(outlook.wait(20_000, now + 2005 * MS), Duration::ZERO);
    }

    #[test]
    fn the_wait_follows_what_is_ahead_at_the_pace_of_full_bundles() {
        let now = Instant::now();
        let mut outlook = Outlook::new(now);
        // 500 events in 25 ms, two under way: 20,000 a second.
        outlook.began(500, now);
        for n in 1..=40 {
            outlook.began(500, now + n * 25 * MS - MS);
            outlook.ended(500, true, now + n * 25 * MS);
        }
        let at = now + 1000 * MS;
        assert!(outlook.wait(1500, at).abs_diff(100 * MS) < 5 * MS, "{:?}", outlook.wait(1500, at));
        assert_eq!(outlook.wait(499, at), Duration::ZERO, "the next bundle has room");
        // It is forgotten when it says nothing about now.
        outlook.ended(500, false, at + 25 * MS);
        assert_eq!(outlook.wait(1500, at + 1100 * MS), Duration::ZERO);
    }

    #[test]
    fn a_stall_counts_as_long_as_it_is() {
        let now = Instant::now();
        let mut outlook = Outlook::new(now);
        outlook.began(1, now);
        assert_eq!(outlook.wait(600, now + 300 * MS), 300 * MS);
        assert_eq!(outlook.wait(400, now + 300 * MS), Duration::ZERO, "few may wait for it");
        outlook.ended(1, false, now + 300 * MS);
        assert_eq!(outlook.wait(600, now + 300 * MS), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn more_ahead_never_means_less_wait(
            steps in prop::collection::vec((0usize..600, any::<bool>(), 0u64..500), 0..50),
            waiting in 0usize..30_000,
            more in 0usize..1000,
        ) {
            let mut now = Instant::now();
            let mut outlook = Outlook::new(now);
            let mut out = Vec::new();
            for (events, begins, ms) in steps {
                now += Duration::from_millis(ms);
                if begins || out.is_empty() {
                    outlook.began(events, now);
                    out.push(events);
                } else {
                    outlook.ended(out.remove(0), events % 2 == 0, now);
                }
            }
            prop_assert!(outlook.wait(waiting, now) <= outlook.wait(waiting + more, now));
            prop_assert_eq!(outlook.wait(waiting.min(ALWAYS - 1), now), Duration::ZERO);
        }
    }
}
