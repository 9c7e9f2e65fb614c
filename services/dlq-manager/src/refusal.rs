//! How the routes say no: outcomes and errors as problems.

use relay_bus::PublishError;
use relay_core::problem::{Problem, ProblemType};
use relay_runtime::problem::{ProblemResponse, RETRY_AFTER};
use relay_store::{ErrorKind, StoreError};

/// There is no such letter, or not for this caller.
pub fn unknown_letter() -> ProblemResponse {
    ProblemResponse::new(ProblemType::DeadLetterNotFound, "DLQ entry not found")
}

/// An error of the ledger.
pub fn ledger(error: StoreError) -> ProblemResponse {
    match error.kind() {
        ErrorKind::Data | ErrorKind::Inconsistent | ErrorKind::MissingPartition => ProblemResponse::internal(error),
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Conflict | ErrorKind::Closed => {
            tracing::warn!(%error, "a request needs Postgres");
            away("The database does not answer")
        }
    }
}

/// An event could not be published.
pub fn unpublished(error: &PublishError) -> ProblemResponse {
    tracing::warn!(%error, "a replayed event was not acknowledged");
    away("The accept log does not take the event")
}

fn away(what: &str) -> ProblemResponse {
    ProblemResponse(Problem::new(ProblemType::ServiceUnavailable, what).retry_after(RETRY_AFTER))
}
