//! What this pod knows of the endpoints that are in trouble: read on every decision without a lock, replaced in
//! small parts on every change. An endpoint that isn't in it may be sent to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use relay_core::breaker::{Circuit, CircuitEvent, CircuitRule, CircuitState, Transition, step};
use relay_core::ids::EndpointId;

use crate::local::CircuitTransition;

/// Parts: a change copies one of them, so thousands of changes at once stay cheap.
const PARTS: usize = 64;

/// Whether an endpoint may be sent to now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Yes.
    Allow,
    /// The open time is over: yes, for whom [`crate::Circuits::try_probe`] grants it.
    Probe,
    /// No, until then at the earliest.
    Refuse {
        /// The end of the open time, of a running probe's lease, or of a wait that the endpoint asked for.
        until: DateTime<Utc>,
    },
}

/// A circuit as the interface shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CircuitView {
    /// Its state.
    pub state: CircuitState,
    /// While it isn't closed: when the next probe may go. While it is closed: the end of a wait that the
    /// endpoint asked for.
    pub until: Option<DateTime<Utc>>,
}

/// What is known of one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Known {
    pub circuit: Circuit,
    /// The endpoint asked not to be called until then.
    pub wait_until: Option<DateTime<Utc>>,
    /// When this pod heard of it, by its monotonic clock: what Redis said before that is older.
    pub changed: Instant,
}

impl Known {
    pub fn nothing() -> Self {
        Self { circuit: Circuit::Closed, wait_until: None, changed: Instant::now() }
    }

    /// Whether it is open or probed: ordinary requests are held back.
    pub fn is_open(&self) -> bool {
        self.circuit.blocked_until().is_some()
    }

    fn decide(&self, now: DateTime<Utc>) -> Decision {
        let blocked = self.circuit.blocked_until();
        match blocked.max(self.wait_until).filter(|until| *until > now) {
            Some(until) => Decision::Refuse { until },
            None if blocked.is_some() => Decision::Probe,
            None => Decision::Allow,
        }
    }

    fn view(&self, now: DateTime<Utc>) -> CircuitView {
        let waits = self.wait_until.filter(|until| *until > now);
        CircuitView { state: self.circuit.state(), until: self.circuit.blocked_until().or(waits) }
    }
}

type Part = ArcSwap<HashMap<EndpointId, Known>>;

/// All that is known.
pub(crate) struct Snapshot(Vec<Part>);

impl Snapshot {
    pub fn new() -> Self {
        Self((0..PARTS).map(|_| Part::default()).collect())
    }

    fn part(&self, endpoint: EndpointId) -> &Part {
        // The last byte of a version 7 id is random.
        &self.0[usize::from(endpoint.0.as_bytes()[15]) % PARTS]
    }

    pub fn get(&self, endpoint: EndpointId) -> Option<Known> {
        self.part(endpoint).load().get(&endpoint).copied()
    }

    pub fn decide(&self, endpoint: EndpointId, now: DateTime<Utc>) -> Decision {
        self.part(endpoint).load().get(&endpoint).map_or(Decision::Allow, |known| known.decide(now))
    }

    pub fn view(&self, endpoint: EndpointId, now: DateTime<Utc>) -> CircuitView {
        self.get(endpoint).unwrap_or_else(Known::nothing).view(now)
    }

    /// How many requests may be in flight to an endpoint that just recovered.
    pub fn ramp(&self, endpoint: EndpointId) -> Option<u32> {
        match self.get(endpoint)?.circuit {
            Circuit::Ramp { allowed, .. } => Some(allowed),
            _ => None,
        }
    }

    /// Since when an endpoint's circuit is closed that just recovered.
    pub fn recovered_at(&self, endpoint: EndpointId) -> Option<DateTime<Utc>> {
        match self.get(endpoint)?.circuit {
            Circuit::Ramp { since, .. } => Some(since),
            _ => None,
        }
    }

    pub fn all(&self) -> Vec<(EndpointId, Known)> {
        self.0.iter().flat_map(|part| part.load().iter().map(|(e, k)| (*e, *k)).collect::<Vec<_>>()).collect()
    }

    /// Takes a step; the change of state that it made.
    pub fn go(
        &self,
        endpoint: EndpointId,
        event: CircuitEvent,
        rule: &CircuitRule,
        now: DateTime<Utc>,
        roll: f64,
    ) -> Option<CircuitTransition> {
        let mut made = None;
        self.change(endpoint, |k| (k.circuit, made) = step(k.circuit, event, rule, now, roll));
        made.map(|Transition { from, to, why }| CircuitTransition { endpoint, at: now, from, to, why })
    }

    /// Changes what is known of an endpoint. One writer at a time: callers hold the lock of the local counts.
    pub fn change(&self, endpoint: EndpointId, change: impl FnOnce(&mut Known)) {
        let part = self.part(endpoint);
        let before = part.load_full();
        let old = before.get(&endpoint).copied();
        let mut known = old.unwrap_or_else(Known::nothing);
        change(&mut known);
        let is_nothing = known.circuit == Circuit::Closed && known.wait_until.is_none();
        if Some(known) == old || (old.is_none() && is_nothing) {
            return;
        }
        let mut after = HashMap::clone(&before);
        if is_nothing {
            after.remove(&endpoint);
        } else {
            after.insert(endpoint, Known { changed: Instant::now(), ..known });
        }
        part.store(Arc::new(after));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use uuid::Uuid;

    #[test]
    fn the_circuit_and_the_wait_decide_together() {
        let now = DateTime::from_timestamp_nanos(1_700_000_000_000_000_000);
        let at = |seconds| now + TimeDelta::seconds(seconds);
        let (before, after, later) = (at(-1), at(1), at(2));
        let decide = |circuit, wait_until| Known { circuit, wait_until, changed: Instant::now() }.decide(now);
        let refuse = |until| Decision::Refuse { until };
        assert_eq!(decide(Circuit::Closed, None), Decision::Allow);
        assert_eq!(decide(Circuit::Ramp { allowed: 1, since: before }, Some(before)), Decision::Allow);
        assert_eq!(decide(Circuit::Closed, Some(after)), refuse(after));
        assert_eq!(decide(Circuit::Open { until: after }, None), refuse(after));
        assert_eq!(decide(Circuit::Open { until: after }, Some(later)), refuse(later));
        assert_eq!(decide(Circuit::Open { until: before }, None), Decision::Probe);
        assert_eq!(decide(Circuit::Open { until: before }, Some(later)), refuse(later));
        assert_eq!(decide(Circuit::Probing { lease_until: after }, None), refuse(after));
        assert_eq!(decide(Circuit::Probing { lease_until: before }, None), Decision::Probe);
    }

    #[test]
    fn what_needs_no_memory_is_forgotten() {
        let (snapshot, endpoint) = (Snapshot::new(), EndpointId(Uuid::from_u128(7)));
        let now = DateTime::from_timestamp_nanos(1_700_000_000_000_000_000);
        snapshot.change(endpoint, |k| k.circuit = Circuit::Open { until: now });
        assert_eq!(snapshot.view(endpoint, now).state, CircuitState::Open);
        assert_eq!(snapshot.all().len(), 1);
        snapshot.change(endpoint, |k| k.circuit = Circuit::Closed);
        assert_eq!(snapshot.all().len(), 0);
        assert_eq!(snapshot.decide(endpoint, now), Decision::Allow);
    }
}
