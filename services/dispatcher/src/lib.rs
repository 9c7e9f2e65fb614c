//! The dispatcher: steps 5 to 7 and 12 of an event's way. It pulls accepted events, matches them with the
//! tenant's endpoints, writes events and open deliveries in one statement, publishes the jobs, and only then
//! acknowledges the events (invariant I1). Its scheduler claims what is due; one dispatcher leads it by a lease row.
//!
//! Any number of dispatchers share one durable consumer.

mod batch;
mod cli;
mod config;
mod decode;
#[cfg(test)]
mod fuzz;
mod intake;
mod jobs;
mod meters;
mod plan;
mod purge;
mod room;
mod scheduler;

use std::sync::Arc;

pub use cli::{Cli, main_with};
pub use config::Config;
pub use decode::{Decoded, Unusable, decode};
pub use relay_links::Links;
use relay_store::leader::{Leader, PURGE, SCHEDULER};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A dispatcher that is ready to run.
pub struct Dispatcher {
    config: Config,
    links: Links,
    holder: String,
}

/// Why a dispatcher can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The streams can't be declared.
    #[error("declaring the streams: {0}")]
    Bus(#[from] relay_bus::BusError),
}

impl Dispatcher {
    /// Declares the streams where they are missing, and uses as many as the settings say. `holder` names this process in lease rows.
    pub async fn start(config: Config, links: Links, holder: String) -> Result<Self, StartError> {
        links.bus.declare(&config.topology()).await?;
        Ok(Self { config, links, holder })
    }

    /// Works until `stop` fires, then finishes what it has pulled.
    pub async fn run(self, stop: CancellationToken) {
        let room = Arc::new(room::Room::default());
        let meters = Arc::new(meters::Meters::new());
        let tasks = TaskTracker::new();
        tasks.spawn(room::watch(Arc::clone(&room), self.links.bus.clone(), stop.clone()));
        tasks.spawn(scheduler::run(
            scheduler::Scheduler::new(self.links.clone(), Arc::clone(&room), Arc::clone(&meters)),
            Leader::new(self.links.store.clone(), SCHEDULER, &self.holder),
            stop.clone(),
        ));
        tasks.spawn(purge::run(
            self.links.bus.clone(),
            purge::Keep { age: self.config.history(), percent: self.config.history_percent },
            Leader::new(self.links.store.clone(), PURGE, &self.holder),
            stop.clone(),
        ));
        tasks.spawn(intake::run(intake::Intake::new(self.links.clone(), room, meters, &self.config), stop.clone()));
        tasks.close();
        tasks.wait().await;
    }
}
