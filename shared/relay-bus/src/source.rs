//! Where dispatchers take events from, and deliverers jobs. Pulls happen inside `next`, so nothing more is asked
//! for while the caller has no room; what was asked for before is bounded by count and bytes.

use async_nats::{Client, Message};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::shard::Shard;
use relay_core::subject::{HEADER_ENDPOINT, HEADER_MSG_ID, HEADER_SUSPECT, HEADER_TRACE, Lane};
use tokio_util::sync::CancellationToken;

use crate::ack::AckHandle;
use crate::bus::Bus;
use crate::pull::PullFrom;
use crate::pullers::Pullers;
use crate::topology::MESSAGE_BYTES_MAX;

/// Bytes of one pull request on one of EVENTS.
pub(crate) const EVENTS_PULL_BYTES: usize = 8 * 1024 * 1024;
const _: () = assert!(EVENTS_PULL_BYTES > MESSAGE_BYTES_MAX && JOBS_PULL_BYTES > MESSAGE_BYTES_MAX);
/// Messages of one pull request on EVENTS.
const EVENTS_PULL_MESSAGES: usize = 500;
/// Bytes that one [`EventSource::next`] gathers before it stops.
const EVENTS_NEXT_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of one pull request on JOBS.
pub(crate) const JOBS_PULL_BYTES: usize = 4 * 1024 * 1024;
/// Bundles of one pull request on a lane of JOBS: few, so that the pods share the work.
const JOBS_PULL_MESSAGES: usize = 8;

/// A message as EVENTS stores it: a bundle, or an event that a producer published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// The subject it was published on.
    pub subject: String,
    /// Header `Nats-Msg-Id`: the tenant's idempotency key.
    pub msg_id: Option<String>,
    /// Header `Relay-Endpoint-Id`.
    pub endpoint_id: Option<String>,
    /// Header `traceparent`.
    pub trace: Option<String>,
    /// The body.
    pub payload: Bytes,
    /// The stream: one of EVENTS.
    pub stream: &'static str,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream stored it, by the server's clock.
    pub published: DateTime<Utc>,
}

/// A message of EVENTS that was given to this dispatcher.
#[derive(Debug)]
pub struct EventMessage {
    /// What is stored.
    pub message: StoredMessage,
    /// How often it was delivered, with this time. Never evidence against the message.
    pub delivered: u64,
    /// The way to answer.
    pub ack: AckHandle,
}

/// A bundle of jobs.
#[derive(Debug)]
pub struct JobMessage {
    /// The encoded jobs.
    pub payload: Bytes,
    /// The lane it was taken from.
    pub lane: Lane,
    /// How often it was delivered, with this time.
    pub delivered: u64,
    /// It was published a second time after an unknown outcome.
    pub marked: bool,
    /// The way to answer.
    pub ack: AckHandle,
}

/// The messages of EVENTS, shared with all dispatchers.
pub struct EventSource {
    pullers: Pullers,
    client: Client,
}

/// The messages of some lanes of JOBS, shared with all deliverers.
pub struct JobSource {
    pullers: Pullers,
    client: Client,
}

impl Bus {
    /// The messages of every EVENTS, taken in turn.
    pub fn events(&self) -> EventSource {
        let from = PullFrom { shard: Shard::FIRST, lane: None, batch: EVENTS_PULL_MESSAGES, bytes: EVENTS_PULL_BYTES };
        EventSource { pullers: Pullers::new(self, vec![from]), client: self.consuming.client.clone() }
    }

    /// The jobs of these lanes of every JOBS, taken in turn.
    pub fn jobs(&self, lanes: &[Lane]) -> JobSource {
        let from = lanes.iter().map(|lane| PullFrom {
            shard: Shard::FIRST,
            lane: Some(*lane),
            batch: JOBS_PULL_MESSAGES,
            bytes: JOBS_PULL_BYTES,
        });
        JobSource { pullers: Pullers::new(self, from.collect()), client: self.consuming.client.clone() }
    }
}

impl EventSource {
    /// Waits for a message and returns it with what else is there, up to `max` messages (or 8 MiB): it never waits
    /// for more. Empty only when `cancel` fires. Dropping the future loses no message.
    pub async fn next(&mut self, max: usize, cancel: &CancellationToken) -> Vec<EventMessage> {
        let mut taken = Vec::new();
        while taken.is_empty() {
            let Some((from, message)) = cancel.run_until_cancelled(self.pullers.next()).await else { break };
            let mut bytes = message.payload.len();
            taken.extend(event_message(message, from, &self.client));
            while taken.len() < max && bytes < EVENTS_NEXT_BYTES {
                let Some((from, message)) = self.pullers.ready() else { break };
                bytes += message.payload.len();
                taken.extend(event_message(message, from, &self.client));
            }
        }
        taken
    }
}

impl JobSource {
    /// Waits for the next bundle; `None` when `cancel` fires. Dropping the future loses no message.
    pub async fn next(&mut self, cancel: &CancellationToken) -> Option<JobMessage> {
        loop {
            let (from, message) = cancel.run_until_cancelled(self.pullers.next()).await?;
            if let Some(job) = job_message(message, from, &self.client) {
                return Some(job);
            }
        }
    }

    /// A bundle that has come already; asks for no more. For a caller that stops and gives back what it has.
    pub fn ready(&mut self) -> Option<JobMessage> {
        loop {
            let (from, message) = self.pullers.ready()?;
            if let Some(job) = job_message(message, from, &self.client) {
                return Some(job);
            }
        }
    }
}

fn event_message(message: Message, from: PullFrom, client: &Client) -> Option<EventMessage> {
    let (place, ack) = place_and_ack(&message, client)?;
    let header = |name: &str| message.headers.as_ref().and_then(|h| h.get(name)).map(|v| v.as_str().to_owned());
    let message = StoredMessage {
        msg_id: header(HEADER_MSG_ID),
        endpoint_id: header(HEADER_ENDPOINT),
        trace: header(HEADER_TRACE),
        subject: message.subject.into_string(),
        payload: message.payload,
        stream: from.stream(),
        sequence: place.sequence,
        published: place.published,
    };
    Some(EventMessage { message, delivered: place.delivered, ack })
}

fn job_message(message: Message, from: PullFrom, client: &Client) -> Option<JobMessage> {
    let lane = from.lane?;
    let (place, ack) = place_and_ack(&message, client)?;
    let marked = message.headers.as_ref().is_some_and(|h| h.get(HEADER_SUSPECT).is_some());
    Some(JobMessage { payload: message.payload, lane, delivered: place.delivered, marked, ack })
}

/// `None` (and an alarm): not a message of JetStream, which can't be answered either.
fn place_and_ack(message: &Message, client: &Client) -> Option<(Place, AckHandle)> {
    let reply = message.reply.clone()?;
    let place = Place::parse(reply.as_str());
    if place.is_none() {
        tracing::error!(subject = message.subject.as_str(), reply = reply.as_str(), "not a message of JetStream");
    }
    Some((place?, AckHandle::new(client.clone(), reply)))
}

/// What the reply subject of a delivered message says.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    delivered: u64,
    sequence: u64,
    published: DateTime<Utc>,
}

impl Place {
    /// `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time, ns>.<pending>`; newer servers may
    /// have domain and account before the stream, and a random token at the end (ADR-15 of NATS).
    fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let numbers = match tokens.len() {
            7 => &tokens[2..],
            n if n >= 9 => &tokens[4..],
            _ => return None,
        };
        let number = |i: usize| numbers.get(i)?.parse::<u64>().ok();
        let nanos = i64::try_from(number(3)?).ok()?;
        Some(Self { delivered: number(0)?, sequence: number(1)?, published: DateTime::from_timestamp_nanos(nanos) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        let place =
            Place { delivered: 2, sequence: 77, published: DateTime::from_timestamp_nanos(1_700_000_000_000_000_001) };
        let short = "$JS.ACK.EVENTS.dispatcher.2.77.5.1700000000000000001.9";
        let long = "$JS.ACK.hub.ACC.EVENTS.dispatcher.2.77.5.1700000000000000001.9.x";
        assert_eq!(Place::parse(short), Some(place));
        assert_eq!(Place::parse(long), Place::parse(short));
        for bad in ["_INBOX.x", "$JS.ACK.EVENTS.dispatcher", "$JS.ACK.EVENTS.dispatcher.a.77.5.1.9"] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn fuzz_reply_subjects() {
        let seeds = [
            "$JS.ACK.EVENTS.dispatcher.2.77.5.1700000000000000001.9",
            "$JS.ACK.hub.ACC.EVENTS.dispatcher.2.77.5.1700000000000000001.9.x",
        ];
        let words: &[&[u8]] = &[b"$JS.ACK.", b".", b"9223372036854775808"];
        relay_fuzz::fuzz("reply subjects", &seeds, words, |input| {
            let place = Place::parse(relay_fuzz::text(input)?)?;
            Some(place.published.timestamp() > 0)
        });
    }
}
