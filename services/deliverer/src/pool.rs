//! Step 8 of an event's way, the pod's queues: who is next, what is handed back, which messages are through. The
//! state of [`relay_core::lanes`], [`relay_core::rate`] and [`crate::bundles`] together, without I/O: what is to be done comes out as
//! [`Effects`], which `drive` carries out.
//!
//! Invariant: a job that comes in leaves as exactly one start or report, so it is settled exactly once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use relay_core::delivery::{DeliveryResult, HandBack, Outcome};
use relay_core::ids::EndpointId;
use relay_core::lanes::{Completion, Hold, LaneLimits, Lanes, SLOW_MS};
use relay_core::mutation::{self, Safety};
use relay_core::rate::{Lease, Pace, Pacer, RateLimit};
use relay_core::subject::Lane;
use tokio::time::Instant;

use crate::bundles::Bundles;
use crate::gate::Gate;
use crate::room::Room;
use crate::work::{Arrived, Key, Report, Settled, Work};

/// That an endpoint's queue is full is said again after this time; the word counts for one second.
const FULL_AGAIN: Duration = Duration::from_millis(500);
/// That an endpoint is slow is said again after this time.
const SLOW_AGAIN: Duration = Duration::from_secs(5);
/// So long that word counts.
const SLOW_FOR: Duration = Duration::from_secs(60);

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
    /// Endpoints to be announced as slow.
    pub slow: Vec<EndpointId>,
    /// Tokens to be leased; the answers go to [`Pool::leased`].
    pub asks: Vec<Ask>,
    /// Endpoints that were full and have room again, to be announced.
    pub roomy: Vec<EndpointId>,
    /// Jobs were handed back that another pod can take.
    pub freed: bool,
}

impl<A> Default for Effects<A> {
    fn default() -> Self {
        Self {
            starts: Vec::new(),
            reports: Vec::new(),
            acks: Vec::new(),
            full: Vec::new(),
            slow: Vec::new(),
            asks: Vec::new(),
            roomy: Vec::new(),
            freed: false,
        }
    }
}

/// Tokens of a rate limit are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// Whose.
    pub endpoint: EndpointId,
    /// Its limit.
    pub limit: RateLimit,
    /// How many.
    pub wanted: u32,
}

/// The answer to [`Ask`]: tokens, and how many pods share the limit; `None` where Redis is away.
pub type Leased = (Ask, Option<(Lease, u32)>);

/// The queues of a pod.
pub struct Pool<A> {
    lanes: Lanes<Work>,
    bundles: Bundles<A>,
    pacer: Pacer,
    room: Arc<Room>,
    /// Endpoints that had to hand back, and when that was announced.
    full: HashMap<EndpointId, Instant>,
    /// Endpoints that are slow, and when that was announced.
    slow: HashMap<EndpointId, Instant>,
    started: Instant,
    queue_seconds: f64,
    stopping: bool,
}

impl<A: Clone> Pool<A> {
    /// Empty queues.
    pub fn new(limits: LaneLimits, room: Arc<Room>, now: Instant) -> Self {
        Self {
            queue_seconds: limits.queue_seconds,
            lanes: Lanes::new(limits),
            bundles: Bundles::default(),
            pacer: Pacer::default(),
            room,
            full: HashMap::new(),
            slow: HashMap::new(),
            started: now,
            stopping: false,
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn micros(&self, now: Instant) -> i64 {
        i64::try_from(now.saturating_duration_since(self.started).as_micros()).unwrap_or(i64::MAX)
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
            let queued = match lane {
                Lane::Replay => self.lanes.push_replay(&tenant, endpoint, work, now_ms),
                Lane::Fresh | Lane::Retry | Lane::Slow => self.lanes.push(&tenant, endpoint, work, now_ms),
            };
            if let Err(work) = queued {
                hand_back(&work, HandBack::Full, out);
                self.mark_full(endpoint, now, out);
            }
        }
    }

    fn mark_full(&mut self, endpoint: EndpointId, now: Instant, out: &mut Effects<A>) {
        if is_news(&mut self.full, endpoint, FULL_AGAIN, now) {
            out.full.push(endpoint);
        }
    }

    fn mark_slow(&mut self, endpoint: EndpointId, now: Instant, out: &mut Effects<A>) {
        if is_news(&mut self.slow, endpoint, SLOW_AGAIN, now) {
            self.slow.retain(|_, said| now.saturating_duration_since(*said) < SLOW_FOR);
            out.slow.push(endpoint);
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
                Gate::Paced(limit) => self.paced(work, limit, now, out),
                Gate::AfterOne => self.lanes.hold(endpoint, work, Hold::Done, now_ms),
                Gate::Dead(reason) => {
                    self.lanes.done(endpoint, Completion::NotSent, 0, now_ms);
                    out.reports.push(report(&work, Outcome::Dead { reason, deactivate: false }));
                }
                Gate::HandBack(why) => {
                    self.lanes.done(endpoint, Completion::NotSent, 0, now_ms);
                    hand_back(&work, why, out);
                    // What holds this one holds the rest of its queue.
                    for work in self.lanes.drain_endpoint(endpoint) {
                        hand_back(&work, why, out);
                    }
                }
            }
        }
    }

    /// Sends a job where its endpoint's rate limit has a token for it. Short waits are spent in the endpoint's own
    /// queue, where they cost nobody a place; it is cut to what the limit lets through in a while.
    fn paced(&mut self, work: Work, limit: RateLimit, now: Instant, out: &mut Effects<A>) {
        let (endpoint, now_ms) = (work.job.endpoint, self.millis(now));
        let queued = self.lanes.queued_for(endpoint);
        let until = match self.pacer.take(endpoint, &limit, queued, self.micros(now)) {
            Pace::Go => return out.starts.push((work, false)),
            Pace::At(at) => at,
            Pace::Ask(wanted, at) => {
                out.asks.push(Ask { endpoint, limit, wanted });
                at
            }
            Pace::TooLong(wait) => {
                self.lanes.done(endpoint, Completion::NotSent, 0, now_ms);
                for (n, work) in (0..).zip(std::iter::once(work).chain(self.lanes.drain_endpoint(endpoint))) {
                    out.reports.push(waiting(&work, wait.saturating_add(limit.interval_us().saturating_mul(n))));
                }
                return;
            }
        };
        let until_ms = u64::try_from(until.max(0)).unwrap_or(0).div_ceil(1000);
        self.lanes.hold(endpoint, work, Hold::Until(until_ms), now_ms);
        let most = limit.within(self.queue_seconds).saturating_add(limit.burst) as usize;
        let beyond = self.lanes.trim(endpoint, most);
        if !beyond.is_empty() {
            self.mark_full(endpoint, now, out);
        }
        for work in beyond {
            hand_back(&work, HandBack::Full, out);
        }
    }

    /// Tokens were leased, or can't be.
    pub fn leased(&mut self, (ask, answer): Leased, now: Instant) {
        let Ask { endpoint, limit, wanted } = ask;
        let now_us = self.micros(now);
        match answer {
            Some((lease, pods)) => self.pacer.granted(endpoint, &limit, lease, pods, now_us),
            None => self.pacer.granted_alone(endpoint, &limit, wanted, now_us),
        }
        self.lanes.release(endpoint);
    }

    /// When something that waits can go on, if anything does.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.lanes.next_release().map(|at| self.started + Duration::from_millis(at))
    }

    /// An attempt is over.
    pub fn over(&mut self, endpoint: EndpointId, how: Completion, took_ms: u32, now: Instant, out: &mut Effects<A>) {
        self.lanes.done(endpoint, how, took_ms, self.millis(now));
        // Nobody is slow whose last request was quick and who wasn't slow before.
        if (took_ms >= SLOW_MS || !self.slow.is_empty()) && self.lanes.is_slow(endpoint) {
            self.mark_slow(endpoint, now, out);
        }
        if !self.full.is_empty() && self.full.contains_key(&endpoint) && self.lanes.queued_for(endpoint) == 0 {
            self.full.remove(&endpoint);
            out.roomy.push(endpoint);
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

/// Whether something is to be said of an endpoint, again where it was said `again` ago; notes that it is said now.
fn is_news(said: &mut HashMap<EndpointId, Instant>, endpoint: EndpointId, again: Duration, now: Instant) -> bool {
    let is_news = said.get(&endpoint).is_none_or(|at| now.saturating_duration_since(*at) >= again);
    if is_news {
        said.insert(endpoint, now);
    }
    is_news
}

fn hand_back<A>(work: &Work, reason: HandBack, out: &mut Effects<A>) {
    out.freed |= reason == HandBack::Shutdown;
    out.reports.push(handed_back(work, reason));
}

/// The longest time that a job is handed back for: a limit that is raised counts soon.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The report of a job that waits for its endpoint's rate limit, so many microseconds.
fn waiting(work: &Work, wait_us: i64) -> Report {
    let wait = Duration::from_micros(u64::try_from(wait_us).unwrap_or(0));
    handed_back_for(work, HandBack::Waiting, wait.min(WAIT_MAX))
}

/// A job whose endpoint's secrets this pod can't open is due again after this time, perhaps at a pod that can.
const WITHHELD_DELAY: Duration = Duration::from_secs(15);

/// The report of a job that goes back unsent: due at once, since only the scheduler knows when what held it ends. A key
/// that this pod lacks is unknown to the scheduler, which would send the job out again and again.
pub fn handed_back(work: &Work, reason: HandBack) -> Report {
    handed_back_for(work, reason, if reason == HandBack::Withheld { WITHHELD_DELAY } else { Duration::ZERO })
}

fn handed_back_for(work: &Work, reason: HandBack, delay: Duration) -> Report {
    let name = match reason {
        HandBack::Full => "full",
        HandBack::CircuitOpen => "circuit_open",
        HandBack::Paused => "paused",
        HandBack::Shutdown => "shutdown",
        HandBack::Waiting => "waiting",
        HandBack::Withheld => "secrets_withheld",
    };
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
