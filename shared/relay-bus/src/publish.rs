//! Publishing what matters: bundles of events and of jobs, each with its PubAck. Steps 2 and 7 of an event's way.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use relay_core::bundle::BundleWriter;
use relay_core::subject::{self, HEADER_MSG_ID, HEADER_SUSPECT, Lane};
use serde::Deserialize;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::error::{BusError, PublishError};

/// How long EVENTS may take to store a bundle before the outcome counts as unknown. A server that syncs each message
/// answers nobody until it has stored all that had arrived: a burst of a stranger's messages takes seconds.
const EVENTS_ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where somebody waits to hear whether it stores anything at all.
const PROBE_TIMEOUT: Duration = Duration::from_millis(700);
/// The same for JOBS, which isn't synced.
const JOBS_ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long jobs are tried again before they are left to their leases.
const JOBS_DEADLINE: Duration = Duration::from_secs(5);
/// First pause before another try; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// JetStream's error codes for a limit of the stream or the account that is reached (`maximum bytes exceeded` has
/// no code of its own: it is told by its words).
const FULL_CODES: [u64; 4] = [10002, 10023, 10028, 10047];
/// JetStream's error code for a message that is over the stream's or the server's limit.
const TOO_LARGE: u64 = 10054;

/// JetStream's answer to a publish.
#[derive(Debug, Deserialize)]
struct PubAck {
    error: Option<ApiError>,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What became of one publish.
enum Published {
    Stored,
    Duplicate,
}

/// A publish to EVENTS that is waited for. At its end it notes whether EVENTS was silent; also where nobody waits for it any
/// longer, since a request's deadline may end a little before the publish's own.
struct Waiting<'a> {
    bus: &'a Bus,
    /// What is to be noted, if anything.
    silent: Option<Option<u16>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(silent) = self.silent {
            *self.bus.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent;
        }
    }
}

impl Bus {
    /// Publishes a bundle of events for a shard and waits until JetStream has stored it.
    ///
    /// # Errors
    /// [`PublishError::Full`] when EVENTS refuses. After [`PublishError::Unknown`] publish the same bytes again: the
    /// ids inside make a second copy harmless.
    pub async fn publish_events(&self, shard: u16, bundle: Bytes) -> Result<(), PublishError> {
        self.publish_bundle(shard, bundle, EVENTS_ACK_TIMEOUT).await
    }

    async fn publish_bundle(&self, shard: u16, bundle: Bytes, within: Duration) -> Result<(), PublishError> {
        let mut waiting = Waiting { bus: self, silent: Some(Some(shard)) };
        let outcome = self.publish_acked(&subject::bundles(shard), None, bundle, within).await.map(drop);
        waiting.silent = match outcome {
            Err(PublishError::Unknown(_)) => Some(Some(shard)),
            Ok(()) | Err(PublishError::Full(_) | PublishError::Refused(_)) => Some(None),
            Err(PublishError::Unavailable(_)) => None,
        };
        outcome
    }

    /// Whether EVENTS answers publishes. It is asked only where the last one of this process had no answer, with a bundle
    /// that has no events in it: a nats-server whose disk is full answers everything else.
    pub(crate) async fn check_events(&self) -> Result<(), BusError> {
        let silent = *self.silent.lock().expect("no code panics while it holds this lock");
        let Some(shard) = silent else { return Ok(()) };
        match self.publish_bundle(shard, BundleWriter::default().finish(), PROBE_TIMEOUT).await {
            Ok(()) | Err(PublishError::Full(_) | PublishError::Refused(_)) => Ok(()),
            Err(PublishError::Unavailable(why)) => Err(BusError::Unanswered { what: subject::bundles(shard), why }),
            Err(PublishError::Unknown(_)) => Err(BusError::Unanswered {
                what: "a publish to EVENTS".to_owned(),
                why: "if that lasts its disk is full, or broken; its log says so".to_owned(),
            }),
        }
    }

    /// Publishes a bundle of jobs and waits until JetStream has it; tries for 5 s. A try after an unknown outcome
    /// has the same message id and is marked suspect.
    ///
    /// # Errors
    /// Every error means: leave the jobs to their leases. [`PublishError::Refused`] if JetStream claims to have a
    /// message that was never published before.
    pub async fn publish_jobs(&self, lane: Lane, shard: u16, bundle: Bytes) -> Result<(), PublishError> {
        let subject = subject::jobs(lane, shard);
        let id = format!("{}-{}", self.nonce, self.published_jobs.fetch_add(1, Ordering::Relaxed));
        let deadline = Instant::now() + JOBS_DEADLINE;
        let mut maybe_stored = false;
        let mut pause = PAUSE;
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER_MSG_ID, id.as_str());
            if maybe_stored {
                headers.insert(HEADER_SUSPECT, "1");
            }
            let within = JOBS_ACK_TIMEOUT.min(deadline.saturating_duration_since(Instant::now()));
            let error = match self.publish_acked(&subject, Some(headers), bundle.clone(), within).await {
                Ok(Published::Duplicate) if !maybe_stored => {
                    return Err(PublishError::Refused("a new message id was taken for a duplicate".to_owned()));
                }
                Ok(_) => return Ok(()),
                Err(error @ (PublishError::Refused(_) | PublishError::Full(_))) => return Err(error),
                Err(error) => error,
            };
            maybe_stored |= matches!(error, PublishError::Unknown(_));
            if Instant::now() + pause >= deadline {
                return Err(if maybe_stored { PublishError::Unknown(error.to_string()) } else { error });
            }
            if !self.publishing.is_up_by(deadline).await {
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One publish with its answer. When no stream takes the subject, the streams are declared again and it is
    /// published once more: nothing was stored.
    async fn publish_acked(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        within: Duration,
    ) -> Result<Published, PublishError> {
        let answer = self.publish_once(subject, headers.clone(), payload.clone(), within).await?;
        if answer.status != Some(StatusCode::NO_RESPONDERS) {
            return read_answer(&answer);
        }
        self.declare_after(Instant::now()).await.map_err(|e| PublishError::Unavailable(e.to_string()))?;
        let answer = self.publish_once(subject, headers, payload, within).await?;
        read_answer(&answer)
    }

    pub(crate) async fn publish_once(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        within: Duration,
    ) -> Result<Message, PublishError> {
        if !self.publishing.link.borrow().up {
            return Err(PublishError::Unavailable("no connection to NATS".to_owned()));
        }
        let client = &self.publishing.client;
        let most = client.max_payload();
        if payload.len() > most {
            return Err(PublishError::Refused(format!("{} bytes, and the server takes {most}", payload.len())));
        }
        let mut waiting = self.replies.register();
        let exchange = async {
            let (to, reply) = (subject.to_owned(), waiting.subject.clone());
            let sent = match headers {
                Some(headers) => client.publish_with_reply_and_headers(to, reply, headers, payload).await,
                None => client.publish_with_reply(to, reply, payload).await,
            };
            sent.map_err(|e| PublishError::Unavailable(e.to_string()))?;
            (&mut waiting.answer).await.map_err(|_| PublishError::Unknown("the connection was lost".to_owned()))
        };
        match tokio::time::timeout(within, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(PublishError::Unknown(format!("no answer within {within:?}"))),
        }
    }
}

fn read_answer(answer: &Message) -> Result<Published, PublishError> {
    if let Some(status) = answer.status.filter(|s| *s != StatusCode::OK) {
        return Err(PublishError::Unavailable(match status {
            StatusCode::NO_RESPONDERS => "no stream takes the subject".to_owned(),
            other => format!("status {other}"),
        }));
    }
    read_ack(&answer.payload)
}

fn read_ack(payload: &[u8]) -> Result<Published, PublishError> {
    let ack: PubAck = serde_json::from_slice(payload)
        .map_err(|e| PublishError::Unknown(format!("the answer is not a PubAck: {e}")))?;
    match ack.error {
        None if ack.duplicate => Ok(Published::Duplicate),
        None => Ok(Published::Stored),
        Some(error) => Err(classify(error)),
    }
}

fn classify(error: ApiError) -> PublishError {
    let words = error.description;
    if FULL_CODES.contains(&error.err_code)
        || (words.contains("maximum") && words.contains("exceeded") && error.err_code != TOO_LARGE)
    {
        PublishError::Full(words)
    } else if error.err_code == TOO_LARGE {
        PublishError::Refused(words)
    } else {
        PublishError::Unavailable(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let kind = |text: &str| match read_ack(text.as_bytes()) {
            Ok(Published::Stored) => "stored",
            Ok(Published::Duplicate) => "duplicate",
            Err(PublishError::Full(_)) => "full",
            Err(PublishError::Unavailable(_)) => "unavailable",
            Err(PublishError::Unknown(_)) => "unknown",
            Err(PublishError::Refused(_)) => "refused",
        };
        assert_eq!(kind(r#"{"stream":"EVENTS","seq":1}"#), "stored");
        assert_eq!(kind(r#"{"stream":"JOBS","seq":1,"duplicate":true}"#), "duplicate");
        assert_eq!(kind(r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}"#), "full");
        assert_eq!(
            kind(r#"{"error":{"code":503,"err_code":10077,"description":"no space left on device"}}"#),
            "unavailable"
        );
        assert_eq!(kind(r#"{"error":{"code":500,"err_code":10023,"description":"insufficient resources"}}"#), "full");
        assert_eq!(
            kind(r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#),
            "refused"
        );
        assert_eq!(kind("oops"), "unknown");
    }
}
