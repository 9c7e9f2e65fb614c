//! What decides: the pure core of WebhookRelay. No I/O, no clock, no randomness, no logging: times and random
//! numbers come in as arguments, so everything here is tested by examples, properties and the simulation.
//!
//! In the order in which an event flows: [`event`], [`ids`] and [`bundle`] (accepted), [`subject`] and [`shard`] (on the
//! wire), [`matching`] and [`protocol`] (dispatched), [`job`], [`lanes`] and [`rate`] (queued), [`gathering`] (batched), [`signature`] and
//! [`address`] (sent), [`sealing`] (their secrets at rest), [`answer`], [`retry`] and [`breaker`] (judged), [`delivery`]
//! (recorded). [`endpoint`], [`headers`], [`keys`], [`forwarded`], [`body_room`], [`problem`], [`page`], [`bulk`],
//! [`histogram`] and [`series`] serve the REST interface;
//! [`audit`] judges what a running system holds.

pub mod address;
pub mod answer;
pub mod audit;
pub mod body_room;
pub mod breaker;
pub mod bulk;
pub mod bundle;
pub mod delivery;
pub mod endpoint;
pub mod event;
pub mod explain;
pub mod forwarded;
pub mod gathering;
pub mod headers;
pub mod histogram;
pub mod ids;
pub mod job;
pub mod keys;
pub mod lanes;
pub mod matching;
pub mod mutation;
pub mod page;
pub mod problem;
pub mod protocol;
pub mod rate;
pub mod retry;
pub mod sealing;
pub mod series;
pub mod shard;
pub mod shedding;
pub mod signature;
pub mod subject;
mod wire;

pub use wire::WireError;
