//! What the parts of the deliverer tell each other: a job in the pod, and what became of it.
//!
//! Every channel between them holds [`crate::room::Room`] jobs at most, because a job's place in the pod is given
//! back only when the pool hears that it is settled; so no sender ever waits for long.

use relay_core::delivery::DeliveryResult;
use relay_core::event::EventType;
use relay_core::ids::{EndpointId, EventId};
use relay_core::job::Job;
use relay_core::lanes::Completion;
use relay_core::subject::Lane;

/// Which delivery. A pod works on one job of a delivery at a time.
pub type Key = (EventId, EndpointId);

/// A message of JOBS while its jobs are worked on.
pub type BundleNumber = u64;

/// A job in the pod.
#[derive(Clone, Debug)]
pub struct Work {
    /// What is to be sent.
    pub job: Job,
    /// JetStream's delivery count of its message: 1 = the first time.
    pub delivered: u64,
    /// Its message was published a second time after an unknown outcome.
    pub marked: bool,
}

impl Work {
    /// Its delivery.
    pub fn key(&self) -> Key {
        (self.job.event, self.job.endpoint)
    }
}

/// How a job left the pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Recorded, handed back, or somebody else's by now: its message may be acked for it.
    Done {
        /// The claim that the pod's work ended with.
        claim: i32,
    },
    /// Nothing is known of it: its message stays unacked and comes again.
    Unknown,
}

/// A message of JOBS, decoded.
#[derive(Debug)]
pub struct Arrived<A> {
    /// To acknowledge it with.
    pub ack: A,
    /// Its lane.
    pub lane: Lane,
    /// JetStream's delivery count.
    pub delivered: u64,
    /// Published twice.
    pub marked: bool,
    /// Its size, in the units of [`crate::room::Room`].
    pub kibibytes: u32,
    /// Its jobs; never empty.
    pub jobs: Vec<Job>,
}

/// An attempt is over, or was not made: its place among the in-flight ones is free.
#[derive(Clone, Copy, Debug)]
pub struct Over {
    /// Whose place.
    pub endpoint: EndpointId,
    /// How it went.
    pub how: Completion,
    /// What the request took, in milliseconds.
    pub took_ms: u32,
    /// Set where nothing is to be recorded.
    pub settled: Option<(Key, Settled)>,
}

/// What the recorder gets: one result, with what the hint about a dead letter says besides.
#[derive(Debug)]
pub struct Report {
    /// The result.
    pub result: DeliveryResult,
    /// The event's type.
    pub event_type: EventType,
}

impl Report {
    /// Its delivery.
    pub fn key(&self) -> Key {
        (self.result.event, self.result.endpoint)
    }
}
