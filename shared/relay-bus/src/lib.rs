//! The bus: the one crate that speaks NATS. Services publish bundles, jobs and hints through [`Bus`], and take
//! messages from [`EventSource`] and [`JobSource`].
//!
//! Invariants kept here: a publish is `Ok` only after JetStream's PubAck; an unanswered one is *unknown*, never
//! "failed"; pull requests are made again after every error and reconnect; missing streams and consumers are
//! declared again, and nothing is ever deleted but acknowledged history. Events and jobs may be spread over several
//! streams each: callers need not know over how many.

mod ack;
mod advisory;
mod api;
mod bus;
mod connect;
mod declare;
mod discover;
mod disruption;
mod durability;
mod error;
mod hints;
mod history;
mod letters;
mod publish;
mod pull;
mod pullers;
mod replies;
mod retained;
mod shards;
mod source;
mod topology;

pub use ack::AckHandle;
pub use bus::Bus;
pub use connect::BusOptions;
pub use durability::BusDurability;
pub use error::{BusError, PublishError};
pub use hints::Hints;
pub use history::Lag;
pub use retained::{Retained, RetainedPart, Unused};
pub use source::{EventMessage, EventSource, JobMessage, JobSource, StoredMessage};
pub use topology::Topology;
