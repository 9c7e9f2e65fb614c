//! Duty: jobs on many dead letters go on, a step each in turn. The ledger keeps where they are, so a manager that leads
//! next goes on where the last one stopped.

use std::time::Duration;

use relay_core::ids::JobId;
use relay_core::subject::Lane;
use relay_store::{ErrorKind, Stepped};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::duties::{failed, led};
use crate::runner::{StepError, step};

/// Between two looks for jobs.
const IDLE: Duration = Duration::from_millis(500);
/// Messages of replays (bundles of up to 64 jobs) that may wait in JOBS: more of them would only wait there, and their
/// leases run out meanwhile.
const REPLAYS_WAITING_MAX: u64 = 50;

/// Does the duty until `stop` fires.
pub async fn run(api: Api, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
    while led(&mut leading, &stop).await {
        let pause = round(&api, &stop).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// A step of every job; how long there is nothing to do.
async fn round(api: &Api, stop: &CancellationToken) -> Duration {
    let jobs = match api.links.store.runnable_jobs().await {
        Ok(jobs) => jobs,
        Err(error) => {
            failed("jobs", &error);
            return IDLE;
        }
    };
    if jobs.is_empty() || replays_wait(api).await {
        return IDLE;
    }
    let mut pause = IDLE;
    for job in jobs {
        if stop.is_cancelled() {
            break;
        }
        match step(api, job).await {
            Ok(Stepped::Began | Stepped::Took { .. }) => pause = Duration::ZERO,
            Ok(Stepped::Wait(wait)) => pause = pause.min(wait),
            Ok(Stepped::Over | Stepped::NewEvents { .. }) => {}
            Err(error) => give_up_or_wait(api, job, &error).await,
        }
    }
    pause
}

/// Whether the deliverers have enough replays to do. Unknown counts as no: the ledger is what jobs need.
async fn replays_wait(api: &Api) -> bool {
    api.links.bus.jobs_lag(Lane::Replay).await.is_ok_and(|lag| lag.pending > REPLAYS_WAITING_MAX)
}

/// What trying again doesn't mend ends the job.
async fn give_up_or_wait(api: &Api, job: JobId, error: &StepError) {
    tracing::warn!(%job, %error, "a step of a job could not be done");
    let hopeless =
        matches!(error, StepError::Ledger(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::Inconsistent));
    if hopeless && let Err(error) = api.links.store.fail_job(job, &error.to_string()).await {
        failed("jobs", &error);
    }
}
