//! The clock, the queue of what happens next, and everybody in it. An action belongs to a process or to the
//! outside: a killed process's actions are dropped, a stalled one's wait until it wakes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use relay_core::endpoint::LEASE_MARGIN;
use relay_core::event::Event;
use relay_core::ids::{AttemptId, EndpointId, EventId, uuid_v7};
use relay_core::job::Job;
use uuid::Uuid;

use super::bus::Stream;
use super::config::{Chances, Mutation, Setup};
use super::dispatcher::Dispatcher;
use super::pod::Pod;
use super::receivers::Receiver;
use super::store::Store;

/// A delivery.
pub type Key = (EventId, EndpointId);
/// What happens.
pub type Action = Box<dyn FnOnce(&mut World)>;

/// Time-out of a request, in milliseconds.
pub const TIMEOUT_MS: u64 = 5_000;
/// JetStream's `ack_wait`.
pub const ACK_WAIT_MS: u64 = 10_000;
/// A statement without an answer is given up after this.
pub const STATEMENT_DEADLINE_MS: u64 = 10_000;
/// Faults and operators stop here.
pub const FAULTS_UNTIL_MS: u64 = 65_000;
/// By then everything must be quiet. Leases and retries take a minute or two; the rest is for the backlog of an
/// endpoint that times out, which is sent to one by one.
pub const QUIET_BY_MS: u64 = FAULTS_UNTIL_MS + 900_000;
/// Steps of the trace that are shown.
const TRACE_STEPS: usize = 60;

/// The claim's lease.
pub fn lease() -> Duration {
    Duration::from_millis(TIMEOUT_MS) + LEASE_MARGIN
}

/// A process and the life it is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub process: usize,
    pub life: u32,
}

struct Next {
    at: u64,
    number: u64,
    owner: Option<Owner>,
    action: Action,
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Next {}
impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Next {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Life and stall of a process.
#[derive(Clone, Copy, Default)]
pub struct Process {
    pub life: u32,
    pub stalled_until: u64,
}

/// An endpoint, as the table has it.
#[derive(Clone, Debug)]
pub struct EndpointRow {
    pub id: EndpointId,
    pub active: bool,
    pub paused: bool,
    /// Was inactive at some time.
    pub was_inactive: bool,
}

/// SplitMix64: small, fast, and the same on every platform and in every version of every crate.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `from..=to`.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    pub fn index(&mut self, len: usize) -> usize {
        (self.next() % len as u64) as usize
    }

    pub fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= p
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn bytes10(&mut self) -> [u8; 10] {
        let (a, b) = (self.next().to_be_bytes(), self.next().to_be_bytes());
        [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1]]
    }
}

/// One POST, as the oracle knows it.
pub struct Send {
    pub key: Key,
    /// The pod that sent it died before its result was on record.
    pub orphaned: bool,
}

/// What is known of a delivery from outside.
#[derive(Default)]
pub struct Seen {
    /// Receipts that the endpoint answered with 2xx.
    pub receipts_2xx: u32,
    /// Requests that ended otherwise, or whose answer was lost.
    pub failures: u32,
    /// How many duplicates the faults explain.
    pub allowed: u32,
    /// Claims under which it was sent.
    pub sent_claims: Vec<i32>,
}

/// Everything.
pub struct World {
    pub now: u64,
    pub dice: Dice,
    pub setup: Setup,
    pub chances: Chances,
    heap: BinaryHeap<Reverse<Next>>,
    number: u64,
    pub processes: Vec<Process>,
    pub events: Stream<Vec<Event>>,
    pub jobs: Stream<Vec<Job>>,
    pub nats_down_until: u64,
    pub events_full_until: u64,
    /// Dumps of the ledger by when they are to be restored, with when they were made.
    pub dumps: HashMap<u64, (u64, Store)>,
    pub store: Store,
    pub dispatchers: Vec<Dispatcher>,
    pub pods: Vec<Pod>,
    pub endpoints: Vec<EndpointRow>,
    pub receivers: HashMap<EndpointId, Receiver>,
    /// Ids that producers hold a 2xx or a PubAck for.
    pub accepted: Vec<Event>,
    pub producing: usize,
    pub seen: BTreeMap<Key, Seen>,
    pub sends: HashMap<AttemptId, Send>,
    pub violation: Option<String>,
    pub tracing: bool,
    trace: VecDeque<String>,
    pub all_of_it: bool,
}

impl World {
    pub fn new(seed: u64, mutation: Option<Mutation>, tracing: bool) -> Self {
        let mut dice = Dice::new(seed);
        let setup = Setup::draw(&mut dice, mutation);
        let mut world = Self {
            now: 0,
            chances: setup.chances,
            heap: BinaryHeap::new(),
            number: 0,
            processes: vec![Process::default(); setup.dispatchers + setup.pods],
            events: Stream::default(),
            jobs: Stream::default(),
            nats_down_until: 0,
            events_full_until: 0,
            dumps: HashMap::new(),
            store: Store::default(),
            dispatchers: Vec::new(),
            pods: Vec::new(),
            endpoints: Vec::new(),
            receivers: HashMap::new(),
            accepted: Vec::new(),
            producing: 0,
            seen: BTreeMap::new(),
            sends: HashMap::new(),
            violation: None,
            tracing,
            trace: VecDeque::new(),
            all_of_it: false,
            dice,
            setup,
        };
        for _ in 0..world.setup.endpoints {
            world.create_endpoint();
        }
        world.dispatchers = (0..world.setup.dispatchers).map(|_| Dispatcher::default()).collect();
        world.pods = (0..world.setup.pods).map(|_| Pod::new(None)).collect();
        world
    }

    pub fn create_endpoint(&mut self) {
        let id = EndpointId(uuid_v7(self.time(), self.dice.bytes10()));
        let receiver = Receiver::draw(&mut self.dice);
        self.note(|| format!("endpoint {} exists: {receiver:?}", short(id.0)));
        self.receivers.insert(id, receiver);
        self.endpoints.push(EndpointRow { id, active: true, paused: false, was_inactive: false });
        self.store.directory_version += 1;
    }

    /// Where the simulated clock starts: shortly before midnight, so that keys see two days.
    pub fn at_ms(&self, ms: u64) -> DateTime<Utc> {
        let start = Utc.with_ymd_and_hms(2026, 1, 31, 23, 59, 45).single().unwrap_or_default();
        start + TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX))
    }

    pub fn time(&self) -> DateTime<Utc> {
        self.at_ms(self.now)
    }

    pub fn mutated(&self, mutation: Mutation) -> bool {
        self.setup.mutation == Some(mutation)
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.tracing {
            let line = format!("{:>7} {}", self.now, what());
            self.trace.push_back(line);
            if !self.all_of_it && self.trace.len() > TRACE_STEPS {
                self.trace.pop_front();
            }
        }
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        if self.violation.is_none() {
            let what = what.into();
            self.note(|| format!("VIOLATION: {what}"));
            self.violation = Some(what);
        }
    }

    pub fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn owner(&self, process: usize) -> Owner {
        Owner { process, life: self.processes[process].life }
    }

    pub fn alive(&self, owner: Owner) -> bool {
        self.processes[owner.process].life == owner.life
    }

    /// Something happens outside of all processes.
    pub fn after(&mut self, ms: u64, action: impl FnOnce(&mut Self) + 'static) {
        self.push(ms, None, Box::new(action));
    }

    /// A process does something, if it is alive and awake then.
    pub fn does(&mut self, owner: Owner, ms: u64, action: impl FnOnce(&mut Self) + 'static) {
        self.push(ms, Some(owner), Box::new(action));
    }

    fn push(&mut self, ms: u64, owner: Option<Owner>, action: Action) {
        self.number += 1;
        self.heap.push(Reverse(Next { at: self.now + ms, number: self.number, owner, action }));
    }

    /// Runs until the time, until nothing is left, or until something is wrong.
    pub fn run_until(&mut self, ms: u64) {
        while self.violation.is_none() && self.heap.peek().is_some_and(|Reverse(next)| next.at <= ms) {
            let Some(Reverse(mut next)) = self.heap.pop() else { return };
            self.now = next.at;
            if let Some(owner) = next.owner {
                if !self.alive(owner) {
                    continue;
                }
                let until = self.processes[owner.process].stalled_until;
                if until > self.now {
                    next.at = until;
                    self.heap.push(Reverse(next));
                    continue;
                }
            }
            (next.action)(self);
        }
        self.now = self.now.max(ms);
    }
}

/// The last digits of an id, for traces.
pub fn short(id: Uuid) -> String {
    format!("{:04x}", id.as_u128() & 0xffff)
}

/// A delivery, for traces.
pub fn short_key(key: Key) -> String {
    format!("{}>{}", short(key.0.0), short(key.1.0))
}
