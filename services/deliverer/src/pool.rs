//! Step 8 of an event's way, the pod's queues: who is next, what is handed back, which messages are through. The
//! state of [`relay_core::lanes`] and [`crate::bundles`] together, without I/O: what is to be done comes out as
//! [`Effects`], which `drive` carries out.
//!
//! Invariant: a job that comes in leaves as exactly one start or report, so it is settled exactly once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use relay_core::delivery::{DeliveryResult, HandBack, Outcome};
use relay_core::ids::EndpointId;
use relay_core::lanes::{Completion, LaneLimits, Lanes};
use relay_core::mutation::{self, Safety};
use tokio::time::Instant;

use crate::bundles::Bundles;
use crate::gate::Gate;
use crate::room::Room;
use crate::work::{Arrived, Key, Report, Settled, Work};

/// That an endpoint's queue is full is said again after this time; the word counts for one second.
const FULL_AGAIN: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Debug)]
pub struct Effects<A> {
    /// To be sent; the flag: only as the circuit's probe.
    pub starts: Vec<(Work, bool)>,
    /// To be recorded.
    pub reports: Vec<Report>,
    /// Messages to be acked.
    pub acks: Vec<A>,
    /// Endpoints to be announced as full.
    pub full: Vec<EndpointId>,
    /// An endpoint has room again, or jobs were handed back that another pod can take.
    pub freed: bool,
}

impl<A> Default for Effects<A> {
    fn default() -> Self {
        Self { starts: Vec::new(), reports: Vec::new(), acks: Vec::new(), full: Vec::new(), freed: false }
    }
}

/// The queues of a pod.
pub struct Pool<A> {
    lanes: Lanes<Work>,
    bundles: Bundles<A>,
    room: Arc<Room>,
    /// Endpoints that had to hand back, and when that was announced.
    full: HashMap<EndpointId, Instant>,
    started: Instant,
    stopping: bool,
}

impl<A: Clone> Pool<A> {
    /// Empty queues.
    pub fn new(limits: LaneLimits, room: Arc<Room>, now: Instant) -> Self {
        Self {
            lanes: Lanes::new(limits),
            bundles: Bundles::default(),
            room,
            full: HashMap::new(),
            started: now,
            stopping: false,
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// A message has come.
    pub fn arrived(&mut self, message: Arrived<A>, now: Instant, out: &mut Effects<A>) {
        let Arrived { ack, lane, delivered, marked, kibibytes, jobs } = message;
        if mutation::is_broken(Safety::JobsAckedLate) {
            out.acks.push(ack.clone());
        }
        let bundle = self.bundles.open(ack, lane, kibibytes, jobs.len(), now);
        let now_ms = self.millis(now);
        for job in jobs {
            let work = Work { job, delivered, marked };
            if !self.bundles.admit(work.key(), work.job.claim, bundle) {
                metrics::counter!("relay_deliverer_copies_total").increment(1);
                continue;
            }
            if self.stopping {
                hand_back(&work, HandBack::Shutdown, out);
                continue;
            }
            let (tenant, endpoint) = (work.job.tenant.clone(), work.job.endpoint);
            if let Err(work) = self.lanes.push(&tenant, endpoint, work, now_ms) {
                hand_back(&work, HandBack::Full, out);
                self.mark_full(endpoint, now, out);
            }
        }
    }

    fn mark_full(&mut self, endpoint: EndpointId, now: Instant, out: &mut Effects<A>) {
        match self.full.entry(endpoint) {
            std::collections::hash_map::Entry::Occupied(mut said) => {
                if now.saturating_duration_since(*said.get()) >= FULL_AGAIN {
                    said.insert(now);
                    out.full.push(endpoint);
                }
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(now);
                out.full.push(endpoint);
            }
        }
    }

    /// Takes from the queues what may be sent now, by the word of `gate`, which hears how many requests the endpoint
    /// has in flight with this one.
    pub fn pump(&mut self, now: Instant, mut gate: impl FnMut(&Work, usize) -> Gate, out: &mut Effects<A>) {
        let now_ms = self.millis(now);
        while let Some(work) = self.lanes.next(now_ms) {
            let endpoint = work.job.endpoint;
            match gate(&work, self.lanes.in_flight_to(endpoint)) {
                Gate::Send => out.starts.push((work, false)),
                Gate::Probe => out.starts.push((work, true)),
                Gate::Dead(reason) => {
                    self.lanes.done(endpoint, Completion::NotSent, now_ms);
                    out.reports.push(report(&work, Outcome::Dead { reason, deactivate: false }));
                }
                Gate::HandBack(why) => {
                    self.lanes.done(endpoint, Completion::NotSent, now_ms);
                    hand_back(&work, why, out);
                    // What holds this one holds the rest of its queue.
                    for work in self.lanes.drain_endpoint(endpoint) {
                        hand_back(&work, why, out);
                    }
                }
            }
        }
    }

    /// An attempt is over.
    pub fn over(&mut self, endpoint: EndpointId, how: Completion, now: Instant, out: &mut Effects<A>) {
        self.lanes.done(endpoint, how, self.millis(now));
        if !self.full.is_empty() && self.full.contains_key(&endpoint) && self.lanes.queued_for(endpoint) == 0 {
            self.full.remove(&endpoint);
            out.freed = true;
        }
    }

    /// Jobs are settled: gives their room back, and acks the messages that are through.
    pub fn settled(&mut self, settled: impl IntoIterator<Item = (Key, Settled)>, out: &mut Effects<A>) {
        let mut closed = Vec::new();
        for (key, how) in settled {
            self.bundles.settle(key, how, |lane| self.room.give_jobs(lane, 1), &mut closed);
        }
        for message in closed {
            self.room.give_bytes(message.kibibytes);
            out.acks.extend(message.ack);
        }
    }

    /// No new sends: everything queued is handed back, and so is what still comes in.
    pub fn stop(&mut self, out: &mut Effects<A>) {
        self.stopping = true;
        for work in self.lanes.drain() {
            hand_back(&work, HandBack::Shutdown, out);
        }
    }

    /// Messages that JetStream must be told about now.
    pub fn take_unannounced(&mut self, now: Instant) -> Vec<A> {
        self.bundles.take_unannounced(now)
    }

    /// Nothing is being worked on.
    pub fn is_idle(&self) -> bool {
        self.bundles.working() == 0
    }

    /// Sets the gauges.
    pub fn measure(&self) {
        metrics::gauge!("relay_deliverer_queued").set(self.lanes.queued() as f64);
        metrics::gauge!("relay_deliverer_in_flight").set(self.lanes.in_flight() as f64);
        metrics::gauge!("relay_deliverer_working").set(self.bundles.working() as f64);
    }
}

fn hand_back<A>(work: &Work, reason: HandBack, out: &mut Effects<A>) {
    out.freed |= reason == HandBack::Shutdown;
    out.reports.push(handed_back(work, reason));
}

/// A job whose endpoint's secrets this pod can't open is due again after this time, perhaps at a pod that can.
const WITHHELD_DELAY: Duration = Duration::from_secs(15);

/// The report of a job that goes back unsent: due at once, since only the scheduler knows when what held it ends. A key
/// that this pod lacks is unknown to the scheduler, which would send the job out again and again.
pub fn handed_back(work: &Work, reason: HandBack) -> Report {
    let name = match reason {
        HandBack::Full => "full",
        HandBack::CircuitOpen => "circuit_open",
        HandBack::Paused => "paused",
        HandBack::Shutdown => "shutdown",
        HandBack::Waiting => "waiting",
        HandBack::Withheld => "secrets_withheld",
    };
    let delay = if reason == HandBack::Withheld { WITHHELD_DELAY } else { Duration::ZERO };
    metrics::counter!("relay_deliverer_handed_back_total", "reason" => name).increment(1);
    report(work, Outcome::HandedBack { delay, reason })
}

/// The report of a job that ends without an attempt.
pub fn report(work: &Work, outcome: Outcome) -> Report {
    let job = &work.job;
    Report {
        result: DeliveryResult {
            event: job.event,
            endpoint: job.endpoint,
            tenant: job.tenant.clone(),
            claim: job.claim,
            attempts: job.attempts,
            outcome,
            evidence: None,
        },
        event_type: job.event_type.clone(),
    }
}

#[cfg(test)]
mod tests;
