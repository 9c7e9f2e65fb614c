//! Carries a job out, a step at a time: what the ledger can't do alone is publishing letters as new events. Called by
//! the leader's duty, and by the routes that run a job for as long as its client waits.

use relay_core::bulk::JobKind;
use relay_core::ids::JobId;
use relay_store::{Published, ReplayOutcome, Stepped, StoreError};

use crate::api::Api;
use crate::replay::{NotSent, send_as_new, wake};

/// Why a step could not be done: it may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] StoreError),
    /// The accept log.
    #[error("a letter could not be published as a new event: {0}")]
    Unpublished(relay_bus::PublishError),
}

/// Does what comes next for a job.
pub async fn step(api: &Api, job: JobId) -> Result<Stepped, StepError> {
    let mut published = Published::new();
    loop {
        match api.links.store.step_job(job, &published).await? {
            Stepped::NewEvents { letters, force } => {
                for letter in letters {
                    let sent = match send_as_new(&api.links, None, letter, force).await {
                        Ok(event) => Ok(event.id),
                        Err(NotSent::Refused(outcome)) => Err(outcome),
                        Err(NotSent::NoEvent(_)) => Err(ReplayOutcome::NotReplayable),
                        Err(NotSent::Ledger(error)) => return Err(error.into()),
                        Err(NotSent::Unpublished(error)) => return Err(StepError::Unpublished(error)),
                    };
                    published.insert(letter, sent);
                }
            }
            stepped => {
                if let Stepped::Took { kind, done, .. } = &stepped
                    && *done > 0
                {
                    match kind {
                        JobKind::Replay => {
                            api.counters.replayed.increment(*done);
                            wake(&api.links).await;
                        }
                        JobKind::Discard => api.counters.discarded.increment(*done),
                    }
                }
                return Ok(stepped);
            }
        }
    }
}
