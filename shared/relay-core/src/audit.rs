//! How an audit of a running system judges what it finds in the ledger: whether an event has all its deliveries (I2),
//! which of two rows of one delivery is the later one, what a dead letter must be beside its delivery, and whether the
//! statistics agree with the rows; and what isn't there because retention has thrown it away. Called by `webhook-relay
//! fsck` and `recover`.

use chrono::{DateTime, Utc};

use crate::delivery::{Closed, LetterState};
use crate::ids::{EventId, id_time};

/// Up to when retention has thrown away what was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrownAway {
    /// Events of days before this, with everything of them.
    pub days: Option<DateTime<Utc>>,
    /// Dead letters from before this.
    pub letters: Option<DateTime<Utc>>,
}

impl ThrownAway {
    /// Whether an event, or the letter of a message that can't be one, is gone on purpose where it isn't there. Its id says
    /// when it came, which is what retention goes by.
    pub fn covers(self, id: EventId, is_letter: bool) -> bool {
        let before = if is_letter { self.letters } else { self.days };
        before.is_some_and(|before| id_time(id.0) < before)
    }
}

/// What is stored of one event's deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Deliveries that the matching gave.
    pub fanout: i64,
    /// Rows that are open.
    pub open: i64,
    /// Rows that are closed.
    pub closed: i64,
    /// Deliveries that have a row of each kind.
    pub both: i64,
    /// Dead letters that stand for a delivery without a row: their endpoint was unknown.
    pub letters: i64,
    /// Closed as dead-lettered, without a dead letter.
    pub unlettered: i64,
}

/// What is wrong with an event's deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFault {
    /// So many are neither open nor closed: nobody will send them.
    Missing(i64),
    /// So many more than the matching gave.
    Surplus(i64),
    /// So many are open and closed at once.
    Both(i64),
    /// So many are dead-lettered and have no letter.
    Unlettered(i64),
}

impl EventCounts {
    /// What is wrong: nothing, one fault or several.
    pub fn faults(&self) -> Vec<EventFault> {
        let distinct = self.open + self.closed - self.both + self.letters;
        let mut faults = Vec::new();
        if self.both > 0 {
            faults.push(EventFault::Both(self.both));
        }
        if distinct < self.fanout {
            faults.push(EventFault::Missing(self.fanout - distinct));
        }
        if distinct > self.fanout {
            faults.push(EventFault::Surplus(distinct - self.fanout));
        }
        if self.unlettered > 0 {
            faults.push(EventFault::Unlettered(self.unlettered));
        }
        faults
    }
}

/// Which of two rows of one delivery stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The open one.
    Open,
    /// The closed one.
    Closed,
}

/// Of an open and a closed row of one delivery, the later life. Claims only rise, and closing a row keeps its claim: so a
/// higher claim is later, and of equal ones the closed row is.
pub fn later(open_claim: i32, closed_claim: i32) -> Side {
    if open_claim > closed_claim { Side::Open } else { Side::Closed }
}

/// Where a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Open: pending, being sent, or to be retried.
    Open,
    /// Closed as delivered.
    Delivered,
    /// Closed as dead-lettered.
    DeadLettered,
    /// Closed as discarded.
    Discarded,
}

impl Place {
    /// From what is stored: whether there is an open row, and the status of the closed one.
    pub fn of(is_open: bool, closed: Option<i16>) -> Option<Self> {
        if is_open {
            return Some(Self::Open);
        }
        Some(match Closed::from_number(closed?)? {
            Closed::Delivered => Self::Delivered,
            Closed::DeadLettered => Self::DeadLettered,
            Closed::Discarded => Self::Discarded,
        })
    }

    /// How it was closed, if it was.
    pub fn closed(self) -> Option<Closed> {
        match self {
            Self::Open => None,
            Self::Delivered => Some(Closed::Delivered),
            Self::DeadLettered => Some(Closed::DeadLettered),
            Self::Discarded => Some(Closed::Discarded),
        }
    }

    /// What the delivery's letter must be, if it has one: whatever moves a delivery moves its letter with it.
    pub fn letter(self) -> LetterState {
        match self {
            Self::Open => LetterState::Replayed,
            Self::Delivered => LetterState::Resolved,
            Self::DeadLettered => LetterState::Open,
            Self::Discarded => LetterState::Discarded,
        }
    }
}

/// An endpoint's work as its statistics have it, and as its rows do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Deliveries that are open.
    pub open: i64,
    /// Of them, those that failed in this life.
    pub retrying: i64,
}

impl Figures {
    /// What must be added to the statistics; `None`: they are right.
    pub fn missing_from(self, statistics: Self) -> Option<Self> {
        let missing = Self { open: self.open - statistics.open, retrying: self.retrying - statistics.retrying };
        (missing != Self::default()).then_some(missing)
    }
}

/// Attempts of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Answered 2xx.
    pub ok: i64,
    /// The others.
    pub failed: i64,
}

impl Attempts {
    /// Attempts that are on record and not in the statistics of the same time. More in the statistics is no fault: those
    /// of older events are in them too.
    pub fn missing_from(self, statistics: Self) -> Option<Self> {
        let missing = Self { ok: (self.ok - statistics.ok).max(0), failed: (self.failed - statistics.failed).max(0) };
        (missing != Self::default()).then_some(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_event_has_each_delivery_once() {
        let sound = EventCounts { fanout: 3, open: 1, closed: 1, letters: 1, ..EventCounts::default() };
        assert_eq!(sound.faults(), []);
        assert_eq!(EventCounts::default().faults(), [], "unmatched");
        assert_eq!(EventCounts { open: 0, ..sound }.faults(), [EventFault::Missing(1)]);
        assert_eq!(EventCounts { closed: 3, ..sound }.faults(), [EventFault::Surplus(2)]);
        // One is missing and another one there twice: the sum of the rows alone looks right.
        let twice = EventCounts { fanout: 2, open: 1, closed: 1, both: 1, ..EventCounts::default() };
        assert_eq!(twice.faults(), [EventFault::Both(1), EventFault::Missing(1)]);
        assert_eq!(EventCounts { unlettered: 1, ..sound }.faults(), [EventFault::Unlettered(1)]);
    }

    #[test]
    fn what_retention_has_thrown_away_is_not_lost() {
        let day =
            |n: i64| DateTime::from_timestamp(1_800_000_000 / 86_400 * 86_400 + n * 86_400, 0).expect("it is a day");
        let id = |at| EventId(crate::ids::uuid_v7(at, [0; 10]));
        let marks = ThrownAway { days: Some(day(5)), letters: Some(day(2)) };
        let last = day(5) - chrono::TimeDelta::milliseconds(1);
        assert!(marks.covers(id(last), false) && !marks.covers(id(day(5)), false));
        assert!(marks.covers(id(day(1)), true) && !marks.covers(id(day(2)), true) && !marks.covers(id(last), true));
        assert!(!ThrownAway::default().covers(id(day(0)), false));
    }

    #[test]
    fn the_higher_claim_is_the_later_life() {
        assert_eq!(later(3, 2), Side::Open);
        assert_eq!(later(2, 2), Side::Closed);
        assert_eq!(later(1, 2), Side::Closed);
    }

    #[test]
    fn a_letter_follows_its_delivery() {
        assert_eq!(Place::of(true, Some(2)).map(Place::letter), Some(LetterState::Replayed));
        assert_eq!(Place::of(false, Some(1)).map(Place::letter), Some(LetterState::Resolved));
        assert_eq!(Place::of(false, Some(2)).map(Place::letter), Some(LetterState::Open));
        assert_eq!(Place::of(false, Some(3)).map(Place::letter), Some(LetterState::Discarded));
        assert_eq!(Place::of(false, None), None);
    }

    #[test]
    fn attempts_of_older_events_are_no_fault() {
        let rows = Attempts { ok: 5, failed: 2 };
        assert_eq!(rows.missing_from(Attempts { ok: 9, failed: 2 }), None);
        assert_eq!(rows.missing_from(Attempts { ok: 4, failed: 9 }), Some(Attempts { ok: 1, failed: 0 }));
    }

    proptest! {
        #[test]
        fn what_is_missing_makes_the_statistics_right(a in -9i64..9, b in -9i64..9, c in -9i64..9, d in -9i64..9) {
            let (rows, statistics) = (Figures { open: a, retrying: b }, Figures { open: c, retrying: d });
            let missing = rows.missing_from(statistics).unwrap_or_default();
            let fixed = Figures { open: c + missing.open, retrying: d + missing.retrying };
            prop_assert_eq!(rows.missing_from(fixed), None);
        }
    }
}
