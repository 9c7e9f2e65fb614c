//! Ingest as a service: makes the state of the routes, runs the committer and the other tasks behind them, and
//! serves the interface on its own listener where it has one.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use relay_bus::{Bus, PublishError};
use relay_core::address::AddressPolicy;
use relay_links::Links;
use relay_runtime::failpoint::{self, Point};
use relay_store::Directory;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa_axum::router::OpenApiRouter;

use crate::api::{Api, Counters, Shared};
use crate::committer::{CommitMetrics, PublishFailure, committer};
use crate::config::Config;
use crate::refresh::Refresher;
use crate::routes;
use crate::waiters::Waiters;

/// How often the directory is written to the state file.
const SAVE_EVERY: Duration = Duration::from_secs(15);
/// The file in the state directory.
pub const STATE_FILE: &str = "directory.json";

/// An ingest that is ready to run. Its routes may be served before it runs, but events are accepted only while it
/// does.
pub struct Ingest {
    api: Api,
    state_file: Option<PathBuf>,
    commit: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    stop_commit: CancellationToken,
}

/// Why an ingest can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory can't be used.
    #[error("the state directory {path}: {error}")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl Ingest {
    /// Prepares the service. Call it after the metrics recorder is installed.
    pub async fn start(config: Config, links: Links) -> Result<Self, StartError> {
        if let Some(dir) = &config.state_dir {
            let made = tokio::fs::create_dir_all(dir).await;
            made.map_err(|error| StartError::StateDir { path: dir.clone(), error })?;
        }
        let limits = config.commit_limits();
        let state_file = config.state_dir.map(|dir| dir.join(STATE_FILE));
        if let Some(file) = &state_file
            && links.directory.age().is_none()
        {
            match links.directory.load_from(file).await {
                Ok(()) => {
                    tracing::warn!(file = %file.display(), "Postgres is away; starting with the last known endpoints")
                }
                Err(error) => {
                    tracing::warn!(%error, "Postgres is away, and there is no copy of the directory to start with")
                }
            }
        }
        let stop_commit = CancellationToken::new();
        let bus = links.bus.clone();
        let publish = move |bundle: Bytes| publish(bus.clone(), bundle);
        let (committer, run) = committer(publish, limits, CommitMetrics::register());
        let api = Api::new(Shared {
            links,
            committer,
            refresher: Refresher::default(),
            waiters: Waiters::default(),
            policy: AddressPolicy::new(config.allow_networks),
            payload_bytes_max: config.payload_bytes_max,
            counters: Counters::register(),
        });
        Ok(Self { api, state_file, commit: Box::pin(run.run(stop_commit.clone())), stop_commit })
    }

    /// The routes, to be merged with those of other services and served by the caller.
    pub fn router(&self) -> OpenApiRouter {
        routes::router(self.api.clone())
    }

    /// Works until `stop` fires: then takes no more events, and ends when all that were handed over are answered.
    /// Stop serving the routes first.
    pub async fn run(self, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let store = self.api.links.store.clone();
        let look = move |ids: Vec<relay_core::ids::EventId>| {
            let store = store.clone();
            async move { store.events_present(&ids).await }
        };
        tasks.spawn(self.api.waiters.clone().run(look, stop.clone()));
        if let Some(file) = self.state_file {
            tasks.spawn(save(self.api.links.directory.clone(), file, stop.clone()));
        }
        let committing = tokio::spawn(self.commit);
        tasks.close();
        stop.cancelled().await;
        self.stop_commit.cancel();
        if let Err(error) = committing.await {
            tracing::error!(%error, "the committer ended badly");
        }
        tasks.wait().await;
    }
}

async fn publish(bus: Bus, bundle: Bytes) -> Result<(), PublishFailure> {
    failpoint::pass(Point::IngestPublish).await;
    let published = bus.publish_events(bundle).await.map_err(|error| {
        tracing::warn!(%error, "a bundle of events was not acknowledged");
        match error {
            PublishError::Full(_) => PublishFailure::Full,
            PublishError::Refused(_) => PublishFailure::Refused,
            PublishError::Unavailable(_) | PublishError::Unknown(_) => PublishFailure::Uncertain,
        }
    });
    if failpoint::fails(Point::IngestPublished).await { Err(PublishFailure::Uncertain) } else { published }
}

/// Keeps a copy of the directory on disk, for a start while Postgres is away.
async fn save(directory: Directory, file: PathBuf, stop: CancellationToken) {
    let mut ticks = interval(SAVE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = true;
    while running {
        running = stop.run_until_cancelled(ticks.tick()).await.is_some();
        // A directory that never was read must not replace a copy that was.
        if directory.age().is_some()
            && let Err(error) = directory.save_to(&file).await
        {
            tracing::warn!(%error, "the copy of the directory could not be written");
        }
    }
}
