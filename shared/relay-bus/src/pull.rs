//! Pulling from one consumer: two requests outstanding, made again as they are used up, expire or fail. Written
//! on plain requests because the client library's pull streams hide statuses, swallow some errors and count wrongly
//! after a reconnect. Used by [`crate::pullers`] alone.
//!
//! Invariant: while the connection is up and nothing is wrong, the server holds at least one request of ours, so
//! a message is pushed the moment it is stored.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::StreamExt as _;
use relay_core::shard::{Shard, StreamKind};
use relay_core::subject::{DISPATCHER_CONSUMER, Lane};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::error::BusError;
use crate::topology::nanos;

/// The server ends a request after this time.
const EXPIRES: Duration = Duration::from_secs(20);
/// The server shows this often that it still has a request of ours.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Silent for this long, it has lost our requests (or itself).
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// First pause after a failure; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What to pull.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PullFrom {
    /// The stream among those of its kind.
    pub shard: Shard,
    /// The lane of jobs; none: events.
    pub lane: Option<Lane>,
    /// Messages per request; up to twice as many are on their way to us.
    pub batch: usize,
    /// Bytes per request: above the largest message, or that message never comes.
    pub bytes: usize,
}

impl PullFrom {
    pub fn kind(&self) -> StreamKind {
        if self.lane.is_some() { StreamKind::Jobs } else { StreamKind::Events }
    }

    pub fn stream(&self) -> &'static str {
        self.kind().stream(self.shard)
    }

    fn consumer(&self) -> String {
        self.lane.map_or_else(|| DISPATCHER_CONSUMER.to_owned(), Lane::consumer)
    }
}

/// The pulling from one consumer.
pub(crate) struct Puller {
    bus: Bus,
    from: PullFrom,
    subscriber: Option<(Subscriber, String)>,
    /// Messages that the server may still send without another request.
    credit: usize,
    epoch: u64,
    seen: Instant,
    failures: u32,
    retry_at: Option<Instant>,
    /// Something was missing then: declare before the next request.
    missed: Option<Instant>,
    /// Doing so. Beside the pulling: a stream without a leader makes it wait, and the other pullers are served meanwhile.
    declaring: Option<JoinHandle<Result<(), BusError>>>,
    /// Whether a message came since the last request.
    got_some: bool,
}

impl Puller {
    pub fn new(bus: Bus, from: PullFrom) -> Self {
        Self {
            bus,
            from,
            subscriber: None,
            credit: 0,
            epoch: 0,
            seen: Instant::now(),
            failures: 0,
            retry_at: None,
            missed: None,
            declaring: None,
            got_some: false,
        }
    }

    /// Where it pulls from.
    pub fn from(&self) -> PullFrom {
        self.from
    }

    /// Sends the requests that are missing. Dropping the future at any point leaves at worst a request too many.
    pub async fn prepare(&mut self) {
        let link = *self.bus.consuming.link.borrow();
        if link.epoch != self.epoch {
            // The server forgot our requests with the old connection.
            self.epoch = link.epoch;
            self.credit = 0;
            self.retry_at = None;
        }
        if !link.up || self.retry_at.is_some_and(|at| at > Instant::now()) || self.credit > self.from.batch {
            return;
        }
        if self.declaring.is_some() {
            return;
        }
        if let Some(missed) = self.missed {
            // It may be gone for good: then the look says so, and this puller ends.
            self.bus.bell.notify_one();
            // It wakes the caller itself.
            self.retry_at = None;
            self.declaring = Some(tokio::spawn(declare(self.bus.clone(), self.from, missed)));
        } else if let Err(why) = self.request().await {
            self.fail(&why);
        }
    }

    async fn request(&mut self) -> Result<(), String> {
        let client = &self.bus.consuming.client;
        let inbox = match &self.subscriber {
            Some((_, inbox)) => inbox.clone(),
            None => {
                let inbox = client.new_inbox();
                let subscriber = client.subscribe(inbox.clone()).await.map_err(|e| e.to_string())?;
                self.subscriber = Some((subscriber, inbox.clone()));
                inbox
            }
        };
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.from.stream(), self.from.consumer());
        let body = json!({
            "batch": self.from.batch,
            "max_bytes": self.from.bytes,
            "expires": nanos(EXPIRES),
            "idle_heartbeat": nanos(HEARTBEAT),
        })
        .to_string();
        while self.credit <= self.from.batch {
            let sent = client.publish_with_reply(subject.clone(), inbox.clone(), body.clone().into());
            sent.await.map_err(|e| e.to_string())?;
            if self.credit == 0 {
                self.seen = Instant::now();
            }
            self.credit += self.from.batch;
            self.got_some = false;
        }
        self.retry_at = None;
        Ok(())
    }

    /// The next thing that came: a message for the caller, or `None` for something that was dealt with here.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        if let Some(declaring) = &mut self.declaring
            && let Poll::Ready(declared) = Pin::new(declaring).poll(cx)
        {
            self.declaring = None;
            match declared {
                Ok(Ok(())) => self.missed = None,
                Ok(Err(error)) => self.fail(&error.to_string()),
                Err(error) => self.fail(&format!("declaring the streams: {error}")),
            }
            return Poll::Ready(None);
        }
        let Some((subscriber, _)) = &mut self.subscriber else { return Poll::Pending };
        match subscriber.poll_next_unpin(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(message)) => Poll::Ready(self.accept(message)),
            Poll::Ready(None) => {
                self.subscriber = None;
                self.fail("the subscription ended");
                Poll::Ready(None)
            }
        }
    }

    fn accept(&mut self, message: Message) -> Option<Message> {
        self.seen = Instant::now();
        let words = message.description.clone().unwrap_or_default();
        match message.status.unwrap_or(StatusCode::OK) {
            StatusCode::OK => {
                self.credit = self.credit.saturating_sub(1);
                self.failures = 0;
                self.got_some = true;
                return message.reply.is_some().then_some(message);
            }
            StatusCode::IDLE_HEARTBEAT => {}
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => self.credit = self.credit.saturating_sub(unused(&message)),
            StatusCode::REQUEST_TERMINATED
                if words.contains("Exceeds MaxBytes") || words.contains("Batch Completed") =>
            {
                self.credit = self.credit.saturating_sub(unused(&message));
                if words.contains("Exceeds MaxBytes") && !self.got_some {
                    self.from.bytes = self.from.bytes.saturating_mul(2);
                    let (stream, consumer) = (self.from.stream(), self.from.consumer());
                    tracing::warn!(stream, consumer, bytes = self.from.bytes, "pulling larger messages");
                }
            }
            // Its consumer has another leader, or will have one: nothing is missing.
            status if words.contains("Leadership Change") => self.fail(&format!("{status} {words}")),
            status => {
                // Mostly "Consumer Deleted" and no responders; asking the server what is there costs little.
                self.missed = Some(Instant::now());
                self.fail(&format!("{status} {words}"));
            }
        }
        None
    }

    /// When to look at [`Self::check_time`] again; `waiting_since` is when the caller began to listen.
    pub fn wake_at(&self, waiting_since: Instant) -> Option<Instant> {
        match self.retry_at {
            Some(at) => Some(at),
            None if self.credit > 0 => Some(self.seen.max(waiting_since) + SILENCE_MAX),
            None => None,
        }
    }

    /// Notices a server that went silent.
    pub fn check_time(&mut self, waiting_since: Instant) {
        let is_silent = self.seen.max(waiting_since).elapsed() >= SILENCE_MAX;
        if self.retry_at.is_none() && self.credit > 0 && is_silent && self.bus.consuming.link.borrow().up {
            self.subscriber = None;
            // The first time its leader has mostly moved. What is missing says so when it is asked.
            self.missed = (self.failures > 0).then(Instant::now);
            self.fail("no heartbeat from the server");
        }
    }

    fn fail(&mut self, why: &str) {
        self.bus.disruption.fire();
        if self.failures.is_power_of_two() || self.failures == 0 {
            let (stream, consumer) = (self.from.stream(), self.from.consumer());
            tracing::warn!(stream, consumer, why, "pull failed; pulling again");
        }
        let pause = PAUSE.saturating_mul(1 << self.failures.min(6)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.credit = 0;
        self.retry_at = Some(Instant::now() + pause);
    }
}

/// Makes what a puller needs where it is missing.
async fn declare(bus: Bus, from: PullFrom, missed: Instant) -> Result<(), BusError> {
    bus.declare_after(missed).await?;
    if from.shard == Shard::FIRST { Ok(()) } else { bus.declare_consumers(from.kind(), from.shard).await }
}

/// Messages that a request which ended had not used up: all of it where the server doesn't say.
fn unused(status: &Message) -> usize {
    let header = status.headers.as_ref().and_then(|h| h.get("Nats-Pending-Messages"));
    header.and_then(|v| v.as_str().parse().ok()).unwrap_or(usize::MAX)
}
