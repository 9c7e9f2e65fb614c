//! Answering a message that was pulled. An answer is a plain publish that may get lost: then the message comes
//! again after `ack_wait`, and everything done with it stands repetition.

use std::fmt;
use std::time::Duration;

use async_nats::{Client, Subject};
use bytes::Bytes;

use crate::error::BusError;
use crate::topology::nanos;

/// While there is no connection, answers queue; longer than this nobody waits for room in that queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for the server's word that it has the ack.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to answer one message. Dropping it without an answer brings the message back after `ack_wait`.
#[derive(Clone)]
pub struct AckHandle {
    client: Client,
    reply: Subject,
}

impl fmt::Debug for AckHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AckHandle").field(&self.reply.as_str()).finish()
    }
}

impl AckHandle {
    pub(crate) fn new(client: Client, reply: Subject) -> Self {
        Self { client, reply }
    }

    /// Done with it. Returns when the ack is queued for sending.
    pub async fn ack(&self) {
        self.answer(Bytes::from_static(b"+ACK")).await;
    }

    /// Done with it, and the server has said that it knows.
    ///
    /// # Errors
    /// The server didn't say so: the message may come again.
    pub async fn ack_sync(&self) -> Result<(), BusError> {
        let unanswered = |why: String| BusError::Unanswered { what: "an ack".to_owned(), why };
        let asked = self.client.request(self.reply.clone(), Bytes::from_static(b"+ACK"));
        tokio::time::timeout(SYNC_TIMEOUT, asked)
            .await
            .map_err(|_| unanswered("timed out".to_owned()))?
            .map(drop)
            .map_err(|e| unanswered(e.to_string()))
    }

    /// Not now: deliver it again after `delay`.
    pub async fn nak(&self, delay: Duration) {
        self.answer(nak_body(delay)).await;
    }

    /// Still working on it: `ack_wait` starts anew.
    pub async fn progress(&self) {
        self.answer(Bytes::from_static(b"+WPI")).await;
    }

    async fn answer(&self, body: Bytes) {
        let published = tokio::time::timeout(QUEUE_TIMEOUT, self.client.publish(self.reply.clone(), body)).await;
        if !matches!(published, Ok(Ok(()))) {
            tracing::debug!("an ack was not sent; the message comes again");
        }
    }
}

fn nak_body(delay: Duration) -> Bytes {
    if delay.is_zero() {
        return Bytes::from_static(b"-NAK");
    }
    format!("-NAK {{\"delay\": {}}}", nanos(delay)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_written_in_nanoseconds() {
        assert_eq!(nak_body(Duration::ZERO), "-NAK");
        assert_eq!(nak_body(Duration::from_millis(1500)), r#"-NAK {"delay": 1500000000}"#);
    }
}
