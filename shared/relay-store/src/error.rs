//! What can go wrong between us and Postgres, by what the caller has to do about it. No type of the driver
//! crosses this crate's border.

use relay_core::protocol::{StatementFailure, classify_sqlstate};

/// What a caller has to do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// Postgres can't be reached, shuts down, is full or ended the statement: wait and try again.
    Unavailable,
    /// The deadline passed: the statement may have been carried out or not.
    Timeout,
    /// The statement's data can't be stored (SQLSTATE 22, 23, 54): trying again changes nothing.
    Data,
    /// A deadlock or serialisation failure that outlasted the repetitions: try again.
    Conflict,
    /// A row belongs to a day that has no partition and gets none (too old, or too far ahead).
    MissingPartition,
    /// What is stored can't be read as what it should be.
    Inconsistent,
    /// The pool was closed: the process shuts down.
    Closed,
}

/// An error of the ledger.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// See [`ErrorKind::Unavailable`].
    #[error("Postgres is not available: {message}")]
    Unavailable {
        /// The driver's or the server's words.
        message: String,
        /// The connection was lost while a statement ran: it may have been carried out.
        outcome_unknown: bool,
    },
    /// See [`ErrorKind::Timeout`].
    #[error("the statement's deadline passed; whether it was carried out is unknown")]
    Timeout,
    /// See [`ErrorKind::Data`].
    #[error("the data can't be stored ({sqlstate}): {message}")]
    Data {
        /// The SQLSTATE.
        sqlstate: String,
        /// The server's words.
        message: String,
    },
    /// See [`ErrorKind::Conflict`].
    #[error("conflict with another statement ({sqlstate}): {message}")]
    Conflict {
        /// The SQLSTATE.
        sqlstate: String,
        /// The server's words.
        message: String,
    },
    /// See [`ErrorKind::MissingPartition`].
    #[error("there is no partition for this day: {message}")]
    MissingPartition {
        /// The server's words, or ours.
        message: String,
    },
    /// See [`ErrorKind::Inconsistent`].
    #[error("the ledger holds something unexpected: {0}")]
    Inconsistent(String),
    /// See [`ErrorKind::Closed`].
    #[error("the ledger's connections are closed")]
    Closed,
}

impl StoreError {
    /// What has to be done about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Timeout => ErrorKind::Timeout,
            Self::Data { .. } => ErrorKind::Data,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::MissingPartition { .. } => ErrorKind::MissingPartition,
            Self::Inconsistent(_) => ErrorKind::Inconsistent,
            Self::Closed => ErrorKind::Closed,
        }
    }

    /// Whether the statement may have been carried out in spite of the error.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Timeout | Self::Unavailable { outcome_unknown: true, .. })
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), outcome_unknown: false }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(database) => {
                let sqlstate = database.code().map(|c| c.into_owned()).unwrap_or_default();
                let message = database.message().to_owned();
                match classify_sqlstate(&sqlstate) {
                    // A row outside all partitions and a violated CHECK share one SQLSTATE; only the latter
                    // names a constraint.
                    StatementFailure::MissingPartition if database.constraint().is_none() => {
                        Self::MissingPartition { message }
                    }
                    StatementFailure::Data | StatementFailure::MissingPartition => Self::Data { sqlstate, message },
                    StatementFailure::Conflict => Self::Conflict { sqlstate, message },
                    StatementFailure::Infrastructure => Self::unavailable(format!("{sqlstate}: {message}")),
                }
            }
            sqlx::Error::PoolClosed => Self::Closed,
            // An argument that the driver can't encode is as much the data's fault as one the server refuses.
            sqlx::Error::Encode(e) => Self::Data { sqlstate: "22000".to_owned(), message: e.to_string() },
            sqlx::Error::Decode(e) | sqlx::Error::ColumnDecode { source: e, .. } => Self::Inconsistent(e.to_string()),
            sqlx::Error::RowNotFound => Self::Inconsistent("a row that must be there is missing".to_owned()),
            sqlx::Error::Io(e) => Self::Unavailable { message: e.to_string(), outcome_unknown: true },
            other => Self::Unavailable { message: other.to_string(), outcome_unknown: true },
        }
    }
}
