//! Publishing what matters: bundles of events and of jobs, each with its PubAck. Steps 2 and 7 of an event's way.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures_util::future::join_all;
use relay_core::bundle::BundleWriter;
use relay_core::shard::{Shard, StreamKind};
use relay_core::subject::{self, HEADER_MSG_ID, HEADER_SUSPECT, Lane};
use serde::Deserialize;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::error::{BusError, PublishError};
use crate::shards::{Heard, Turns};

/// How long EVENTS may take to store a bundle before the outcome counts as unknown. A server that syncs each message
/// answers nobody until it has stored all that had arrived: a burst of a stranger's messages takes seconds.
const EVENTS_ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where somebody waits to hear whether it stores anything at all.
const PROBE_TIMEOUT: Duration = Duration::from_millis(700);
/// The same for JOBS, which isn't synced.
const JOBS_ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long jobs are tried again before they are left to their leases.
/// Longer than a cluster takes to choose another leader for a stream (5 to 11 s seen).
const JOBS_DEADLINE: Duration = Duration::from_secs(15);
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
    /// No stream takes the subject: nothing was stored.
    NoStream,
}

/// A publish that is waited for. At its end it notes what it heard of the stream; also where nobody waits for it any longer,
/// since a request's deadline may end a little before the publish's own.
struct Waiting<'a> {
    bus: &'a Bus,
    kind: StreamKind,
    shard: Shard,
    /// What is to be noted, if anything.
    heard: Option<Heard>,
}

impl<'a> Waiting<'a> {
    fn begin(bus: &'a Bus, kind: StreamKind, shard: Shard) -> Self {
        bus.turns(kind).began(shard);
        Self { bus, kind, shard, heard: Some(Heard::Nothing) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut turns = self.bus.turns(self.kind);
        turns.ended(self.shard);
        if let Some(heard) = self.heard {
            turns.note(self.shard, heard, Instant::now());
        }
    }
}

impl Bus {
    /// Publishes a bundle of events to one of EVENTS and waits until JetStream has stored it. They take turns; where one
    /// says that it didn't store it, the next one is tried.
    ///
    /// # Errors
    /// [`PublishError::Full`] when all refuse because they are full. After [`PublishError::Unknown`] publish the same bytes
    /// again, wherever they go: the ids inside make a second copy harmless.
    pub async fn publish_events(&self, bundle: Bytes) -> Result<(), PublishError> {
        let mut refused = None;
        let mut is_missing = false;
        for shard in self.order(StreamKind::Events) {
            let error = match self.publish_bundle(shard, bundle.clone(), EVENTS_ACK_TIMEOUT).await {
                Ok(Published::NoStream) => {
                    is_missing |= shard == Shard::FIRST;
                    no_stream()
                }
                Err(error @ (PublishError::Full(_) | PublishError::Unavailable(_))) => error,
                done => return done.map(drop),
            };
            // Where all are full, trying again doesn't help; else it may.
            refused = refused.filter(|_| matches!(error, PublishError::Full(_))).or(Some(error));
            if !self.publishing.link.borrow().up {
                break;
            }
        }
        if !is_missing {
            return Err(refused.unwrap_or_else(no_stream));
        }
        // The first one is everybody's to make, and was not needed as long as another one took it.
        self.declare_after(Instant::now()).await.map_err(|e| PublishError::Unavailable(e.to_string()))?;
        match self.publish_bundle(Shard::FIRST, bundle, EVENTS_ACK_TIMEOUT).await? {
            Published::NoStream => Err(no_stream()),
            Published::Stored | Published::Duplicate => Ok(()),
        }
    }

    async fn publish_bundle(&self, shard: Shard, bundle: Bytes, within: Duration) -> Result<Published, PublishError> {
        self.publish_acked(StreamKind::Events, shard, (&subject::bundles(shard.number()), None, bundle), within).await
    }

    /// Whether EVENTS answers publishes. Only streams are asked that didn't answer the last one of this process there, with a
    /// bundle that has no events in it: a nats-server whose disk is full answers everything else. One that stores is enough.
    pub(crate) async fn check_events(&self) -> Result<(), BusError> {
        let (silent, others): (Vec<_>, Vec<_>) = {
            let turns = self.turns(StreamKind::Events);
            self.known().used(StreamKind::Events).into_iter().partition(|shard| turns.is_silent(*shard))
        };
        let answers = join_all(silent.into_iter().map(|shard| self.probe(shard))).await;
        match answers.into_iter().partition::<Vec<_>, _>(Result::is_ok) {
            (answering, _) if !answering.is_empty() || !others.is_empty() => Ok(()),
            (_, errors) => errors.into_iter().next().unwrap_or(Ok(())),
        }
    }

    async fn probe(&self, shard: Shard) -> Result<(), BusError> {
        match self.publish_bundle(shard, BundleWriter::default().finish(), PROBE_TIMEOUT).await {
            Ok(Published::NoStream) => {
                let why = no_stream().to_string();
                Err(BusError::Unanswered { what: subject::bundles(shard.number()), why })
            }
            Ok(_) | Err(PublishError::Full(_) | PublishError::Refused(_)) => Ok(()),
            Err(PublishError::Unavailable(why)) => {
                Err(BusError::Unanswered { what: subject::bundles(shard.number()), why })
            }
            Err(PublishError::Unknown(_)) => Err(BusError::Unanswered {
                what: format!("a publish to {}", StreamKind::Events.stream(shard)),
                why: "if that lasts its disk is full, or broken; its log says so".to_owned(),
            }),
        }
    }

    /// The streams of a kind in the order in which the next publish tries them; never none.
    fn order(&self, kind: StreamKind) -> Vec<Shard> {
        self.turns(kind).order(self.known().used(kind), Instant::now())
    }

    /// Notes what was heard of a stream.
    pub(crate) fn note(&self, kind: StreamKind, shard: Shard, heard: Heard) {
        self.turns(kind).note(shard, heard, Instant::now());
    }

    fn turns(&self, kind: StreamKind) -> MutexGuard<'_, Turns> {
        let turns = match kind {
            StreamKind::Events => &self.event_turns,
            StreamKind::Jobs => &self.job_turns,
        };
        turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a bundle of jobs to one of JOBS and waits until JetStream has it; tries for 15 s. A try after an unknown
    /// outcome goes to the same stream, has the same message id and is marked suspect.
    ///
    /// # Errors
    /// Every error means: leave the jobs to their leases. [`PublishError::Refused`] if JetStream claims to have a
    /// message that was never published before.
    pub async fn publish_jobs(&self, lane: Lane, bundle: Bytes) -> Result<(), PublishError> {
        let id = format!("{}-{}", self.nonce, self.published_jobs.fetch_add(1, Ordering::Relaxed));
        let deadline = Instant::now() + JOBS_DEADLINE;
        let (mut maybe_stored, mut is_missing) = (false, false);
        let mut pause = PAUSE;
        let (mut shard, mut others) = self.next_jobs();
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER_MSG_ID, id.as_str());
            if maybe_stored {
                headers.insert(HEADER_SUSPECT, "1");
            }
            let within = JOBS_ACK_TIMEOUT.min(deadline.saturating_duration_since(Instant::now()));
            let subject = subject::jobs(lane, shard.number());
            let message = (subject.as_str(), Some(headers), bundle.clone());
            let error = match self.publish_acked(StreamKind::Jobs, shard, message, within).await {
                Ok(Published::Duplicate) if !maybe_stored => {
                    return Err(PublishError::Refused("a new message id was taken for a duplicate".to_owned()));
                }
                Ok(Published::Stored | Published::Duplicate) => return Ok(()),
                Ok(Published::NoStream) => {
                    is_missing = true;
                    no_stream()
                }
                Err(error @ PublishError::Refused(_)) => return Err(error),
                Err(error) => error,
            };
            maybe_stored |= matches!(error, PublishError::Unknown(_));
            // De-duplication knows the messages of one stream only: where one may have it, no other one may get it.
            if !maybe_stored
                && self.publishing.link.borrow().up
                && let Some(next) = others.next()
            {
                shard = next;
                continue;
            }
            if matches!(error, PublishError::Full(_)) {
                return Err(error);
            }
            if std::mem::take(&mut is_missing)
                && let Err(error) = self.declare_after(Instant::now()).await
            {
                tracing::debug!(%error, "JOBS is missing, and was not made");
            }
            if Instant::now() + pause >= deadline {
                return Err(if maybe_stored { PublishError::Unknown(error.to_string()) } else { error });
            }
            if !self.publishing.is_up_by(deadline).await {
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            if !maybe_stored {
                (shard, others) = self.next_jobs();
            }
        }
    }

    /// Which JOBS is tried next, and which after it.
    fn next_jobs(&self) -> (Shard, impl Iterator<Item = Shard> + use<>) {
        let mut order = self.order(StreamKind::Jobs).into_iter();
        (order.next().unwrap_or(Shard::FIRST), order)
    }

    /// One publish with its answer, noted for the next one's choice.
    async fn publish_acked(
        &self,
        kind: StreamKind,
        shard: Shard,
        (subject, headers, payload): (&str, Option<HeaderMap>, Bytes),
        within: Duration,
    ) -> Result<Published, PublishError> {
        let mut waiting = Waiting::begin(self, kind, shard);
        let answer = self.publish_once(subject, headers, payload, within).await;
        let outcome = answer.and_then(|answer| read_answer(&answer));
        if matches!(outcome, Ok(Published::NoStream)) {
            // It is gone, or isn't used any more.
            self.bell.notify_one();
        }
        waiting.heard = heard(&outcome, self.publishing.link.borrow().up);
        outcome
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

fn no_stream() -> PublishError {
    PublishError::Unavailable("no stream takes the subject".to_owned())
}

/// What an outcome says of the stream; nothing where it is the connection's.
fn heard(outcome: &Result<Published, PublishError>, is_up: bool) -> Option<Heard> {
    match outcome {
        Ok(Published::NoStream) => Some(Heard::Fails),
        Ok(_) | Err(PublishError::Refused(_)) => Some(Heard::Stores),
        Err(PublishError::Full(_)) => Some(Heard::Refuses),
        Err(PublishError::Unavailable(_)) => is_up.then_some(Heard::Fails),
        Err(PublishError::Unknown(_)) => Some(Heard::Nothing),
    }
}

fn read_answer(answer: &Message) -> Result<Published, PublishError> {
    match answer.status.filter(|s| *s != StatusCode::OK) {
        Some(StatusCode::NO_RESPONDERS) => Ok(Published::NoStream),
        Some(other) => Err(PublishError::Unavailable(format!("status {other}"))),
        None => read_ack(&answer.payload),
    }
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
            Ok(Published::NoStream) => "no stream",
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
