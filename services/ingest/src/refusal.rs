//! Why ingest refuses a request: one closed list, turned into problem details in one place. What decides
//! (`admit`, `settings`, `query`) speaks of refusals, not of HTTP.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use relay_core::body_room::NoRoom;
use relay_core::problem::{FieldError, Problem, ProblemType};
use relay_runtime::http::NotRead;
use relay_runtime::problem::{ProblemResponse, RETRY_AFTER};
use relay_store::{ErrorKind, StoreError};

use crate::committer::CommitError;
use crate::fields::BodyError;

/// After how long a client may try again where the accept log is full, which takes longer to get room.
const RETRY_AFTER_FULL: Duration = Duration::from_secs(5);

/// A refused request.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    /// The body is not JSON.
    Malformed(String),
    /// The content type is not JSON's.
    NotJsonType,
    /// The body or the payload is over the limit, in bytes.
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The body was not read, for want of room.
    NotRead(NotRead),
    /// Fields are wrong.
    Invalid(Vec<FieldError>),
    /// No such endpoint.
    UnknownEndpoint,
    /// No such event.
    UnknownEvent,
    /// No such API key.
    UnknownKey,
    /// A key with scopes that its maker doesn't have.
    TooPowerful,
    /// The tenant has as many API keys as it may have.
    TooManyKeys {
        /// How many that are.
        limit: usize,
    },
    /// The event has no delivery to this endpoint.
    UnknownDelivery,
    /// The delivery is being sent.
    InProgress,
    /// The endpoint takes no events.
    InactiveEndpoint,
    /// The endpoint's filter doesn't have this type.
    TypeNotAccepted(String),
    /// The tenant has as many endpoints as it may have.
    TooManyEndpoints {
        /// How many that are.
        limit: usize,
    },
    /// The idempotency key was used for another request.
    KeyReused,
    /// Too much waits, or the accept log has no room; the wait is after how long to try again.
    Overloaded(&'static str, Duration),
    /// Something we need is away.
    Unavailable(String),
    /// A fault of ours; the text is logged, not shown.
    Internal(String),
}

impl Refusal {
    /// Too much waits.
    pub fn overloaded(why: &'static str) -> Self {
        Self::Overloaded(why, RETRY_AFTER)
    }

    /// Whether the request itself is at fault.
    pub fn is_the_clients(&self) -> bool {
        match self {
            Self::NotRead(why) => *why == NotRead::NoRoom(NoRoom::Own),
            Self::Overloaded(..) | Self::Unavailable(_) | Self::Internal(_) => false,
            _ => true,
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        use ProblemType as P;
        match refusal {
            Refusal::Malformed(why) => Self::new(P::BadJson, why),
            Refusal::NotJsonType => Self::new(P::UnsupportedMediaType, "The Content-Type must be application/json"),
            Refusal::TooLarge { limit } => Self::new(P::PayloadTooLarge, format!("At most {limit} bytes are allowed")),
            Refusal::NotRead(why) => why.into(),
            Refusal::Invalid(errors) => Self::fields(errors),
            Refusal::UnknownEndpoint => Self::new(P::EndpointNotFound, "Endpoint not found"),
            Refusal::UnknownEvent => Self::new(P::EventNotFound, "Event not found"),
            Refusal::UnknownKey => Self::new(P::KeyNotFound, "API key not found"),
            Refusal::TooPowerful => Self::new(P::Forbidden, "A key can't have scopes that its maker doesn't have"),
            Refusal::TooManyKeys { limit } => {
                Self::new(P::TooManyKeys, format!("A tenant has at most {limit} keys that are not revoked"))
            }
            Refusal::UnknownDelivery => {
                Self::new(P::DeliveryNotFound, "The event has no delivery to this endpoint; explain says why")
            }
            Refusal::InProgress => Self::new(P::DeliveryInProgress, "The delivery is being sent"),
            Refusal::InactiveEndpoint => Self::new(P::EndpointInactive, "Endpoint is inactive"),
            Refusal::TypeNotAccepted(event_type) => {
                Self::new(P::EventTypeNotAccepted, format!("Event type '{event_type}' not accepted by this endpoint"))
            }
            Refusal::TooManyEndpoints { limit } => {
                Self::new(P::TooManyEndpoints, format!("A tenant has at most {limit} active endpoints"))
            }
            Refusal::KeyReused => Self::new(
                P::IdempotencyConflict,
                "The idempotency key was used for an event with another endpoint, type or payload",
            ),
            Refusal::Overloaded(why, wait) => Self::new(P::Overloaded, why).retry_after(wait),
            Refusal::Unavailable(why) => Self::new(P::ServiceUnavailable, why).retry_after(RETRY_AFTER),
            Refusal::Internal(why) => {
                tracing::error!(%why, "a request failed for a fault of ours");
                Self::new(P::Internal, "Something went wrong here; the log says what")
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        ProblemResponse(self.into()).into_response()
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Self::Invalid(vec![error])
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Malformed(_) => Self::Malformed(error.to_string()),
            BodyError::NotAnObject => Self::Invalid(vec![FieldError {
                field: "body".to_owned(),
                message: "must be a JSON object".to_owned(),
            }]),
            BodyError::Repeated(name) => Self::Invalid(vec![FieldError {
                field: format!("body.{name}"),
                message: "stands there twice".to_owned(),
            }]),
        }
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Overloaded => Self::overloaded("Too many events are waiting to be stored"),
            CommitError::Busy => Self::overloaded("Too many requests are waiting"),
            CommitError::Full => {
                Self::Overloaded("The accept log is full; events are being worked off", RETRY_AFTER_FULL)
            }
            CommitError::Unavailable | CommitError::Refused | CommitError::Stopped => {
                Self::Unavailable(error.to_string())
            }
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            ErrorKind::Data | ErrorKind::Inconsistent | ErrorKind::MissingPartition => {
                Self::Internal(error.to_string())
            }
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Conflict | ErrorKind::Closed => {
                tracing::warn!(%error, "a request needs Postgres");
                Self::Unavailable("The database does not answer".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_says_when_to_try_again() {
        for refusal in [
            Refusal::from(CommitError::Full),
            CommitError::Overloaded.into(),
            CommitError::Unavailable.into(),
            StoreError::Timeout.into(),
        ] {
            let problem = Problem::from(refusal);
            assert_eq!(problem.status(), 503);
            assert!(problem.retry_after.is_some());
        }
    }

    #[test]
    fn the_texts_of_the_interface() {
        let detail = |refusal| Problem::from(refusal).detail;
        assert_eq!(detail(Refusal::UnknownEndpoint), "Endpoint not found");
        assert_eq!(
            detail(Refusal::TypeNotAccepted("a.b".to_owned())),
            "Event type 'a.b' not accepted by this endpoint"
        );
        assert_eq!(Problem::from(Refusal::from(BodyError::NotAnObject)).errors[0].field, "body");
    }
}
