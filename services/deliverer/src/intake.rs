//! Step 8 of an event's way, its beginning: pulls messages from each lane of JOBS, reads the jobs in them, and
//! makes sure that this pod knows the endpoints at least as well as whoever made the jobs.
//!
//! Invariant: nothing is pulled without room for it, nor while results wait too long to be recorded.

use std::sync::Arc;
use std::time::Duration;

use relay_bus::JobMessage;
use relay_core::WireError;
use relay_core::ids::TenantId;
use relay_core::job::{self, Job};
use relay_core::subject::Lane;
use relay_store::Directory;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Links;
use crate::drive::Ack;
use crate::flow::Flow;
use crate::room::Room;
use crate::work::Arrived;

/// When a message of a newer program is offered again.
const NAK_NEWER: Duration = Duration::from_secs(5);
/// When a message is offered again whose endpoints could not be looked up.
const NAK_DIRECTORY: Duration = Duration::from_secs(1);

/// What the pulling loops share.
pub struct Intake {
    /// NATS and the directory.
    pub links: Links,
    /// Room in the pod.
    pub room: Arc<Room>,
    /// Whether results are recorded in time.
    pub flow: Flow,
    /// To the pool.
    pub arrivals: mpsc::Sender<Arrived<Ack>>,
}

/// Pulls one lane until `stop` fires.
pub async fn run(intake: Arc<Intake>, lane: Lane, stop: CancellationToken) {
    let mut source = intake.links.bus.jobs(&[lane]);
    let ready = async |intake: &Intake| {
        intake.flow.opened().await;
        intake.room.take_message(lane).await;
    };
    while stop.run_until_cancelled(ready(&intake)).await.is_some() {
        let Some(message) = source.next(&stop).await else {
            intake.room.brought(lane, 0, 0);
            break;
        };
        take(&intake, message).await;
    }
    // What has come but was not looked at goes to other pods at once.
    while let Some(message) = source.ready() {
        message.ack.nak(Duration::ZERO).await;
    }
}

/// Reads one message and hands its jobs to the pool.
async fn take(intake: &Intake, message: JobMessage) {
    let JobMessage { payload, lane, delivered, marked, ack } = message;
    let bytes = payload.len();
    let jobs = match job::decode(payload) {
        Ok(jobs) => jobs,
        Err(WireError::UnknownVersion(version)) => {
            metrics::counter!("relay_deliverer_newer_bundles_total").increment(1);
            tracing::error!(version, "a bundle of a newer version was left for a newer deliverer: update this one");
            ack.nak(NAK_NEWER).await;
            intake.room.brought(lane, 0, 0);
            return;
        }
        Err(error) => {
            // Its rows are leased: the scheduler makes new jobs of them when the leases lapse.
            tracing::error!(%error, "a bundle of jobs can't be read and was dropped");
            ack.ack().await;
            intake.room.brought(lane, 0, 0);
            return;
        }
    };
    if jobs.is_empty() {
        ack.ack().await;
        intake.room.brought(lane, 0, 0);
        return;
    }
    if !knows_endpoints(&intake.links.directory, &jobs).await {
        ack.nak(NAK_DIRECTORY).await;
        intake.room.brought(lane, 0, 0);
        return;
    }
    let kibibytes = intake.room.brought(lane, jobs.len(), bytes);
    let arrived = Arrived { ack: Arc::new(ack), lane, delivered, marked, kibibytes, jobs };
    // Fails only when the pool has ended: then the message comes again elsewhere.
    let _ = intake.arrivals.send(arrived).await;
}

/// Refreshes the tenants whose directory is older here than where the jobs were made, or that have an endpoint we
/// have never heard of. `false`: it can't be done now.
async fn knows_endpoints(directory: &Directory, jobs: &[Job]) -> bool {
    let mut refreshed: Vec<TenantId> = Vec::new();
    let mut snapshot = directory.snapshot();
    for job in jobs {
        let current = snapshot.version(&job.tenant).is_some_and(|version| version >= job.directory_version)
            && snapshot.endpoint(job.endpoint).is_some();
        if current || refreshed.contains(&job.tenant) {
            continue;
        }
        if let Err(error) = directory.refresh(&job.tenant).await {
            tracing::warn!(%error, tenant = %job.tenant, "the directory can't be refreshed; its jobs are left for later");
            return false;
        }
        refreshed.push(job.tenant.clone());
        snapshot = directory.snapshot();
    }
    true
}
