//! The handle that services hold: asks and tells, without waiting for Redis (but for a probe's lease).

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use relay_core::breaker::{Circuit, CircuitEvent, CircuitRule, Observation};
use relay_core::ids::EndpointId;
use relay_core::rate::{Lease, RateLimit};
use tokio::sync::{Notify, watch};

use crate::error::CircuitError;
use crate::local::{CircuitTransition, Local, Urgency};
use crate::shared::{Grant, Shared, Word};
use crate::snapshot::{CircuitView, Decision, Snapshot};

const PREFIX: &str = "relay:circuit";

/// The circuits of all endpoints. Cheap to clone.
#[derive(Clone)]
pub struct Circuits(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub snapshot: Snapshot,
    pub local: Mutex<Local>,
    pub shared: Shared,
    pub pod: String,
    /// The last command to Redis was answered.
    pub is_up: AtomicBool,
    pub changes: watch::Sender<u64>,
    pub flush_soon: Notify,
    pub flush_now: Notify,
    pub poll_now: Notify,
    /// How far the callers' clock is ahead of this machine's, in milliseconds.
    clock_ahead: AtomicI64,
}

impl Circuits {
    /// Makes the handle; Redis is reached later, and need not be there.
    ///
    /// # Errors
    /// The URL is not valid.
    pub fn connect(url: &str, pod: String) -> Result<Self, CircuitError> {
        Self::connect_with_prefix(url, pod, PREFIX)
    }

    /// The same with another prefix of all keys, for several installations on one Redis.
    ///
    /// # Errors
    /// The URL is not valid.
    pub fn connect_with_prefix(url: &str, pod: String, prefix: &str) -> Result<Self, CircuitError> {
        Ok(Self(Arc::new(Inner {
            snapshot: Snapshot::new(),
            local: Mutex::default(),
            shared: Shared::new(url, prefix)?,
            pod,
            is_up: AtomicBool::new(true),
            changes: watch::Sender::new(0),
            flush_soon: Notify::new(),
            flush_now: Notify::new(),
            poll_now: Notify::new(),
            clock_ahead: AtomicI64::new(0),
        })))
    }

    /// Asks Redis for a sign of life.
    ///
    /// # Errors
    /// No answer in a second. Deliveries go on by this pod's own counts.
    pub async fn ping(&self) -> Result<(), CircuitError> {
        self.0.shared.ping().await
    }

    /// Whether the endpoint may be sent to. `now` is the callers' clock. The rule isn't needed to decide; it is part of
    /// the question so that what is asked and what is told look alike.
    pub fn decide(&self, endpoint: EndpointId, _rule: &CircuitRule, now: DateTime<Utc>) -> Decision {
        self.0.snapshot.decide(endpoint, now)
    }

    /// How many requests may be in flight from this pod to an endpoint that has just recovered: 1, 2, 4 … with
    /// each success; `None` when there is no such limit.
    pub fn ramp(&self, endpoint: EndpointId) -> Option<u32> {
        self.0.snapshot.ramp(endpoint)
    }

    /// When the circuit of an endpoint closed whose ramp isn't over, as far as this pod knows: one that sends nothing
    /// itself doesn't hear of its end.
    pub fn recovered_at(&self, endpoint: EndpointId) -> Option<DateTime<Utc>> {
        self.0.snapshot.recovered_at(endpoint)
    }

    /// Asks to be the one that probes, after [`Decision::Probe`]. `lease`: the probe's time-out plus a margin; when
    /// it has run out another may probe. While Redis is away this pod grants it to itself, once.
    pub async fn try_probe(&self, endpoint: EndpointId, lease: Duration, now: DateTime<Utc>) -> bool {
        self.0.note_clock(now);
        if !self.0.is_up.load(Ordering::Relaxed) {
            return self.0.probe_locally(endpoint, lease, now);
        }
        match self.0.shared.probe(endpoint, lease).await {
            Ok((Grant::Refused, Word::Closed)) => {
                // Closed by another pod, or forgotten by Redis: only a look at everything can tell.
                self.0.poll_now.notify_one();
                false
            }
            Ok((grant, word)) => {
                self.0.apply(endpoint, word);
                if grant == Grant::First {
                    let begun = Circuit::Open { until: now };
                    let asked = CircuitEvent::ProbeAsked { lease };
                    let made = CircuitTransition::of_step(endpoint, begun, asked, now);
                    self.0.local().record_all(made);
                }
                grant != Grant::Refused
            }
            Err(error) => {
                self.0.set_down(&error);
                self.0.probe_locally(endpoint, lease, now)
            }
        }
    }

    /// Leases up to `wanted` tokens of an endpoint's rate limit, which all pods share; with them, how many pods asked
    /// lately. `None` while Redis is away: the pod keeps to its own part.
    pub async fn lease_tokens(&self, endpoint: EndpointId, limit: &RateLimit, wanted: u32) -> Option<(Lease, u32)> {
        if !self.0.is_up.load(Ordering::Relaxed) {
            return None;
        }
        let leased = self.0.shared.lease(endpoint, limit, wanted, &self.0.pod).await;
        leased.map_err(|error| self.0.set_down(&error)).ok()
    }

    /// Says what a call showed. Opens and closes at once in this pod; Redis hears of it within some 20 ms.
    pub fn observe(
        &self,
        endpoint: EndpointId,
        rule: &CircuitRule,
        what: Observation,
        was_probe: bool,
        now: DateTime<Utc>,
    ) {
        self.0.note_clock(now);
        let urgency = self.0.local().observe(&self.0.snapshot, endpoint, rule, what, was_probe, now);
        match urgency {
            Urgency::None => {}
            Urgency::Soon => self.0.flush_soon.notify_one(),
            Urgency::Now => {
                self.0.fire();
                self.0.flush_now.notify_one();
            }
        }
    }

    /// The endpoint asked not to be called until then: no pod does.
    pub fn wait_until(&self, endpoint: EndpointId, until: DateTime<Utc>) {
        let mut local = self.0.local();
        self.0.snapshot.change(endpoint, |k| k.wait_until = k.wait_until.max(Some(until)));
        let report = local.report(endpoint);
        report.wait_until = report.wait_until.max(Some(until));
        drop(local);
        self.0.flush_now.notify_one();
    }

    /// Somebody replays one delivery: it is the circuit's next probe, whatever the open time. Every pod hears of it.
    pub async fn half_open(&self, endpoint: EndpointId) {
        self.0.half_open_locally(endpoint);
        if let Err(error) = self.0.shared.half_open(endpoint).await {
            self.0.set_down(&error);
        }
    }

    /// A circuit as it is shown.
    pub fn state(&self, endpoint: EndpointId) -> CircuitView {
        self.0.snapshot.view(endpoint, self.0.now())
    }

    /// Endpoints whose circuit isn't closed.
    pub fn open_endpoints(&self) -> Vec<EndpointId> {
        self.0.snapshot.all().into_iter().filter(|(_, k)| k.is_open()).map(|(endpoint, _)| endpoint).collect()
    }

    /// Changes whenever a circuit opens, closes or waits for a probe by request, in whatever pod.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The changes that this pod's calls made since the last time: to be put on record.
    pub fn take_transitions(&self) -> Vec<CircuitTransition> {
        self.0.local().take_transitions()
    }
}

impl Inner {
    pub fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().expect("no code panics while it holds this lock")
    }

    /// The callers' clock, as far as known.
    pub fn now(&self) -> DateTime<Utc> {
        system_now() + TimeDelta::milliseconds(self.clock_ahead.load(Ordering::Relaxed))
    }

    fn note_clock(&self, now: DateTime<Utc>) {
        self.clock_ahead.store((now - system_now()).num_milliseconds(), Ordering::Relaxed);
    }

    pub fn fire(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub fn set_down(&self, error: &CircuitError) {
        if self.is_up.swap(false, Ordering::Relaxed) {
            tracing::warn!(pod = self.pod, %error, "Redis is away: circuits go by this pod's own counts");
        }
    }

    pub fn set_up(&self) {
        if !self.is_up.swap(true, Ordering::Relaxed) {
            tracing::info!(pod = self.pod, "Redis is back: circuits are shared again");
        }
    }

    /// Takes over what Redis says of a circuit.
    pub fn apply(&self, endpoint: EndpointId, word: Word) {
        let mut local = self.local();
        let now = self.now();
        let was_open = self.snapshot.get(endpoint).is_some_and(|k| k.is_open());
        self.snapshot.change(endpoint, |k| {
            k.circuit = match word {
                Word::Open(left) => Circuit::Open { until: now + left },
                Word::Probing(left) => Circuit::Probing { lease_until: now + left },
                Word::Closed if was_open => Circuit::Ramp { allowed: 1, since: now },
                Word::Closed => k.circuit,
            };
        });
        if was_open != (word != Word::Closed) {
            local.forget_counts(endpoint);
            drop(local);
            self.fire();
        }
    }

    /// Ends the open time, a probe's lease and a wait in this pod.
    pub fn half_open_locally(&self, endpoint: EndpointId) {
        let local = self.local();
        let now = self.now();
        self.snapshot.change(endpoint, |k| {
            k.wait_until = None;
            if k.is_open() {
                k.circuit = Circuit::Open { until: now };
            }
        });
        drop(local);
        self.fire();
    }

    fn probe_locally(&self, endpoint: EndpointId, lease: Duration, now: DateTime<Utc>) -> bool {
        let mut local = self.local();
        let asked = CircuitEvent::ProbeAsked { lease };
        let may_probe = self.snapshot.decide(endpoint, now) == Decision::Probe;
        if may_probe {
            let rule = CircuitRule::default(); // A probe's grant doesn't look at it.
            let made = self.snapshot.go(endpoint, asked, &rule, now, 0.0);
            local.record_all(made);
        }
        may_probe
    }
}

/// This machine's clock, which the callers' clock is measured against.
#[expect(
    clippy::disallowed_methods,
    reason = "times that matter come from callers; between two calls this one goes on"
)]
fn system_now() -> DateTime<Utc> {
    DateTime::from(std::time::SystemTime::now())
}
