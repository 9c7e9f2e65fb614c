//! The deliverer's queues: a FIFO per endpoint, and which job is sent next. Step 8 of an event's way. Pure: the
//! pod's clock comes in as milliseconds.
//!
//! Invariants: jobs of one endpoint leave in the order in which they came; in flight never exceeds the global
//! limit, nor an endpoint's own limit when it is sent to; an endpoint that only waits never keeps another from being served; every
//! operation takes (amortised) constant time; what is idle is forgotten.
//!
//! Every job costs one request, so the deficit round robin over tenants, and over the endpoints of a tenant, is a
//! round robin with a quantum of one. Slots are shared by dynamic thresholds (Choudhury and Hahne, 1998): an endpoint
//! may hold as many slots as are free, so that N slow endpoints together leave 1/(N+1) of them to others, and one alone gets half.

mod concurrency;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

pub use concurrency::{Concurrency, FAST_GROWTH_UNTIL, SLOW_GROWTH_EVERY, SLOW_MS};

use crate::ids::{EndpointId, TenantId};

/// Where first attempts and replays wait for one endpoint, a replay goes after this many others.
pub const OTHERS_PER_REPLAY: u32 = 8;
/// A queue whose endpoint's speed is not known yet may hold this many jobs, unless it timed out: one dispatcher
/// batch for a quiet endpoint is no flood.
pub const COLD_QUEUE: usize = 1024;
/// A queue whose endpoint could take more than it lately got, by the speed of its answers, may hold so many jobs at most:
/// a burst for a quick endpoint is no flood either.
pub const QUICK_QUEUE_MAX: usize = 2048;
/// How long after its first job, or its first after a silence, the speed counts as not known, in milliseconds.
pub const COLD_MS: u64 = 1000;
/// Completions are counted in windows of this length, in milliseconds.
const RATE_WINDOW_MS: u64 = 1000;
/// An endpoint with nothing queued and nothing in flight is forgotten after this time, in milliseconds.
pub const FORGET_MS: u64 = 60_000;

/// How much may wait and be in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaneLimits {
    /// Requests in flight in the pod.
    pub global_in_flight: usize,
    /// Requests in flight to an endpoint that has not answered 2xx yet.
    pub endpoint_initial: usize,
    /// Requests in flight to one endpoint at most.
    pub endpoint_max: usize,
    /// Jobs that may wait for an endpoint, however slow it is.
    pub queue_min: usize,
    /// Jobs that may wait, in seconds of its recent completions, or of what it could take.
    pub queue_seconds: f64,
}

impl Default for LaneLimits {
    fn default() -> Self {
        // Bundles have 64 jobs: a queue of four of them does not spill when two come at once.
        Self { global_in_flight: 1024, endpoint_initial: 4, endpoint_max: 256, queue_min: 256, queue_seconds: 2.0 }
    }
}

/// How a job that [`Lanes::next`] gave ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// 2xx.
    Success,
    /// No answer in time.
    TimedOut,
    /// Any other answer, or no connection.
    Failed,
    /// It was not sent after all (dropped by the check, handed back).
    NotSent,
}

/// Until when an endpoint is not served, though it has work and places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Until this time, in milliseconds (its next request has to wait for it), or [`Lanes::release`].
    Until(u64),
    /// Until one of its requests in flight is over. There must be one.
    Done,
}

/// One endpoint's queue and what is known of its speed.
struct Lane<T> {
    tenant: TenantId,
    queue: VecDeque<T>,
    /// Replays: they go when nothing else waits, and now and then.
    replays: VecDeque<T>,
    /// Others that went while replays waited.
    others: u32,
    in_flight: usize,
    concurrency: Concurrency,
    /// In its tenant's ring, or parked.
    listed: bool,
    parked: bool,
    held: Option<Hold>,
    /// When work came for it, its speed being unknown.
    first_ms: u64,
    window: u64,
    completed: u32,
    completed_before: u32,
    idle_since: u64,
    /// In the queue of those that may be forgotten.
    idle_listed: bool,
}

impl<T> Lane<T> {
    fn new(tenant: TenantId, limits: &LaneLimits, now_ms: u64) -> Self {
        Self {
            tenant,
            queue: VecDeque::new(),
            replays: VecDeque::new(),
            others: 0,
            in_flight: 0,
            concurrency: Concurrency::new(limits.endpoint_initial, limits.endpoint_max),
            listed: false,
            parked: false,
            held: None,
            first_ms: now_ms,
            window: now_ms / RATE_WINDOW_MS,
            completed: 0,
            completed_before: 0,
            idle_since: now_ms,
            idle_listed: false,
        }
    }

    fn runnable(&self) -> bool {
        self.waiting() > 0 && self.in_flight < self.concurrency.limit() && self.held.is_none()
    }

    fn idle(&self) -> bool {
        self.waiting() == 0 && self.in_flight == 0
    }

    fn waiting(&self) -> usize {
        self.queue.len() + self.replays.len()
    }

    fn pop(&mut self) -> Option<T> {
        if self.replays.is_empty() {
            return self.queue.pop_front();
        }
        if self.others < OTHERS_PER_REPLAY
            && let Some(item) = self.queue.pop_front()
        {
            self.others += 1;
            return Some(item);
        }
        self.others = 0;
        self.replays.pop_front()
    }

    fn roll_window(&mut self, now_ms: u64) {
        let window = now_ms / RATE_WINDOW_MS;
        if window > self.window {
            self.completed_before = if window == self.window + 1 { self.completed } else { 0 };
            self.completed = 0;
            self.window = window;
        }
    }

    /// How many jobs may wait.
    fn room(&mut self, limits: &LaneLimits, now_ms: u64) -> usize {
        self.roll_window(now_ms);
        let per_second = f64::from(self.completed.max(self.completed_before));
        // A float that is cast saturates; a negative setting gives 0.
        let by_rate = (per_second * limits.queue_seconds) as usize;
        let by_speed = ((self.concurrency.capacity_per_second() * limits.queue_seconds) as usize).min(QUICK_QUEUE_MAX);
        if self.idle() && self.completed + self.completed_before == 0 {
            self.first_ms = now_ms;
        }
        let is_cold =
            now_ms.saturating_sub(self.first_ms) < COLD_MS && self.concurrency.limit() >= limits.endpoint_initial;
        let cold = if is_cold { COLD_QUEUE } else { 0 };
        limits.queue_min.max(by_rate).max(by_speed).max(cold).max(1)
    }

    fn completed(&mut self, how: Completion, took_ms: u32, now_ms: u64) {
        self.roll_window(now_ms);
        self.in_flight = self.in_flight.saturating_sub(1);
        if how != Completion::NotSent {
            self.completed += 1;
        }
        self.concurrency.completed(how, took_ms, self.in_flight);
    }
}

/// All queues of a pod.
pub struct Lanes<T> {
    limits: LaneLimits,
    lanes: HashMap<EndpointId, Lane<T>>,
    /// Per tenant the endpoints that can be served; a tenant is here while its ring is not empty.
    rings: HashMap<TenantId, VecDeque<EndpointId>>,
    /// The tenants with a ring, in turn.
    turns: VecDeque<TenantId>,
    /// Endpoints that could be served but hold more than their share of the free slots. Each has a request in
    /// flight, so its own completion un-parks it at the latest; entries whose lane isn't parked are void.
    parked: VecDeque<EndpointId>,
    /// Endpoints that wait for a time; entries that don't say what their lane says are void.
    held: BinaryHeap<Reverse<(u64, EndpointId)>>,
    /// Endpoints that may be idle, and since when.
    idle: VecDeque<(EndpointId, u64)>,
    queued: usize,
    in_flight: usize,
}

impl<T> Lanes<T> {
    /// Nothing is queued.
    pub fn new(limits: LaneLimits) -> Self {
        Self {
            limits,
            lanes: HashMap::new(),
            rings: HashMap::new(),
            turns: VecDeque::new(),
            parked: VecDeque::new(),
            held: BinaryHeap::new(),
            idle: VecDeque::new(),
            queued: 0,
            in_flight: 0,
        }
    }

    /// Queues a job. `Err`: the endpoint's queue is full, the job is to be handed back.
    pub fn push(&mut self, tenant: &TenantId, endpoint: EndpointId, item: T, now_ms: u64) -> Result<(), T> {
        self.queue(tenant, endpoint, item, false, now_ms)
    }

    /// The same for a replay: it goes behind the endpoint's other work.
    pub fn push_replay(&mut self, tenant: &TenantId, endpoint: EndpointId, item: T, now_ms: u64) -> Result<(), T> {
        self.queue(tenant, endpoint, item, true, now_ms)
    }

    fn queue(
        &mut self,
        tenant: &TenantId,
        endpoint: EndpointId,
        item: T,
        is_replay: bool,
        now_ms: u64,
    ) -> Result<(), T> {
        self.forget(now_ms);
        let lane = self.lanes.entry(endpoint).or_insert_with(|| Lane::new(tenant.clone(), &self.limits, now_ms));
        if lane.waiting() >= lane.room(&self.limits, now_ms) {
            return Err(item);
        }
        if is_replay {
            lane.replays.push_back(item);
        } else {
            lane.queue.push_back(item);
        }
        self.queued += 1;
        self.list(endpoint);
        Ok(())
    }

    /// The next job to be sent, if any may be sent now; it counts as in flight until [`Lanes::done`].
    pub fn next(&mut self, now_ms: u64) -> Option<T> {
        self.forget(now_ms);
        self.release_due(now_ms);
        while self.in_flight < self.limits.global_in_flight {
            let tenant = self.turns.pop_front()?;
            let Some(ring) = self.rings.get_mut(&tenant) else {
                continue;
            };
            let Some(endpoint) = ring.pop_front() else {
                self.rings.remove(&tenant);
                continue;
            };
            let free = self.limits.global_in_flight - self.in_flight;
            let taken = match self.lanes.get_mut(&endpoint) {
                Some(lane) if lane.runnable() && lane.in_flight < free => {
                    lane.in_flight += 1;
                    let item = lane.pop();
                    lane.listed = lane.runnable();
                    if lane.listed {
                        ring.push_back(endpoint);
                    }
                    item
                }
                Some(lane) if lane.runnable() => {
                    lane.parked = true;
                    self.parked.push_back(endpoint);
                    None
                }
                Some(lane) => {
                    lane.listed = false;
                    None
                }
                None => None,
            };
            let turn_over = taken.is_some();
            if ring.is_empty() {
                self.rings.remove(&tenant);
            } else if turn_over {
                self.turns.push_back(tenant);
            } else {
                self.turns.push_front(tenant);
            }
            if let Some(item) = taken {
                self.queued -= 1;
                self.in_flight += 1;
                return Some(item);
            }
        }
        None
    }

    /// Frees the slot of a job that [`Lanes::next`] gave, and learns from how it ended.
    /// `took_ms` is the time from its start to its end.
    pub fn done(&mut self, endpoint: EndpointId, how: Completion, took_ms: u32, now_ms: u64) {
        let Some(lane) = self.lanes.get_mut(&endpoint).filter(|lane| lane.in_flight > 0) else {
            return;
        };
        lane.held = lane.held.filter(|hold| *hold != Hold::Done);
        self.free(endpoint, how, took_ms, now_ms);
    }

    fn free(&mut self, endpoint: EndpointId, how: Completion, took_ms: u32, now_ms: u64) {
        let Some(lane) = self.lanes.get_mut(&endpoint) else {
            return;
        };
        lane.completed(how, took_ms, now_ms);
        self.in_flight -= 1;
        self.unpark(endpoint);
        self.list(endpoint);
        self.note_idle(endpoint, now_ms);
        // A slot became free: two of those that held too much are looked at again. Two, since a completion adds
        // at most one entry: so the void ones go too.
        for _ in 0..2 {
            if let Some(parked) = self.parked.pop_front() {
                self.unpark(parked);
                self.list(parked);
            }
        }
        self.forget(now_ms);
    }

    /// Puts back a job that [`Lanes::next`] gave, at the head of its queue; its endpoint is not served for a while.
    pub fn hold(&mut self, endpoint: EndpointId, item: T, hold: Hold, now_ms: u64) {
        let Some(lane) = self.lanes.get_mut(&endpoint).filter(|lane| lane.in_flight > 0) else {
            return;
        };
        lane.queue.push_front(item);
        lane.held = Some(hold);
        self.queued += 1;
        if let Hold::Until(at) = hold {
            self.held.push(Reverse((at, endpoint)));
        }
        self.free(endpoint, Completion::NotSent, 0, now_ms);
    }

    /// Ends an endpoint's wait.
    pub fn release(&mut self, endpoint: EndpointId) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.held = None;
            self.list(endpoint);
        }
    }

    /// When the next wait ends, if any endpoint waits.
    pub fn next_release(&self) -> Option<u64> {
        self.held.peek().map(|Reverse((at, _))| *at)
    }

    fn release_due(&mut self, now_ms: u64) {
        while let Some(Reverse((at, endpoint))) = self.held.peek().copied() {
            if at > now_ms {
                return;
            }
            self.held.pop();
            if self.lanes.get(&endpoint).is_some_and(|lane| lane.held == Some(Hold::Until(at))) {
                self.release(endpoint);
            }
        }
    }

    /// Takes what waits for an endpoint beyond `keep` jobs: replays first, then what came last.
    pub fn trim(&mut self, endpoint: EndpointId, keep: usize) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(&endpoint) else {
            return Vec::new();
        };
        let beyond = lane.queue.split_off(keep.min(lane.queue.len()));
        let replays = lane.replays.split_off(keep.saturating_sub(lane.queue.len()).min(lane.replays.len()));
        let items: Vec<T> = beyond.into_iter().chain(replays).collect();
        self.queued -= items.len();
        items
    }

    /// Takes everything that waits for one endpoint (it was paused, its circuit opened).
    pub fn drain_endpoint(&mut self, endpoint: EndpointId) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(&endpoint) else {
            return Vec::new();
        };
        let items: Vec<T> = lane.queue.drain(..).chain(lane.replays.drain(..)).collect();
        lane.held = None;
        self.queued -= items.len();
        let now_ms = lane.idle_since;
        self.note_idle(endpoint, now_ms);
        items
    }

    /// Takes everything that waits (shutdown).
    pub fn drain(&mut self) -> Vec<T> {
        let endpoints: Vec<EndpointId> = self.lanes.keys().copied().collect();
        endpoints.into_iter().flat_map(|endpoint| self.drain_endpoint(endpoint)).collect()
    }

    /// Jobs that wait.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Jobs in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Jobs that wait for one endpoint.
    pub fn queued_for(&self, endpoint: EndpointId) -> usize {
        self.lanes.get(&endpoint).map_or(0, Lane::waiting)
    }

    /// Whether an endpoint's requests take long.
    pub fn is_slow(&self, endpoint: EndpointId) -> bool {
        self.lanes.get(&endpoint).is_some_and(|lane| lane.concurrency.is_slow())
    }

    /// Jobs in flight to one endpoint.
    pub fn in_flight_to(&self, endpoint: EndpointId) -> usize {
        self.lanes.get(&endpoint).map_or(0, |lane| lane.in_flight)
    }

    fn unpark(&mut self, endpoint: EndpointId) {
        if let Some(lane) = self.lanes.get_mut(&endpoint).filter(|lane| lane.parked) {
            lane.parked = false;
            lane.listed = false;
        }
    }

    /// Puts an endpoint into its tenant's ring where it can be served and is not listed yet.
    fn list(&mut self, endpoint: EndpointId) {
        let Some(lane) = self.lanes.get_mut(&endpoint).filter(|lane| !lane.listed && lane.runnable()) else {
            return;
        };
        lane.listed = true;
        let ring = self.rings.entry(lane.tenant.clone()).or_default();
        if ring.is_empty() {
            self.turns.push_back(lane.tenant.clone());
        }
        ring.push_back(endpoint);
    }

    fn note_idle(&mut self, endpoint: EndpointId, now_ms: u64) {
        if let Some(lane) = self.lanes.get_mut(&endpoint).filter(|lane| lane.idle()) {
            lane.idle_since = now_ms;
            if !lane.idle_listed {
                lane.idle_listed = true;
                self.idle.push_back((endpoint, now_ms));
            }
        }
    }

    /// Forgets endpoints that have been idle for [`FORGET_MS`].
    fn forget(&mut self, now_ms: u64) {
        while let Some((endpoint, since)) = self.idle.front().copied() {
            if now_ms.saturating_sub(since) < FORGET_MS {
                return;
            }
            self.idle.pop_front();
            let Some(lane) = self.lanes.get_mut(&endpoint) else {
                continue;
            };
            if !lane.idle() {
                lane.idle_listed = false;
            } else if now_ms.saturating_sub(lane.idle_since) < FORGET_MS {
                self.idle.push_back((endpoint, lane.idle_since));
            } else if lane.listed {
                // Still in a ring that nobody served meanwhile.
                self.idle.push_back((endpoint, now_ms));
            } else {
                self.lanes.remove(&endpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests;
