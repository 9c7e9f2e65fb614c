//! How long a batch gathers: not at all while events come singly, and longer the faster they come, until a batch is so
//! large that what a statement costs by itself hardly counts. A statement costs about as much as 20 rows; two hundred
//! rows pay it with a tenth on top, and no load waits longer than [`LINGER_MAX`].

use std::time::{Duration, Instant};

/// The longest wait for others.
pub const LINGER_MAX: Duration = Duration::from_millis(20);
/// The wait grows in proportion to the rate, up to this one (per second).
const RATE_OF_LINGER_MAX: f64 = 5_000.0;
/// What timers can tell apart: a shorter wait is none.
const TIMER_GRAIN: Duration = Duration::from_millis(1);
/// Over how long a rate is measured.
const WINDOW: Duration = Duration::from_millis(100);

/// How long a batch gathers where `per_second` come: not at all below 250 a second, at 1,000 4 ms, from 5,000 on 20 ms.
pub fn linger(per_second: f64) -> Duration {
    let wait = LINGER_MAX.mul_f64((per_second / RATE_OF_LINGER_MAX).clamp(0.0, 1.0));
    if wait < TIMER_GRAIN { Duration::ZERO } else { wait }
}

/// How fast things come: their rate over the last full window of 100 ms.
#[derive(Debug, Default)]
pub struct Pulse {
    since: Option<Instant>,
    seen: usize,
    per_second: f64,
}

impl Pulse {
    /// So many came.
    pub fn observe(&mut self, count: usize, now: Instant) {
        self.roll(now);
        self.seen += count;
    }

    /// The rate; 0 until the first window is over.
    pub fn per_second(&mut self, now: Instant) -> f64 {
        self.roll(now);
        self.per_second
    }

    fn roll(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= WINDOW {
            self.per_second = f64::from(u32::try_from(self.seen).unwrap_or(u32::MAX)) / elapsed.as_secs_f64();
            self.seen = 0;
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_is_that_of_the_last_full_window() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        pulse.observe(10, start);
        assert_eq!(pulse.per_second(start), 0.0);
        assert_eq!(pulse.per_second(start + WINDOW), 100.0);
        pulse.observe(500, start + WINDOW);
        assert_eq!(pulse.per_second(start + WINDOW * 2), 5_000.0);
        assert_eq!(pulse.per_second(start + WINDOW * 3), 0.0, "quiet again");
    }

    #[test]
    fn a_batch_gathers_longer_the_faster_events_come() {
        assert_eq!(linger(0.0), Duration::ZERO);
        assert_eq!(linger(200.0), Duration::ZERO);
        assert_eq!(linger(250.0), Duration::from_millis(1));
        assert_eq!(linger(1_000.0), Duration::from_millis(4));
        assert_eq!(linger(1e9), LINGER_MAX);
    }
}
