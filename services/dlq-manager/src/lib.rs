//! The DLQ manager: dead letters are listed, shown, replayed and discarded here (step 13 of an event's way: a closed
//! delivery is opened again). Its leader also does what the ledger needs now and then (`duties`): closing what
//! waits for deactivated endpoints, folding statistics, carrying out jobs on many letters, making and dropping
//! partitions.
//!
//! To read: `routes` (one file each), `replay` (what becomes of a replay), `letter` (the shape of a letter),
//! `runner` (a step of a job).
//! Any number of managers run side by side; one of them leads by a lease row, and two for a moment are harmless.

mod api;
mod cli;
mod config;
mod duties;
mod filter;
#[cfg(test)]
mod fuzz;
mod job;
mod letter;
mod refusal;
mod replay;
mod routes;
mod runner;

use std::convert::Infallible;

pub use cli::{Cli, main_with};
pub use config::{Config, Retention};
pub use relay_links::Links;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::api::Api;

/// A manager that is ready to run.
pub struct DlqManager {
    config: Config,
    api: Api,
    holder: String,
}

impl DlqManager {
    /// Prepares the service; `holder` names this process in lease rows. Call it after the metrics recorder is
    /// installed.
    pub async fn start(config: Config, links: Links, holder: String) -> Result<Self, Infallible> {
        Ok(Self { config, api: Api::new(links), holder })
    }

    /// The routes, to be merged with those of other services and served by the caller inside
    /// [`relay_runtime::auth::protect`].
    pub fn router(&self) -> OpenApiRouter {
        routes::documented().with_state(self.api.clone())
    }

    /// Does the leader's duties until `stop` fires.
    pub async fn run(self, stop: CancellationToken) {
        duties::run(self.api, self.config.retention, self.holder, stop).await;
    }
}
