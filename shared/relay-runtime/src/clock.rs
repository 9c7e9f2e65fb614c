//! The one clock: the machine's, corrected by the ledger's. A pod whose clock is minutes off would sign with
//! times that every correct receiver refuses, so [`Clock::follow`] measures the difference and [`Clock::now`]
//! includes it. Nothing else in the services reads the time of day.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use tokio_util::sync::CancellationToken;

/// How often the reference is asked.
pub const FOLLOW_INTERVAL: Duration = Duration::from_secs(10);
/// A difference above this is logged.
pub const DRIFT_LOGGED: TimeDelta = TimeDelta::seconds(2);
/// A difference above this makes the pod unready.
pub const DRIFT_UNREADY: TimeDelta = TimeDelta::seconds(30);
/// An answer that took longer says too little about the time.
const ROUND_TRIP_MAX: TimeDelta = TimeDelta::seconds(1);

/// The time. Cheap to clone; all clones share one correction.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    offset_us: Arc<AtomicI64>,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock, not corrected yet.
    pub fn system() -> Self {
        Self { source: Source::System, offset_us: Arc::default() }
    }

    /// A clock for tests that stands still until [`Clock::advance`].
    pub fn fixed(at: DateTime<Utc>) -> Self {
        Self { source: Source::Fixed(Arc::new(AtomicI64::new(at.timestamp_micros()))), offset_us: Arc::default() }
    }

    /// The corrected time, in whole microseconds.
    pub fn now(&self) -> DateTime<Utc> {
        self.uncorrected() + self.drift()
    }

    #[expect(clippy::disallowed_methods, reason = "the one clock that everybody else is sent to")]
    fn uncorrected(&self) -> DateTime<Utc> {
        let micros = match &self.source {
            Source::System => DateTime::<Utc>::from(SystemTime::now()).timestamp_micros(),
            Source::Fixed(at) => at.load(Ordering::Relaxed),
        };
        Utc.timestamp_micros(micros).single().unwrap_or_default()
    }

    /// Moves a fixed clock on; the machine's clock moves by itself.
    pub fn advance(&self, by: Duration) {
        if let Source::Fixed(at) = &self.source {
            at.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
    }

    /// Sets the correction: the reference's time minus the machine's.
    pub fn set_offset(&self, offset: TimeDelta) {
        self.offset_us.store(offset.num_microseconds().unwrap_or_default(), Ordering::Relaxed);
    }

    /// The correction in force.
    pub fn drift(&self) -> TimeDelta {
        TimeDelta::microseconds(self.offset_us.load(Ordering::Relaxed))
    }

    /// The health check: an error in words when the machine's clock is off by more than [`DRIFT_UNREADY`].
    pub fn check(&self) -> Result<(), String> {
        let drift = self.drift();
        if drift.abs() > DRIFT_UNREADY {
            return Err(format!("this machine's clock is off by {} s", -drift.num_seconds()));
        }
        Ok(())
    }

    /// Measures once: the reference's time against the middle of asking and answer.
    pub async fn measure<F, E>(&self, read: F) -> Result<(), E>
    where
        F: Future<Output = Result<DateTime<Utc>, E>>,
    {
        let before = self.uncorrected();
        let reference = read.await?;
        let round_trip = self.uncorrected() - before;
        if TimeDelta::zero() <= round_trip && round_trip <= ROUND_TRIP_MAX {
            self.set_offset(reference - (before + round_trip / 2));
        }
        Ok(())
    }

    /// Measures every `interval` until `stop` fires. A reference that doesn't answer leaves the last correction.
    pub async fn follow<R, F, E>(self, read: R, interval: Duration, stop: CancellationToken)
    where
        R: Fn() -> F,
        F: Future<Output = Result<DateTime<Utc>, E>>,
        E: Display,
    {
        let mut was_off = false;
        while !stop.is_cancelled() {
            let measured = tokio::select! {
                measured = self.measure(read()) => measured,
                () = stop.cancelled() => return,
            };
            match measured {
                Ok(()) => {
                    let drift = self.drift();
                    let off = drift.abs() > DRIFT_LOGGED;
                    if off && !was_off {
                        let drift_ms = drift.num_milliseconds();
                        tracing::warn!(drift_ms, "this machine's clock is off; times are corrected");
                    } else if was_off && !off {
                        tracing::info!("this machine's clock is right again");
                    }
                    was_off = off;
                }
                Err(error) => tracing::debug!(%error, "the reference clock can't be read"),
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 1, 2, 12, 0, 0).unwrap()
    }

    #[test]
    fn a_fixed_clock_moves_when_told() {
        let clock = Clock::fixed(noon());
        assert_eq!(clock.now(), noon());
        clock.clone().advance(Duration::from_secs(5));
        assert_eq!(clock.now(), noon() + TimeDelta::seconds(5));
    }

    #[tokio::test]
    async fn the_middle_of_asking_and_answer_counts() {
        let clock = Clock::fixed(noon());
        let slow = || async {
            clock.advance(Duration::from_millis(400));
            Ok::<_, String>(noon() + TimeDelta::seconds(60))
        };
        clock.measure(slow()).await.unwrap();
        assert_eq!(clock.drift(), TimeDelta::milliseconds(59_800));
        assert!(clock.check().unwrap_err().contains("-59 s"));
        let too_slow = async {
            clock.advance(Duration::from_secs(2));
            Ok::<_, String>(noon())
        };
        clock.measure(too_slow).await.unwrap();
        assert_eq!(clock.drift(), TimeDelta::milliseconds(59_800), "a slow answer changes nothing");
        assert!(clock.measure(async { Err::<DateTime<Utc>, _>("away") }).await.is_err());
    }
}
