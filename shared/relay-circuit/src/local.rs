//! This pod's own counting, what it has to report, and the changes that it made: behind one lock, held for
//! microseconds. Every change of the snapshot happens under this lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::breaker::{Circuit, CircuitEvent, CircuitRule, CircuitState, Observation, Tracker, Transition, step};
use relay_core::ids::EndpointId;

use crate::report::Report;
use crate::snapshot::Snapshot;

/// Changes that nobody has taken yet; the oldest go first.
const TRANSITIONS_MAX: usize = 10_000;
/// Counts and ramps of an endpoint that wasn't called for this long are forgotten.
const IDLE: Duration = Duration::from_secs(2 * 3600);

/// A change of a circuit's state that this pod's call made: goes on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitTransition {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// When.
    pub at: DateTime<Utc>,
    /// The state before.
    pub from: CircuitState,
    /// The state after.
    pub to: CircuitState,
    /// Why, in words.
    pub why: &'static str,
}

impl CircuitTransition {
    /// The change that an event makes which doesn't depend on the endpoint's rule.
    pub(crate) fn of_step(
        endpoint: EndpointId,
        circuit: Circuit,
        event: CircuitEvent,
        at: DateTime<Utc>,
    ) -> Option<Self> {
        let (_, made) = step(circuit, event, &CircuitRule::default(), at, 0.0);
        made.map(|Transition { from, to, why }| Self { endpoint, at, from, to, why })
    }
}

struct Watched {
    tracker: Tracker,
    last: DateTime<Utc>,
}

/// What the lock guards.
#[derive(Default)]
pub(crate) struct Local {
    watched: HashMap<EndpointId, Watched>,
    pending: HashMap<EndpointId, Report>,
    /// On their way to Redis: what it says of these now is older.
    sent: HashSet<EndpointId>,
    transitions: VecDeque<CircuitTransition>,
}

/// How soon Redis should hear of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Urgency {
    /// With the next flush, if at all.
    None,
    /// Within some 20 ms.
    Soon,
    /// Now.
    Now,
}

impl Local {
    /// Counts one call; opens and closes in the snapshot at once where this pod's own rule says so.
    pub fn observe(
        &mut self,
        snapshot: &Snapshot,
        endpoint: EndpointId,
        rule: &CircuitRule,
        what: Observation,
        was_probe: bool,
        now: DateTime<Utc>,
    ) -> Urgency {
        let circuit = snapshot.get(endpoint).map_or(Circuit::Closed, |known| known.circuit);
        let is_open = circuit.blocked_until().is_some();
        if was_probe && is_open {
            self.probed(snapshot, endpoint, rule, what, now);
            return Urgency::Now;
        }
        let watched =
            self.watched.entry(endpoint).or_insert_with(|| Watched { tracker: Tracker::default(), last: now });
        watched.last = now;
        if is_open {
            return Urgency::None; // A call from before the opening.
        }
        if matches!(circuit, Circuit::Ramp { .. }) {
            let event = match what {
                Observation::Success => CircuitEvent::Succeeded,
                Observation::Failure => CircuitEvent::Failed,
            };
            snapshot.go(endpoint, event, rule, now, 0.0);
        }
        let opens = watched.tracker.observe(rule, what, now);
        if !watched.tracker.in_trouble(rule, now) {
            return Urgency::None;
        }
        let roll = roll();
        let report = self.pending.entry(endpoint).or_default();
        report.rule = *rule;
        report.open_time = rule.open_time(roll);
        report.count(what);
        match (opens, what) {
            (false, Observation::Success) => Urgency::None,
            (false, Observation::Failure) => Urgency::Soon,
            (true, _) => {
                watched.tracker.clear();
                report.opens = true;
                report.probe = None;
                let made = snapshot.go(endpoint, CircuitEvent::Trip, rule, now, roll);
                self.made(endpoint, made);
                Urgency::Now
            }
        }
    }

    fn probed(
        &mut self,
        snapshot: &Snapshot,
        endpoint: EndpointId,
        rule: &CircuitRule,
        what: Observation,
        now: DateTime<Utc>,
    ) {
        let roll = roll();
        let event = match what {
            Observation::Success => CircuitEvent::ProbeSucceeded,
            Observation::Failure => CircuitEvent::ProbeFailed,
        };
        // Its lease may have run out, or Redis not yet have told of it: the answer counts all the same.
        snapshot.change(endpoint, |k| k.circuit = Circuit::Probing { lease_until: now });
        let report = self.pending.entry(endpoint).or_default();
        report.rule = *rule;
        report.open_time = rule.open_time(roll);
        report.decide_by_probe(what);
        let made = snapshot.go(endpoint, event, rule, now, roll);
        self.made(endpoint, made);
        self.forget_counts(endpoint);
    }

    /// A change that this pod made: it waits for Redis's word. One that still waited for it had none: on record it goes.
    fn made(&mut self, endpoint: EndpointId, made: Option<CircuitTransition>) {
        let report = self.pending.entry(endpoint).or_default();
        if let Some(earlier) = std::mem::replace(&mut report.transition, made) {
            self.record(earlier);
        }
    }

    /// A circuit opened or closed: counting begins anew.
    pub fn forget_counts(&mut self, endpoint: EndpointId) {
        if let Some(watched) = self.watched.get_mut(&endpoint) {
            watched.tracker.clear();
        }
    }

    /// The report on an endpoint, to add to.
    pub fn report(&mut self, endpoint: EndpointId) -> &mut Report {
        self.pending.entry(endpoint).or_default()
    }

    pub fn has_reports(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn has_report_on(&self, endpoint: EndpointId) -> bool {
        self.pending.contains_key(&endpoint) || self.sent.contains(&endpoint)
    }

    /// Takes all that is to be reported.
    pub fn take_reports(&mut self) -> Vec<(EndpointId, Report)> {
        self.sent.extend(self.pending.keys());
        self.pending.drain().collect()
    }

    /// Redis has answered the report on an endpoint. `true`: nothing newer waits.
    pub fn answered(&mut self, endpoint: EndpointId) -> bool {
        self.sent.remove(&endpoint);
        !self.pending.contains_key(&endpoint)
    }

    /// Redis didn't take these: they are kept, and the changes that they made here count.
    pub fn put_back(&mut self, reports: Vec<(EndpointId, Report)>) {
        for (endpoint, mut report) in reports {
            self.sent.remove(&endpoint);
            if let Some(transition) = report.transition.take() {
                self.record(transition);
            }
            let joined = match self.pending.remove(&endpoint) {
                Some(newer) => report.followed_by(newer),
                None => report,
            };
            self.pending.insert(endpoint, joined);
        }
    }

    pub fn record(&mut self, transition: CircuitTransition) {
        if self.transitions.len() >= TRANSITIONS_MAX {
            self.transitions.pop_front();
        }
        self.transitions.push_back(transition);
    }

    pub fn record_all(&mut self, made: impl IntoIterator<Item = CircuitTransition>) {
        made.into_iter().for_each(|transition| self.record(transition));
    }

    pub fn take_transitions(&mut self) -> Vec<CircuitTransition> {
        self.transitions.drain(..).collect()
    }

    /// Forgets endpoints that are no longer called, and what has run out.
    pub fn prune(&mut self, snapshot: &Snapshot, now: DateTime<Utc>) {
        self.watched.retain(|_, watched| (now - watched.last).to_std().is_ok_and(|idle| idle < IDLE));
        for (endpoint, _) in snapshot.all() {
            snapshot.change(endpoint, |k| {
                k.wait_until = k.wait_until.filter(|until| *until > now);
                if matches!(k.circuit, Circuit::Ramp { .. }) && k.changed.elapsed() > IDLE {
                    k.circuit = Circuit::Closed;
                }
            });
        }
    }
}

/// Stretches an open time: uniform in 0..1.
#[expect(clippy::disallowed_methods, reason = "an adapter knows the core alone; this is jitter")]
fn roll() -> f64 {
    rand::random()
}
