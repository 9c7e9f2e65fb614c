//! What can go wrong on the bus, in the classes that callers act on.

/// Connecting, declaring or asking failed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The URL can't be used; the text never contains it, as it may hold a password.
    #[error("the NATS URL is not valid: {0}")]
    Url(String),
    /// No server could be reached.
    #[error("NATS is not reachable: {0}")]
    Connect(String),
    /// No answer in time, or JetStream is not there.
    #[error("NATS did not answer {what}: {why}")]
    Unanswered {
        /// The request, as in the JetStream API.
        what: String,
        /// What was seen instead.
        why: String,
    },
    /// JetStream answered with an error.
    #[error("NATS refused {what}: {description} (error {code})")]
    Refused {
        /// The request, as in the JetStream API.
        what: String,
        /// JetStream's error code (`err_code`).
        code: u64,
        /// Its words.
        description: String,
    },
}

impl BusError {
    /// JetStream's error code, where it answered.
    pub(crate) fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Why a publish has no PubAck.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The stream is full and refuses, as it should. Not stored.
    #[error("the stream is full: {0}")]
    Full(String),
    /// No connection, no stream, or the server can't store now. Not stored.
    #[error("the stream is not available: {0}")]
    Unavailable(String),
    /// The answer didn't come: it may or may not be stored. Publish the same ids again.
    #[error("not known whether it was stored: {0}")]
    Unknown(String),
    /// The server will never take this message (too large), or claims to have it although it was never sent before.
    #[error("the stream refuses the message: {0}")]
    Refused(String),
}
