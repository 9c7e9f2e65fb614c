//! Which points of a time series are wanted: steps of a minute or an hour, from a time to a time. Read by the
//! statistics' routes, carried out by `relay_store`. Invariant: a range has 1 to [`POINTS_MAX`] points, on whole steps
//! (UTC).

use std::str::FromStr;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

/// Points of one answer at most: the minutes of a day, the hours of sixty days.
pub const POINTS_MAX: i64 = 1440;
/// Minutes of a series without `from`.
const MINUTES_DEFAULT: i64 = 60;
/// Hours of a series without `from`.
const HOURS_DEFAULT: i64 = 24;

/// What lies between two points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// 60 s.
    Minute,
    /// 3600 s.
    Hour,
}

impl Step {
    /// As it is written in the interface, and as Postgres names the unit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
        }
    }

    /// How long it is.
    pub fn length(self) -> TimeDelta {
        match self {
            Self::Minute => TimeDelta::minutes(1),
            Self::Hour => TimeDelta::hours(1),
        }
    }

    fn points_default(self) -> i32 {
        match self {
            Self::Minute => MINUTES_DEFAULT as i32,
            Self::Hour => HOURS_DEFAULT as i32,
        }
    }
}

/// The text is none of the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be minute or hour")]
pub struct UnknownStep;

impl FromStr for Step {
    type Err = UnknownStep;

    fn from_str(text: &str) -> Result<Self, UnknownStep> {
        [Self::Minute, Self::Hour].into_iter().find(|s| s.as_str() == text).ok_or(UnknownStep)
    }
}

/// Why a series can't be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeriesError {
    /// The times are in the wrong order.
    #[error("must be before to, which is now where it isn't given")]
    FromNotBeforeTo,
    /// The range is too long for its step.
    #[error("is too early: a series has at most {POINTS_MAX} points, here as many minutes or hours")]
    TooManyPoints,
    /// A time so far away that it can't be counted with.
    #[error("is out of range")]
    OutOfRange,
}

/// The points that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesRange {
    /// What lies between them.
    pub step: Step,
    /// The first one.
    pub from: DateTime<Utc>,
    /// The first one that isn't wanted any more.
    pub to: DateTime<Utc>,
}

impl SeriesRange {
    /// The points whose steps have a part in `from..to`. Without `to` up to `now`; without `from` the last hour, or the
    /// last 24 hours where steps are hours. Errors are about `from`, except `OutOfRange`, which may be about either.
    pub fn new(
        step: Step,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<Self, SeriesError> {
        let end = to.unwrap_or(now);
        let floor = |at: DateTime<Utc>| at.duration_trunc(step.length()).map_err(|_| SeriesError::OutOfRange);
        let ahead = |at: DateTime<Utc>| at.checked_add_signed(step.length()).ok_or(SeriesError::OutOfRange);
        let floored = floor(end)?;
        // Now belongs to the last step even at its first moment; an end that was given does not.
        let to = if floored == end && to.is_some() { end } else { ahead(floored)? };
        let from = match from {
            Some(from) if from >= end => return Err(SeriesError::FromNotBeforeTo),
            Some(from) => floor(from)?,
            None => to.checked_sub_signed(step.length() * step.points_default()).ok_or(SeriesError::OutOfRange)?,
        };
        let range = Self { step, from, to };
        if range.points_count() > POINTS_MAX { Err(SeriesError::TooManyPoints) } else { Ok(range) }
    }

    /// The last `hours` hours and the one that has begun.
    pub fn last_hours(hours: i32, now: DateTime<Utc>) -> Result<Self, SeriesError> {
        Self::new(Step::Hour, Some(now - TimeDelta::hours(i64::from(hours))), None, now)
    }

    /// All points, oldest first.
    pub fn points(self) -> impl Iterator<Item = DateTime<Utc>> {
        std::iter::successors(Some(self.from), move |at| at.checked_add_signed(self.step.length()))
            .take_while(move |at| *at < self.to)
    }

    fn points_count(&self) -> i64 {
        (self.to - self.from).num_seconds() / self.step.length().num_seconds()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;
    use proptest::prelude::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(1_700_006_400 + seconds, 0).unwrap() // a whole hour
    }

    #[test]
    fn without_times_the_last_hour_or_day_to_now() {
        let minutes = SeriesRange::new(Step::Minute, None, None, at(3601)).unwrap();
        assert_eq!((minutes.from, minutes.to), (at(60), at(3660)));
        assert_eq!(minutes.points().count(), 60);
        let hours = SeriesRange::new(Step::Hour, None, None, at(0)).unwrap();
        assert_eq!((hours.to, hours.points().count()), (at(3600), 24));
        assert_eq!(SeriesRange::last_hours(24, at(5)).unwrap().points().count(), 25);
    }

    #[test]
    fn ends_are_outside_and_ranges_bounded() {
        let minute = |from, to| SeriesRange::new(Step::Minute, Some(at(from)), Some(at(to)), at(0));
        assert_eq!(minute(0, 60).unwrap().points().collect::<Vec<_>>(), [at(0)]);
        assert_eq!(minute(59, 61).unwrap().points().collect::<Vec<_>>(), [at(0), at(60)]);
        assert_eq!(minute(60, 60), Err(SeriesError::FromNotBeforeTo));
        assert_eq!(minute(0, 86_400).unwrap().points().count(), 1440);
        assert_eq!(minute(0, 86_401), Err(SeriesError::TooManyPoints));
        let far = SeriesRange::new(Step::Hour, Some(DateTime::<Utc>::MIN_UTC), Some(DateTime::<Utc>::MAX_UTC), at(0));
        assert!(far.is_err());
        assert_eq!("hour".parse(), Ok(Step::Hour));
        assert_eq!("day".parse::<Step>(), Err(UnknownStep));
    }

    proptest! {
        #[test]
        fn any_range_is_refused_or_bounded_and_covers_what_was_asked(
            from in any::<i64>(), to in prop::option::of(any::<i64>()), hours in any::<bool>(),
        ) {
            let time = |n: i64| DateTime::<Utc>::from_timestamp(n % 9_000_000_000_000, 0).unwrap_or_default();
            let step = if hours { Step::Hour } else { Step::Minute };
            if let Ok(range) = SeriesRange::new(step, Some(time(from)), to.map(time), at(0)) {
                let points: Vec<_> = range.points().collect();
                prop_assert!((1..=1440).contains(&points.len()));
                prop_assert!(points[0] <= time(from) && range.to >= to.map_or(at(0), time));
            }
        }
    }
}
