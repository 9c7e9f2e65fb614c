//! What can go wrong with Redis. Deliveries go on regardless.

/// Redis can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CircuitError {
    /// The URL can't be used; the text never contains it, as it may hold a password.
    #[error("the Redis URL is not valid: {0}")]
    Url(String),
    /// Redis doesn't answer, or not in time.
    #[error("Redis is not reachable: {0}")]
    Unreachable(String),
}

impl From<redis::RedisError> for CircuitError {
    fn from(error: redis::RedisError) -> Self {
        Self::Unreachable(error.to_string())
    }
}
