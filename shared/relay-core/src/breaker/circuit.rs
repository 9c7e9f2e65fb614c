//! The states of one circuit and the steps between them. The local breaker runs this function; the Redis scripts
//! do the same for all pods at once.
//!
//! Invariants: an open circuit lets nothing through before its time; then one probe at a time, leased, so that a
//! pod that dies with it does not keep the circuit shut; only a probe's success closes it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{CircuitRule, CircuitState};

/// Requests in flight from which the ramp after a recovery ends.
pub const RAMP_END: u32 = 64;
/// What a probe's lease adds to the endpoint's time-out.
pub const PROBE_MARGIN: Duration = Duration::from_secs(10);

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Circuit {
    /// Everything goes.
    #[default]
    Closed,
    /// Nothing goes; from `until` on a probe may.
    Open {
        /// When the recovery time is over.
        until: DateTime<Utc>,
    },
    /// One probe is out.
    Probing {
        /// When it counts as lost and another may go.
        lease_until: DateTime<Utc>,
    },
    /// Closed again, with few requests in flight at first: 1, 2, 4 …, twice as many with each success.
    Ramp {
        /// Requests in flight at most.
        allowed: u32,
        /// Since the probe succeeded.
        since: DateTime<Utc>,
    },
}

/// What happens to a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitEvent {
    /// By the rule it opens: [`super::Tracker::observe`] said so, in this pod or in all together.
    Trip,
    /// A pod asks to send the probe, and would hold it for this long (the time-out and [`PROBE_MARGIN`]).
    ProbeAsked {
        /// The lease.
        lease: Duration,
    },
    /// The probe was answered.
    ProbeSucceeded,
    /// The probe failed.
    ProbeFailed,
    /// The probe was not sent after all.
    ProbeNotSent,
    /// Another request succeeded.
    Succeeded,
    /// Another request failed.
    Failed,
    /// An operator wants it probed now (a single replay).
    HalfOpen,
}

/// A change that is put on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// From which state.
    pub from: CircuitState,
    /// To which state.
    pub to: CircuitState,
    /// Why, in words.
    pub why: &'static str,
}

impl Circuit {
    /// As it is shown.
    pub fn state(&self) -> CircuitState {
        match self {
            Self::Closed | Self::Ramp { .. } => CircuitState::Closed,
            Self::Open { .. } => CircuitState::Open,
            Self::Probing { .. } => CircuitState::HalfOpen,
        }
    }

    /// Whether an ordinary request may go while `in_flight` are out.
    pub fn allows(&self, in_flight: u32) -> bool {
        match self {
            Self::Closed => true,
            Self::Ramp { allowed, .. } => in_flight < *allowed,
            Self::Open { .. } | Self::Probing { .. } => false,
        }
    }

    /// Whether a probe would be granted.
    pub fn may_probe(&self, now: DateTime<Utc>) -> bool {
        match self {
            Self::Open { until } => *until <= now,
            Self::Probing { lease_until } => *lease_until <= now,
            Self::Closed | Self::Ramp { .. } => false,
        }
    }

    /// When something may go again, where nothing may go now.
    pub fn blocked_until(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Open { until } => Some(*until),
            Self::Probing { lease_until } => Some(*lease_until),
            Self::Closed | Self::Ramp { .. } => None,
        }
    }
}

/// The next state. `roll` is uniform in 0..1 and stretches the open time.
pub fn step(
    circuit: Circuit,
    event: CircuitEvent,
    rule: &CircuitRule,
    now: DateTime<Utc>,
    roll: f64,
) -> (Circuit, Option<Transition>) {
    let open = || Circuit::Open { until: after(now, rule.open_time(roll)) };
    let change = |to: Circuit, why| (to, Some(Transition { from: circuit.state(), to: to.state(), why }));
    match (circuit, event) {
        (Circuit::Closed | Circuit::Ramp { .. }, CircuitEvent::Trip) => change(open(), "too many failures"),
        (Circuit::Open { .. }, CircuitEvent::ProbeAsked { lease }) if circuit.may_probe(now) => {
            change(Circuit::Probing { lease_until: after(now, lease) }, "the recovery time is over")
        }
        (Circuit::Probing { .. }, CircuitEvent::ProbeAsked { lease }) if circuit.may_probe(now) => {
            (Circuit::Probing { lease_until: after(now, lease) }, None)
        }
        (Circuit::Probing { .. }, CircuitEvent::ProbeSucceeded) => {
            change(Circuit::Ramp { allowed: 1, since: now }, "the probe succeeded")
        }
        (Circuit::Probing { .. }, CircuitEvent::ProbeFailed) => change(open(), "the probe failed"),
        (Circuit::Probing { .. }, CircuitEvent::ProbeNotSent) => (Circuit::Probing { lease_until: now }, None),
        (Circuit::Ramp { allowed, since }, CircuitEvent::Succeeded | CircuitEvent::ProbeSucceeded) => {
            let allowed = allowed.saturating_mul(2);
            (if allowed < RAMP_END { Circuit::Ramp { allowed, since } } else { Circuit::Closed }, None)
        }
        (Circuit::Ramp { since, .. }, CircuitEvent::Failed | CircuitEvent::ProbeFailed) => {
            (Circuit::Ramp { allowed: 1, since }, None)
        }
        (Circuit::Open { until }, CircuitEvent::HalfOpen) => (Circuit::Open { until: until.min(now) }, None),
        // Requests sent before it opened, a second pod that tripped: the state has its reasons already.
        (state, _) => (state, None),
    }
}

fn after(now: DateTime<Utc>, time: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(time).ok().and_then(|time| now.checked_add_signed(time)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_secs(40);

    fn at(seconds: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(1_700_000_000 + seconds, 0).unwrap()
    }

    fn go(circuit: &mut Circuit, event: CircuitEvent, seconds: i64) -> Option<(CircuitState, CircuitState)> {
        let (next, transition) = step(*circuit, event, &CircuitRule::default(), at(seconds), 0.0);
        *circuit = next;
        transition.map(|t| (t.from, t.to))
    }

    #[test]
    fn it_opens_probes_and_ramps_up() {
        use CircuitState::{Closed, HalfOpen, Open};
        let mut c = Circuit::Closed;
        assert_eq!(go(&mut c, CircuitEvent::Trip, 0), Some((Closed, Open)));
        assert_eq!(go(&mut c, CircuitEvent::Trip, 1), None, "a second pod's report changes nothing");
        assert!(!c.allows(0) && !c.may_probe(at(299)) && c.may_probe(at(300)));
        assert_eq!(go(&mut c, CircuitEvent::ProbeAsked { lease: LEASE }, 299), None);
        assert_eq!(c.state(), Open);
        assert_eq!(go(&mut c, CircuitEvent::ProbeAsked { lease: LEASE }, 300), Some((Open, HalfOpen)));
        assert!(!c.may_probe(at(339)), "one probe at a time");
        assert_eq!(go(&mut c, CircuitEvent::Succeeded, 301), None, "an old request's success closes nothing");
        assert_eq!(go(&mut c, CircuitEvent::ProbeSucceeded, 302), Some((HalfOpen, Closed)));
        let mut allowed = Vec::new();
        while let Circuit::Ramp { allowed: n, .. } = c {
            assert!(c.allows(n - 1) && !c.allows(n));
            allowed.push(n);
            go(&mut c, CircuitEvent::Succeeded, 303);
        }
        assert_eq!((allowed, c), (vec![1, 2, 4, 8, 16, 32], Circuit::Closed));
    }

    #[test]
    fn a_failed_probe_opens_it_for_the_whole_time_and_a_lost_one_is_replaced() {
        use CircuitState::{HalfOpen, Open};
        let mut c = Circuit::Open { until: at(0) };
        go(&mut c, CircuitEvent::ProbeAsked { lease: LEASE }, 0);
        assert!(c.may_probe(at(40)));
        assert_eq!(go(&mut c, CircuitEvent::ProbeAsked { lease: LEASE }, 40), None);
        assert_eq!(c, Circuit::Probing { lease_until: at(80) });
        assert_eq!(go(&mut c, CircuitEvent::ProbeFailed, 50), Some((HalfOpen, Open)));
        assert_eq!(c, Circuit::Open { until: at(350) });
        go(&mut c, CircuitEvent::HalfOpen, 51);
        go(&mut c, CircuitEvent::ProbeAsked { lease: LEASE }, 51);
        go(&mut c, CircuitEvent::ProbeNotSent, 52);
        assert!(c.may_probe(at(52)), "a probe that wasn't sent frees its place");
    }

    fn event() -> impl Strategy<Value = CircuitEvent> {
        prop::sample::select(vec![
            CircuitEvent::Trip,
            CircuitEvent::ProbeAsked { lease: LEASE },
            CircuitEvent::ProbeSucceeded,
            CircuitEvent::ProbeFailed,
            CircuitEvent::ProbeNotSent,
            CircuitEvent::Succeeded,
            CircuitEvent::Failed,
            CircuitEvent::HalfOpen,
        ])
    }

    proptest! {
        #[test]
        fn any_history_keeps_the_invariants(history in prop::collection::vec((event(), 0i64..200), 0..200), roll in 0.0..1.0f64) {
            let (mut c, mut now) = (Circuit::Closed, 0);
            for (event, wait) in history {
                now += wait;
                let before = c;
                let (next, transition) = step(c, event, &CircuitRule::default(), at(now), roll);
                c = next;
                prop_assert_eq!(transition.is_some(), before.state() != c.state(), "every change of state is on record");
                if before.state() == CircuitState::Open {
                    prop_assert!(c.state() != CircuitState::Closed, "only a probe closes it");
                }
                if c.state() == CircuitState::HalfOpen && before.state() == CircuitState::Open {
                    prop_assert!(before.may_probe(at(now)));
                }
                if let Circuit::Open { until } = c {
                    prop_assert!(until <= at(now + 360));
                }
            }
        }
    }
}
