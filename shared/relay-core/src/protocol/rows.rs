//! A delivery's row as the statements change it: dispatch, check, claim, record, replay, re-send, discard, close
//! for others. The SQL does the same; the store's tests compare the two, and the simulation's store is made of it.
//!
//! Invariants: who owns a row has raised its claim; a closed row changes only by an operator or by a late 2xx;
//! whatever makes it delivered resolves its dead letter.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::delivery::{Closed, Effect, OpenState, Outcome, Stored, apply};

/// The state of a delivery's dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Letter {
    /// Somebody should look at it.
    Open,
    /// Its delivery was opened again.
    Replayed,
    /// Its delivery was delivered after all.
    Resolved,
    /// Discarded by an operator.
    Discarded,
}

impl Letter {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
        }
    }
}

/// What became of "send it again".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resent {
    /// It was closed: a new life begins.
    Reopened,
    /// It waited: it is due now.
    DueNow,
    /// A job is out.
    InProgress,
}

/// One delivery as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Open or closed, with its counters.
    pub stored: Stored,
    /// `due_at` is the end of a lease. Meaningless where closed, as `due_at` is.
    pub leased: bool,
    /// When somebody looks at it.
    pub due_at: DateTime<Utc>,
    /// Its dead letter, if it ever had one.
    pub letter: Option<Letter>,
}

impl Row {
    /// What the dispatch statement writes: claimed for a job at once, or held and due.
    pub fn opened(leased: bool, lease: Duration, now: DateTime<Utc>) -> Self {
        Self {
            stored: Stored::Open(OpenState { claim: i32::from(leased), attempts: 0, base: 0 }),
            leased,
            due_at: if leased { later(now, lease) } else { now },
            letter: None,
        }
    }

    /// What the dispatch statement writes for an inactive endpoint.
    pub fn dead_at_once(now: DateTime<Utc>) -> Self {
        let state = OpenState { claim: 0, attempts: 0, base: 0 };
        Self {
            stored: Stored::Closed(Closed::DeadLettered, state),
            leased: false,
            due_at: now,
            letter: Some(Letter::Open),
        }
    }

    /// The counters.
    pub fn state(&self) -> OpenState {
        match self.stored {
            Stored::Open(state) | Stored::Closed(_, state) => state,
        }
    }

    /// How it ended, where it has.
    pub fn closed(&self) -> Option<Closed> {
        match self.stored {
            Stored::Open(_) => None,
            Stored::Closed(how, _) => Some(how),
        }
    }

    /// Whether a job is out and its lease runs.
    pub fn lease_runs(&self, now: DateTime<Utc>) -> bool {
        self.closed().is_none() && self.leased && self.due_at > now
    }

    /// Whether the scheduler may claim it.
    pub fn is_due(&self, include_lapsed: bool, now: DateTime<Utc>) -> bool {
        self.closed().is_none() && self.due_at <= now && (include_lapsed || !self.leased)
    }

    /// The check of a suspect job: takes the row where it is open with the job's claim and attempts, and gives the
    /// claim to go on with. `None`: the job is to be dropped.
    pub fn take(&mut self, claim: i32, attempts: i32, lease: Duration, now: DateTime<Utc>) -> Option<i32> {
        match &mut self.stored {
            Stored::Open(row) if row.claim == claim && row.attempts == attempts => {
                row.claim += 1;
                let claim = row.claim;
                (self.leased, self.due_at) = (true, later(now, lease));
                Some(claim)
            }
            _ => None,
        }
    }

    /// The scheduler's claim: what the job carries, or `None` where the row isn't due.
    pub fn claim(&mut self, lease: Duration, include_lapsed: bool, now: DateTime<Utc>) -> Option<OpenState> {
        if !self.is_due(include_lapsed, now) {
            return None;
        }
        let Stored::Open(row) = &mut self.stored else { return None };
        row.claim += 1;
        let claimed = *row;
        (self.leased, self.due_at) = (true, later(now, lease));
        Some(claimed)
    }

    /// The record statement, for one result.
    pub fn record(&mut self, claim: i32, attempts: i32, outcome: &Outcome, now: DateTime<Utc>) -> Effect {
        let effect = apply(self.stored, claim, attempts, outcome);
        self.carry_out(&effect, now);
        effect
    }

    /// Carries out what [`apply`] found.
    pub fn carry_out(&mut self, effect: &Effect, now: DateTime<Utc>) {
        let state = self.state();
        match effect {
            Effect::Nothing | Effect::AlreadyDelivered => {}
            Effect::Deliver { attempts } => {
                self.close(Closed::Delivered, OpenState { attempts: *attempts, ..state });
                self.letter = self.letter.map(|_| Letter::Resolved);
            }
            Effect::Reschedule { attempts, delay } => {
                self.stored = Stored::Open(OpenState { attempts: *attempts, ..state });
                (self.leased, self.due_at) = (false, later(now, *delay));
            }
            Effect::Bury { attempts, .. } => {
                self.close(Closed::DeadLettered, OpenState { attempts: *attempts, ..state });
                self.letter = Some(Letter::Open);
            }
        }
    }

    /// Replays its dead letter. A delivered one, or one that waits, only by `force`. `false`: nothing changed.
    pub fn replay(&mut self, force: bool, now: DateTime<Utc>) -> bool {
        let Some(_) = self.letter else { return false };
        let changed = match self.stored {
            Stored::Closed(Closed::Delivered, _) if !force => false,
            Stored::Closed(..) => {
                self.reopen(now);
                true
            }
            Stored::Open(_) if force && !self.lease_runs(now) => {
                (self.leased, self.due_at) = (false, now);
                true
            }
            Stored::Open(_) => false,
        };
        if changed {
            self.letter = Some(Letter::Replayed);
        }
        changed
    }

    /// Sends it again, delivered or not; where it waits: now.
    pub fn resend(&mut self, now: DateTime<Utc>) -> Resent {
        if self.closed().is_some() {
            self.reopen(now);
            self.letter = self.letter.map(|_| Letter::Replayed);
            Resent::Reopened
        } else if self.lease_runs(now) {
            Resent::InProgress
        } else {
            (self.leased, self.due_at) = (false, now);
            Resent::DueNow
        }
    }

    /// Discards an open dead letter and its delivery.
    pub fn discard(&mut self) -> bool {
        if self.letter != Some(Letter::Open) {
            return false;
        }
        if let Stored::Closed(Closed::DeadLettered, state) = self.stored {
            self.stored = Stored::Closed(Closed::Discarded, state);
        }
        self.letter = Some(Letter::Discarded);
        true
    }

    /// Closes it, unsent, where no job is out: its endpoint is inactive, its day is dropped, its pause ends
    /// without the backlog.
    pub fn close_for_others(&mut self, how: Closed, now: DateTime<Utc>) -> bool {
        let Stored::Open(state) = self.stored else { return false };
        if self.lease_runs(now) {
            return false;
        }
        self.close(how, state);
        match how {
            Closed::DeadLettered => self.letter = Some(Letter::Open),
            Closed::Discarded => self.letter = self.letter.map(|_| Letter::Discarded),
            Closed::Delivered => {}
        }
        true
    }

    fn close(&mut self, how: Closed, state: OpenState) {
        self.stored = Stored::Closed(how, state);
        self.leased = false;
    }

    /// A new life: attempts count on, the retry budget starts anew, jobs of the old life are stale.
    fn reopen(&mut self, now: DateTime<Utc>) {
        let state = self.state();
        self.stored =
            Stored::Open(OpenState { claim: state.claim + 1, attempts: state.attempts, base: state.attempts });
        (self.leased, self.due_at) = (false, now);
    }
}

/// `now` and a delay.
fn later(now: DateTime<Utc>, delay: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(delay).ok().and_then(|delay| now.checked_add_signed(delay)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::DeadReason;
    use chrono::TimeZone;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn of_two_copies_one_takes_the_row() {
        let mut row = Row::opened(true, LEASE, at(0));
        assert_eq!(row.take(1, 0, LEASE, at(10)), Some(2));
        assert_eq!(row.take(1, 0, LEASE, at(10)), None);
        assert_eq!(row.due_at, at(70));
        assert_eq!(row.claim(LEASE, true, at(69)), None);
        assert_eq!(row.claim(LEASE, false, at(70)), None, "lapsed leases only when they may be claimed");
        assert_eq!(row.claim(LEASE, true, at(70)).map(|s| s.claim), Some(3));
        assert_eq!(row.take(2, 0, LEASE, at(70)), None);
    }

    #[test]
    fn a_held_row_is_due_and_its_first_job_has_claim_1() {
        let mut row = Row::opened(false, LEASE, at(0));
        assert!(row.is_due(false, at(0)) && !row.lease_runs(at(0)));
        assert_eq!(row.claim(LEASE, false, at(0)), Some(OpenState { claim: 1, attempts: 0, base: 0 }));
    }

    #[test]
    fn a_replay_begins_a_new_life_and_a_2xx_resolves_the_letter() {
        let mut row = Row::opened(true, LEASE, at(0));
        let dead = Outcome::Dead { reason: DeadReason::Permanent, deactivate: false };
        assert!(!row.replay(true, at(1)), "no letter");
        row.record(1, 0, &dead, at(1));
        assert_eq!((row.closed(), row.letter), (Some(Closed::DeadLettered), Some(Letter::Open)));
        assert!(row.replay(false, at(2)));
        assert_eq!(row.state(), OpenState { claim: 2, attempts: 1, base: 1 });
        assert!(!row.replay(false, at(2)), "of two replays one wins");
        assert_eq!(row.claim(LEASE, false, at(2)).map(|s| s.claim), Some(3));
        assert!(!row.close_for_others(Closed::Discarded, at(3)), "a job is out");
        assert_eq!(row.record(3, 1, &Outcome::Delivered, at(3)), Effect::Deliver { attempts: 2 });
        assert_eq!((row.closed(), row.letter), (Some(Closed::Delivered), Some(Letter::Resolved)));
        assert!(!row.replay(false, at(4)) && !row.discard());
        assert_eq!(row.resend(at(4)), Resent::Reopened);
        assert_eq!(row.record(1, 0, &Outcome::Delivered, at(5)), Effect::Nothing, "an old life's 2xx");
    }

    #[test]
    fn a_discarded_one_may_still_turn_out_to_be_delivered() {
        let mut row = Row::opened(true, LEASE, at(0));
        row.claim(LEASE, true, at(60));
        row.record(2, 0, &Outcome::Dead { reason: DeadReason::Exhausted, deactivate: false }, at(61));
        assert!(row.discard() && !row.discard());
        assert_eq!(row.closed(), Some(Closed::Discarded));
        row.record(1, 0, &Outcome::Delivered, at(62));
        assert_eq!((row.closed(), row.letter), (Some(Closed::Delivered), Some(Letter::Resolved)));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Take(i32, i32),
        Claim(bool),
        Record(i32, i32, u8),
        Replay(bool),
        Resend,
        Discard,
        Close(bool),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0i32..6, 0i32..4).prop_map(|(c, a)| Op::Take(c, a)),
            any::<bool>().prop_map(Op::Claim),
            (0i32..6, 0i32..4, 0u8..4).prop_map(|(c, a, o)| Op::Record(c, a, o)),
            any::<bool>().prop_map(Op::Replay),
            Just(Op::Resend),
            Just(Op::Discard),
            any::<bool>().prop_map(Op::Close),
        ]
    }

    proptest! {
        #[test]
        fn any_history_keeps_the_invariants(ops in prop::collection::vec((op(), 0i64..100), 0..60)) {
            let (mut row, mut now) = (Row::opened(true, LEASE, at(0)), 0);
            for (op, wait) in ops {
                now += wait;
                let before = row;
                match &op {
                    Op::Take(c, a) => { row.take(*c, *a, LEASE, at(now)); }
                    Op::Claim(lapsed) => { row.claim(LEASE, *lapsed, at(now)); }
                    Op::Record(c, a, o) => {
                        let outcome = match o {
                            0 => Outcome::Delivered,
                            1 => Outcome::Retry { delay: LEASE },
                            2 => Outcome::Dead { reason: DeadReason::Exhausted, deactivate: false },
                            _ => Outcome::HandedBack { delay: Duration::ZERO, reason: crate::delivery::HandBack::Full },
                        };
                        row.record(*c, *a, &outcome, at(now));
                        let once = row;
                        let again = row.record(*c, *a, &outcome, at(now));
                        if !matches!(outcome, Outcome::HandedBack { .. }) {
                            prop_assert!(matches!(again, Effect::Nothing | Effect::AlreadyDelivered), "a repeated statement changes nothing");
                        }
                        prop_assert_eq!(row, once);
                    }
                    Op::Replay(force) => { row.replay(*force, at(now)); }
                    Op::Resend => { row.resend(at(now)); }
                    Op::Discard => { row.discard(); }
                    Op::Close(dead) => { row.close_for_others(if *dead { Closed::DeadLettered } else { Closed::Discarded }, at(now)); }
                }
                prop_assert!(row.state().claim >= before.state().claim && row.state().attempts >= before.state().attempts);
                prop_assert!(row.state().base <= row.state().attempts);
                let operator = matches!(op, Op::Replay(_) | Op::Resend | Op::Discard);
                if before.closed() != row.closed() && before.closed().is_some() && !operator {
                    prop_assert_eq!(row.closed(), Some(Closed::Delivered));
                }
                match (row.closed(), row.letter) {
                    (Some(Closed::Delivered), letter) => prop_assert!(matches!(letter, None | Some(Letter::Resolved))),
                    (Some(Closed::DeadLettered), letter) => prop_assert_eq!(letter, Some(Letter::Open)),
                    (Some(Closed::Discarded), letter) => prop_assert!(matches!(letter, None | Some(Letter::Discarded))),
                    (None, letter) => prop_assert!(matches!(letter, None | Some(Letter::Replayed))),
                }
            }
        }
    }
}
