//! Ingest: the REST interface for events and endpoints. Steps 1 to 3 of an event's way: a request becomes a
//! checked event (`admit`), waits for the running publish (`committer`), and is answered 202 when JetStream has
//! it on disk. Everything else here reads the ledger or changes endpoints.
//!
//! Any number of ingests run side by side; nothing is kept in one that another needs.

mod access;
mod admit;
mod api;
mod batch;
mod committer;
mod config;
mod fields;
mod figures;
#[cfg(test)]
mod fuzz;
mod openapi;
mod query;
mod refresh;
mod refusal;
mod routes;
mod service;
mod settings;
mod shapes;
mod standalone;
mod waiters;

pub use access::{KeyShape, KeyWithSecret, TenantShape};
pub use config::{Config, PAYLOAD_BYTES_CEILING, REQUEST_OVERHEAD_BYTES};
pub use openapi::{base, with_document};
pub use relay_links::Links;
pub use service::{Ingest, StartError};
pub use standalone::{Cli, main_with};
