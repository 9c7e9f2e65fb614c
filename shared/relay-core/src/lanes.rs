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

use std::collections::{HashMap, VecDeque};

use crate::ids::{EndpointId, TenantId};

/// Below this many in flight an endpoint's limit grows with every success (it doubles in a round trip).
pub const FAST_GROWTH_UNTIL: usize = 64;
/// Above it the limit grows by one with this many successes.
pub const SLOW_GROWTH_EVERY: u32 = 8;
/// A queue whose endpoint's speed is not known yet may hold this many jobs, unless it timed out: one dispatcher
/// batch for a quiet endpoint is no flood.
pub const COLD_QUEUE: usize = 1024;
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
    /// Jobs that may wait, in seconds of its recent completions.
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

/// One endpoint's queue and what is known of its speed.
struct Lane<T> {
    tenant: TenantId,
    queue: VecDeque<T>,
    in_flight: usize,
    limit: usize,
    /// Above this the limit grows slowly.
    threshold: usize,
    /// Successes since the limit last grew, while it grows slowly.
    credit: u32,
    /// Time-outs among the next so many completions belong to the halving that was.
    halved_for: usize,
    /// In its tenant's ring, or parked.
    listed: bool,
    parked: bool,
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
            in_flight: 0,
            limit: limits.endpoint_initial.clamp(1, limits.endpoint_max.max(1)),
            threshold: FAST_GROWTH_UNTIL,
            credit: 0,
            halved_for: 0,
            listed: false,
            parked: false,
            first_ms: now_ms,
            window: now_ms / RATE_WINDOW_MS,
            completed: 0,
            completed_before: 0,
            idle_since: now_ms,
            idle_listed: false,
        }
    }

    fn runnable(&self) -> bool {
        !self.queue.is_empty() && self.in_flight < self.limit
    }

    fn idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight == 0
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
        if self.idle() && self.completed + self.completed_before == 0 {
            self.first_ms = now_ms;
        }
        let is_cold = now_ms.saturating_sub(self.first_ms) < COLD_MS && self.limit >= limits.endpoint_initial;
        let cold = if is_cold { COLD_QUEUE } else { 0 };
        limits.queue_min.max(by_rate).max(cold).max(1)
    }

    fn completed(&mut self, how: Completion, limits: &LaneLimits, now_ms: u64) {
        self.roll_window(now_ms);
        let was_busy = self.in_flight * 2 >= self.limit;
        self.in_flight = self.in_flight.saturating_sub(1);
        if how == Completion::NotSent {
            return;
        }
        self.completed += 1;
        let belongs_to_halving = self.halved_for > 0;
        self.halved_for = self.halved_for.saturating_sub(1);
        match how {
            Completion::Success => {
                if was_busy {
                    self.grow(limits);
                }
            }
            Completion::TimedOut if !belongs_to_halving => {
                self.limit = (self.limit / 2).max(1);
                self.threshold = self.limit.max(1);
                self.credit = 0;
                self.halved_for = self.in_flight;
            }
            Completion::TimedOut | Completion::Failed | Completion::NotSent => {}
        }
    }

    fn grow(&mut self, limits: &LaneLimits) {
        if self.limit < self.threshold {
            self.limit += 1;
        } else {
            self.credit += 1;
            if self.credit >= SLOW_GROWTH_EVERY {
                self.credit = 0;
                self.limit += 1;
            }
        }
        self.limit = self.limit.min(limits.endpoint_max.max(1));
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
            idle: VecDeque::new(),
            queued: 0,
            in_flight: 0,
        }
    }

    /// Queues a job. `Err`: the endpoint's queue is full, the job is to be handed back.
    pub fn push(&mut self, tenant: &TenantId, endpoint: EndpointId, item: T, now_ms: u64) -> Result<(), T> {
        self.forget(now_ms);
        let lane = self.lanes.entry(endpoint).or_insert_with(|| Lane::new(tenant.clone(), &self.limits, now_ms));
        if lane.queue.len() >= lane.room(&self.limits, now_ms) {
            return Err(item);
        }
        lane.queue.push_back(item);
        self.queued += 1;
        self.list(endpoint);
        Ok(())
    }

    /// The next job to be sent, if any may be sent now; it counts as in flight until [`Lanes::done`].
    pub fn next(&mut self, now_ms: u64) -> Option<T> {
        self.forget(now_ms);
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
                    let item = lane.queue.pop_front();
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
    pub fn done(&mut self, endpoint: EndpointId, how: Completion, now_ms: u64) {
        let Some(lane) = self.lanes.get_mut(&endpoint).filter(|lane| lane.in_flight > 0) else {
            return;
        };
        lane.completed(how, &self.limits, now_ms);
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

    /// Takes everything that waits for one endpoint (it was paused, its circuit opened).
    pub fn drain_endpoint(&mut self, endpoint: EndpointId) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(&endpoint) else {
            return Vec::new();
        };
        let items: Vec<T> = lane.queue.drain(..).collect();
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
        self.lanes.get(&endpoint).map_or(0, |lane| lane.queue.len())
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
