//! The ledger, as PostgreSQL behaves under READ COMMITTED: a statement sees what was committed when it began, and
//! changes what is there when it changes it. Rows are [`relay_core::protocol::rows::Row`]; what changed is checked
//! against the invariants at every change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use relay_core::delivery::{Closed, DeliveryResult, Effect, Outcome, Stored, apply};
use relay_core::event::Event;
use relay_core::ids::{AttemptId, EndpointId, EventId};
use relay_core::job::Job;
use relay_core::protocol::rows::{Letter, Row};
use relay_core::protocol::{FoldedResult, PlannedEvent};

use super::config::Mutation;
use super::world::{Key, Owner, STATEMENT_DEADLINE_MS, World, lease, short, short_key};

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// Nothing was done.
    Failed,
    /// It may be committed.
    Unknown,
}

/// Who changes a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    Operator,
    Result2xx,
    Other,
}

/// What the dispatch statement says of one event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dispatched {
    Inserted,
    Present,
    Alias,
    Stale,
}

/// What the record statement says of one result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    Written,
    /// A 2xx that matched nothing: to be run again.
    NotFound,
}

/// A row and how often it moved between the tables: a statement that saw it before doesn't find it after.
#[derive(Clone)]
pub struct Kept {
    pub row: Row,
    pub moved: u32,
}

/// One attempt on record.
#[derive(Clone)]
pub struct Attempt {
    pub key: Key,
    pub number: i32,
    pub success: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Store {
    pub events: HashMap<EventId, Event>,
    pub aliases: HashMap<EventId, EventId>,
    pub rows: BTreeMap<Key, Kept>,
    pub attempts: HashMap<AttemptId, Attempt>,
    pub attempts_of: HashMap<Key, u32>,
    /// Letters of events that have no row (their endpoint is unknown).
    pub lone_letters: BTreeSet<EventId>,
    pub directory_version: i64,
    pub down_until: u64,
    /// How often it was killed.
    pub crashes: u32,
    /// How often its connections were cut.
    pub cuts: u32,
    pub leader: Option<(Owner, u64)>,
    /// Begins and commits, counted.
    steps: u64,
    /// When events were committed.
    written: HashMap<EventId, u64>,
}

impl Store {
    pub fn row(&self, key: Key) -> Option<&Row> {
        self.rows.get(&key).map(|k| &k.row)
    }

    /// An older dump takes its place.
    pub fn restore(&mut self, dump: Self) {
        let (crashes, cuts, version) = (self.crashes + 1, self.cuts, self.directory_version + 1);
        let (steps, down_until) = (self.steps, self.down_until);
        *self = Self { crashes, cuts, directory_version: version, steps, down_until, leader: None, ..dump };
    }

    /// The event that an accepted id means.
    pub fn resolve(&self, id: EventId) -> Option<EventId> {
        if self.events.contains_key(&id) { Some(id) } else { self.aliases.get(&id).copied() }
    }
}

/// What a dispatch statement saw when it began.
struct Seen {
    version: i64,
    active: Vec<EndpointId>,
    at: u64,
}

type Begin<S> = Box<dyn FnOnce(&mut World) -> S>;
type Commit<S, R> = Box<dyn FnOnce(&mut World, S) -> R>;

/// A statement's begin (what it sees), its end (what it changes), and what the client does with the answer.
pub struct Statement<S, R> {
    pub begin: Begin<S>,
    pub commit: Commit<S, R>,
}

impl World {
    pub fn postgres_is_up(&self) -> bool {
        self.store.down_until <= self.now
    }

    /// Runs a statement for a process. It may commit though the process dies, and though no answer comes.
    pub fn statement<S: 'static, R: 'static>(
        &mut self,
        owner: Owner,
        statement: Statement<S, R>,
        done: impl FnOnce(&mut Self, Result<R, NoAnswer>) + 'static,
    ) {
        let arrives = self.dice.range(0, 2);
        self.after(arrives, move |w| {
            if !w.postgres_is_up() {
                return w.does(owner, 5, |w| done(w, Err(NoAnswer::Failed)));
            }
            let seen = (statement.begin)(w);
            let (crashes, cuts) = (w.store.crashes, w.store.cuts);
            let takes = if w.dice.chance(0.3) { w.dice.range(2, w.setup.slowest_statement_ms) } else { 2 };
            w.after(takes, move |w| {
                if w.store.crashes != crashes {
                    return w.does(owner, 5, |w| done(w, Err(NoAnswer::Unknown)));
                }
                if w.store.cuts != cuts {
                    if w.dice.chance(0.5) {
                        (statement.commit)(w, seen);
                    }
                    return w.does(owner, 5, |w| done(w, Err(NoAnswer::Unknown)));
                }
                if w.dice.chance(w.chances.commit_unknown) {
                    let committed = w.dice.chance(0.7);
                    w.note(|| format!("no answer to a statement of {owner:?}, committed: {committed}"));
                    if committed {
                        (statement.commit)(w, seen);
                    } else if crashes > 0 {
                        // After an outage leases may be over already: a black hole then counts as a kill of the pod.
                        w.book_owner(owner);
                    }
                    return w.does(owner, STATEMENT_DEADLINE_MS, |w| done(w, Err(NoAnswer::Unknown)));
                }
                let answer = (statement.commit)(w, seen);
                w.does(owner, 1, |w| done(w, Ok(answer)));
            });
        });
    }

    /// Changes a row, and checks what changed.
    pub fn change<R>(&mut self, key: Key, cause: Cause, change: impl FnOnce(&mut Row) -> R) -> Option<R> {
        let kept = self.store.rows.get_mut(&key)?;
        let before = kept.row;
        let answer = change(&mut kept.row);
        let after = kept.row;
        if before.closed().is_some() != after.closed().is_some() {
            kept.moved += 1;
        }
        if before == after {
            return Some(answer);
        }
        self.note(|| format!("{} {cause:?}: {} -> {}", short_key(key), show(&before), show(&after)));
        let changed_end = before.closed().is_some() && before.closed() != after.closed();
        if changed_end && cause != Cause::Operator && after.closed() != Some(Closed::Delivered) {
            self.fail(format!("I4: {} was {:?} and is {:?}", short_key(key), before.closed(), after.closed()));
        }
        if changed_end && cause == Cause::Other {
            self.fail(format!("I4: {} was closed and nobody who may has changed it", short_key(key)));
        }
        if after.state().claim < before.state().claim || after.state().attempts < before.state().attempts {
            self.fail(format!("{}: counters fell", short_key(key)));
        }
        let on_record = self.store.attempts_of.get(&key).copied().unwrap_or(0);
        if i64::from(after.state().attempts) > i64::from(on_record) {
            self.fail(format!(
                "{}: {} attempts counted, {on_record} on record",
                short_key(key),
                after.state().attempts
            ));
        }
        let consistent = match (after.closed(), after.letter) {
            (Some(Closed::DeadLettered), letter) => letter == Some(Letter::Open),
            (Some(Closed::Delivered), letter) => matches!(letter, None | Some(Letter::Resolved)),
            (Some(Closed::Discarded), letter) => matches!(letter, None | Some(Letter::Discarded)),
            (None, letter) => matches!(letter, None | Some(Letter::Replayed)),
        };
        if !consistent {
            self.fail(format!("{}: closed {:?} with letter {:?}", short_key(key), after.closed(), after.letter));
        }
        Some(answer)
    }

    /// The dispatch statement.
    pub fn dispatch(
        &mut self,
        owner: Owner,
        part: Vec<PlannedEvent>,
        done: impl FnOnce(&mut Self, Vec<PlannedEvent>, Result<(DateTime<Utc>, Vec<Dispatched>), NoAnswer>) + 'static,
    ) {
        let (seen_by_begin, to_commit, back) = (part.clone(), part.clone(), part);
        let statement = Statement {
            begin: Box::new(move |w: &mut World| {
                // What a statement sees: the version, and the neighbouring days' ids of its keys.
                let neighbours: Vec<Option<EventId>> = seen_by_begin.iter().map(|p| w.known_by_key(&p.event)).collect();
                let active: Vec<_> = w.endpoints.iter().filter(|e| e.active).map(|e| e.id).collect();
                w.store.steps += 1;
                (neighbours, Seen { version: w.store.directory_version, active, at: w.store.steps })
            }),
            commit: Box::new(move |w: &mut World, (neighbours, seen)| {
                w.store.steps += 1;
                let rows = to_commit.into_iter().zip(neighbours);
                (w.time(), rows.map(|(planned, known)| w.insert(planned, known, &seen)).collect())
            }),
        };
        self.statement(owner, statement, |w, answer| done(w, back, answer));
    }

    fn known_by_key(&self, event: &Event) -> Option<EventId> {
        let key = event.key.as_ref()?;
        if self.store.events.contains_key(&event.id) {
            return Some(event.id);
        }
        let ids = EventId::keyed_neighbours(&event.tenant, key, event.id.time());
        ids.into_iter().find(|id| self.store.events.contains_key(id))
    }

    fn insert(&mut self, planned: PlannedEvent, known: Option<EventId>, seen: &Seen) -> Dispatched {
        let id = planned.event.id;
        if planned.directory_version != seen.version && !self.mutated(Mutation::NoVersionFence) {
            return Dispatched::Stale;
        }
        let means = known.unwrap_or(id);
        for alias in planned.aliases.iter().copied().chain((means != id).then_some(id)).filter(|a| *a != means) {
            self.store.aliases.entry(alias).or_insert(means);
        }
        if self.store.events.contains_key(&id) {
            return Dispatched::Present;
        }
        if known.is_some() {
            return Dispatched::Alias;
        }
        self.check_key(&planned.event, seen);
        // I2: what is written with the event is what the matching gives for the directory of this moment.
        let mut matched: Vec<_> = match planned.event.endpoint {
            None => seen.active.clone(),
            Some(named) => seen.active.iter().copied().filter(|e| *e == named).collect(),
        };
        let mut written: Vec<_> = planned.deliveries.iter().map(|d| d.endpoint).collect();
        matched.sort_unstable();
        written.sort_unstable();
        if matched != written {
            self.fail(format!("I2: event {} matches {matched:?}, written are {written:?}", short(id.0)));
        }
        let time = self.time();
        for delivery in &planned.deliveries {
            let mut row = Row::opened(delivery.leased, delivery.lease, time);
            if delivery.leased && self.mutated(Mutation::NoLease) {
                row.due_at = DateTime::<Utc>::MAX_UTC;
            }
            self.note(|| format!("{} inserted, {}", short_key((id, delivery.endpoint)), show(&row)));
            self.store.rows.insert((id, delivery.endpoint), Kept { row, moved: 0 });
        }
        match planned.dead {
            Some(dead) if dead.reason == relay_core::delivery::DeadReason::EndpointInactive => {
                self.store.rows.insert((id, dead.endpoint), Kept { row: Row::dead_at_once(time), moved: 0 });
            }
            Some(_) => {
                self.store.lone_letters.insert(id);
            }
            None => {}
        }
        self.store.written.insert(id, self.store.steps);
        self.store.events.insert(id, planned.event);
        Dispatched::Inserted
    }

    /// One key, one event, unless two statements ran side by side.
    fn check_key(&mut self, event: &Event, seen: &Seen) {
        let Some(key) = &event.key else { return };
        let ids = EventId::keyed_neighbours(&event.tenant, key, event.id.time());
        let other = ids
            .into_iter()
            .find(|id| self.store.written.get(id).is_some_and(|at| *at < seen.at || *at == self.store.steps));
        if let Some(other) = other {
            self.fail(format!("one key, two events: {} and {}", short(event.id.0), short(other.0)));
        }
    }

    /// The check: takes the row for a suspect job.
    pub fn take(
        &mut self,
        owner: Owner,
        job: &Job,
        done: impl FnOnce(&mut Self, Result<Option<(i32, DateTime<Utc>)>, NoAnswer>) + 'static,
    ) {
        let (key, claim, attempts) = ((job.event, job.endpoint), job.claim, job.attempts);
        let statement = Statement {
            begin: Box::new(|_: &mut World| ()),
            commit: Box::new(move |w: &mut World, ()| {
                let time = w.time();
                if w.mutated(Mutation::CheckDoesNotTake) {
                    let row = w.store.row(key)?;
                    let is_its =
                        row.closed().is_none() && row.state().claim == claim && row.state().attempts == attempts;
                    return is_its.then_some((claim, time));
                }
                let claim = w.change(key, Cause::Other, |row| row.take(claim, attempts, lease(), time)).flatten()?;
                Some((claim, time))
            }),
        };
        self.statement(owner, statement, done);
    }

    /// The record statement, for a batch that is folded (or, mutated, isn't: then the first row of a delivery counts,
    /// as for PostgreSQL, which changes a target once).
    pub fn record(
        &mut self,
        owner: Owner,
        batch: Vec<FoldedResult>,
        done: impl FnOnce(&mut Self, Vec<FoldedResult>, Result<Vec<Recorded>, NoAnswer>) + 'static,
    ) {
        let keys: Vec<Key> = batch.iter().map(|f| (f.decisive.event, f.decisive.endpoint)).collect();
        let (to_commit, back) = (batch.clone(), batch);
        let statement = Statement {
            begin: Box::new(move |w: &mut World| {
                keys.iter().map(|k| w.store.rows.get(k).map_or(0, |kept| kept.moved)).collect()
            }),
            commit: Box::new(move |w: &mut World, seen: Vec<u32>| {
                let mut changed = BTreeSet::new();
                to_commit
                    .iter()
                    .zip(seen)
                    .map(|(folded, moved)| {
                        for result in std::iter::once(&folded.decisive).chain(&folded.others) {
                            w.write_attempt(result);
                        }
                        let key = (folded.decisive.event, folded.decisive.endpoint);
                        let found = w.store.rows.get(&key).is_some_and(|kept| kept.moved == moved);
                        if !changed.insert(key) {
                            Recorded::Written
                        } else if found {
                            w.write_result(&folded.decisive);
                            Recorded::Written
                        } else if folded.decisive.outcome == Outcome::Delivered {
                            w.note(|| format!("{}: the record statement of a 2xx finds nothing", short_key(key)));
                            Recorded::NotFound
                        } else {
                            Recorded::Written
                        }
                    })
                    .collect()
            }),
        };
        self.statement(owner, statement, |w, answer| done(w, back, answer));
    }

    fn write_attempt(&mut self, result: &DeliveryResult) {
        let Some(evidence) = &result.evidence else { return };
        let key = (result.event, result.endpoint);
        let success = result.outcome == Outcome::Delivered;
        let attempt = Attempt { key, number: result.attempts + 1, success };
        if self.store.attempts.insert(evidence.id, attempt).is_none() {
            *self.store.attempts_of.entry(key).or_insert(0) += 1;
        }
    }

    fn write_result(&mut self, result: &DeliveryResult) {
        let time = self.time();
        let key = (result.event, result.endpoint);
        let success = result.outcome == Outcome::Delivered;
        let Some(row) = self.store.row(key).copied() else { return };
        let (mut claim, mut attempts) = (result.claim, result.attempts);
        if let Stored::Open(state) = row.stored {
            if self.mutated(Mutation::NoClaimGuard) && !success {
                claim = state.claim;
            }
            if self.mutated(Mutation::NoAttemptsGuard) && !success {
                attempts = state.attempts;
            }
        }
        let mut effect = apply(row.stored, claim, attempts, &result.outcome);
        if self.mutated(Mutation::SuccessGuardedByClaim) && success && row.state().claim != claim {
            effect = Effect::Nothing;
        }
        let cause = if success { Cause::Result2xx } else { Cause::Other };
        if effect == Effect::Nothing {
            self.note(|| format!("{}: a result with claim {claim} changes nothing", short_key(key)));
        }
        self.change(key, cause, |row| row.carry_out(&effect, time));
    }
}

/// A row in a word.
pub fn show(row: &Row) -> String {
    let state = row.state();
    let what = match row.closed() {
        Some(how) => format!("{how:?}"),
        None if row.leased => "leased".to_owned(),
        None => "waits".to_owned(),
    };
    format!("{what} c{} a{} b{}", state.claim, state.attempts, state.base)
}
