//! Notices that the whole process stood still (a stop signal, a suspended machine): its jobs may have gone to
//! others meanwhile, so for a while every unsent one is suspect, as after a change of the connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A gap between two looks at the clock that is longer than this was a stall; looks come every
/// [`LOOK_PERIOD`].
const STALL: Duration = Duration::from_secs(2);
/// How often the pool looks at the clock at least.
pub const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// When jobs last may have gone to others without our knowing.
pub struct Disruptions {
    started: Instant,
    /// Milliseconds since `started`, plus one; 0 = never.
    stalled: AtomicU64,
    bus: watch::Receiver<Instant>,
}

impl Disruptions {
    /// `bus` tells when the connection, a pull or a consumer's leader last changed.
    pub fn new(bus: watch::Receiver<Instant>) -> Self {
        Self { started: Instant::now(), stalled: AtomicU64::new(0), bus }
    }

    /// The clock was looked at `last`, and now again.
    pub fn look(&self, last: Instant, now: Instant) {
        let gap = now.saturating_duration_since(last);
        if gap > STALL {
            tracing::warn!(?gap, "this process stood still: jobs that are not sent yet are checked first");
            let millis = now.saturating_duration_since(self.started).as_millis();
            self.stalled.store(u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
        }
    }

    /// Time since the last one.
    pub fn since(&self, now: Instant) -> Duration {
        let bus = now.saturating_duration_since(*self.bus.borrow());
        match self.stalled.load(Ordering::Relaxed) {
            0 => bus,
            millis => bus.min(now.saturating_duration_since(self.started + Duration::from_millis(millis - 1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_later_of_stall_and_bus_counts() {
        let (_bus, receiver) = watch::channel(Instant::now());
        let disruptions = Disruptions::new(receiver);
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        assert_eq!(disruptions.since(now), Duration::from_secs(60));
        disruptions.look(now - Duration::from_secs(1), now);
        assert_eq!(disruptions.since(now), Duration::from_secs(60));
        disruptions.look(now - Duration::from_secs(3), now);
        assert!(disruptions.since(now) < Duration::from_millis(2));
    }
}
