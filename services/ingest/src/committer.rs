//! Step 3 of an event's way: group commit. Requests hand a checked event over and wait; while publishes are in
//! flight the next group gathers, goes out as one bundle, and one fsync of JetStream serves all of it.
//!
//! Called by the event routes through [`Committer::submit`]; the publishing itself comes in as a closure, so the
//! tests need no server. Invariants: a request is answered with success only after the acknowledgement of the
//! bundle its event is in; whatever a bundle's outcome, each of its requests is answered; a cancelled request
//! changes nothing for the others; memory is bounded by [`CommitLimits`]. What would wait too long is refused at once:
//! for the accept log ([`outlook`]), or for a processor ([`Shedder`], by [`Committer::takes`]).

mod outlook;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use metrics::Histogram;
use relay_core::bundle::BundleWriter;
use relay_core::event::Event;
use relay_core::gathering::{LINGER_MAX, Pulse};
use relay_core::ids::TenantId;
use relay_core::shedding::Shedder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use self::outlook::Outlook;

/// [`CommitLimits::lag_max`] where nothing else is set, in milliseconds.
pub const LAG_MS_MAX: u16 = 5;
/// So many requests may always wait for their answer.
const REQUESTS_ALWAYS: usize = 256;
/// A group gathers at most so many times [`CommitLimits::linger`]: a bundle costs JetStream as much as some 80 events in
/// it (docs/performance.md), so the faster they come the longer it pays to wait.
const LINGER_GROWTH_MAX: f64 = 3.0;
/// Up to so many events a second a group gathers for [`CommitLimits::linger`]; beyond them longer, in proportion.
const RATE_OF_LINGER: f64 = 1_000.0;
/// From so many events on a group waits for no others.
const SMALL_GROUP: usize = 64;
/// Pause between two tries of the same bundle.
const REPUBLISH_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of the committer.
#[derive(Clone, Copy, Debug)]
pub struct CommitLimits {
    /// Events waiting at most.
    pub queue_events: usize,
    /// Payload bytes of waiting events at most.
    pub queue_bytes: usize,
    /// How long an event may wait as far as it can be told when it comes; one that would wait longer is refused.
    pub wait_max: Duration,
    /// How long after its answer a request goes on, as borne while many wait: beyond it the processors don't keep up.
    pub lag_max: Duration,
    /// Publishes in flight at most.
    pub in_flight: usize,
    /// How long a small group gathers from [`Self::linger_from_rate`] on; up to [`LINGER_GROWTH_MAX`] times as long where
    /// events come faster than [`RATE_OF_LINGER`].
    pub linger: Duration,
    /// From how many events per second on it gathers.
    pub linger_from_rate: f64,
    /// How long after its arrival an event is still published (again).
    pub deadline: Duration,
}

impl Default for CommitLimits {
    fn default() -> Self {
        Self {
            queue_events: 20_000,
            queue_bytes: 64 * 1024 * 1024,
            wait_max: Duration::from_millis(200),
            lag_max: Duration::from_millis(LAG_MS_MAX.into()),
            in_flight: 2,
            linger: Duration::from_millis(1),
            linger_from_rate: 250.0,
            deadline: Duration::from_secs(5),
        }
    }
}

/// How a publish failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PublishFailure {
    /// The accept log has no room: nothing was stored.
    Full,
    /// The accept log will never take this message.
    Refused,
    /// Not stored, or nobody knows: the same bundle may be published again, its ids are the same.
    Uncertain,
}

/// Why an event was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommitError {
    /// Too many events or bytes wait already, or too long.
    #[error("too many events are waiting")]
    Overloaded,
    /// Too many requests wait for a processor.
    #[error("too many requests are waiting")]
    Busy,
    /// The accept log has no room.
    #[error("the accept log is full")]
    Full,
    /// The accept log will never take the message that the event is in (its limit is below ours).
    #[error("the accept log refuses a message of this size")]
    Refused,
    /// No acknowledgement within the deadline.
    #[error("the accept log did not acknowledge in time")]
    Unavailable,
    /// The committer has stopped.
    #[error("the service is shutting down")]
    Stopped,
}

struct Waiting {
    event: Event,
    arrived: Instant,
    done: oneshot::Sender<Answer>,
    room: Share,
}

/// The outcome of an event, and when it was known: the request that waits for it goes on when a processor is free.
#[derive(Clone, Copy, Debug)]
struct Answer {
    outcome: Result<(), CommitError>,
    at: Instant,
}

/// A part of what is counted together: a waiting event's bytes, or a request that waits. Given back when it is dropped.
struct Share {
    n: usize,
    of: Arc<AtomicUsize>,
}

impl Share {
    /// Takes it, and says how much was taken before.
    fn take(n: usize, of: &Arc<AtomicUsize>) -> (Self, usize) {
        let before = of.fetch_add(n, Ordering::Relaxed);
        (Self { n, of: Arc::clone(of) }, before)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.n, Ordering::Relaxed);
    }
}

/// The way in. Cheap to clone.
#[derive(Clone)]
pub struct Committer {
    queue: mpsc::Sender<Waiting>,
    used_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    outlook: SharedOutlook,
    wait_max: Duration,
    requests: Arc<AtomicUsize>,
    shedder: Arc<Mutex<Shedder>>,
}

/// The outlook, written by the loop and read by requests.
#[derive(Clone)]
struct SharedOutlook(Arc<Mutex<Outlook>>);

impl SharedOutlook {
    fn lock(&self) -> MutexGuard<'_, Outlook> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the committer measures.
#[derive(Clone)]
pub struct CommitMetrics {
    /// Events per bundle.
    pub bundle_events: Histogram,
    /// Seconds from the first publish of a bundle to its outcome.
    pub publish_seconds: Histogram,
}

impl CommitMetrics {
    /// Registers the metrics with the installed recorder.
    pub fn register() -> Self {
        Self {
            bundle_events: metrics::histogram!("relay_ingest_bundle_events"),
            publish_seconds: metrics::histogram!("relay_ingest_publish_seconds"),
        }
    }
}

/// The other end of the queue: [`CommitLoop::run`] gathers and publishes.
pub struct CommitLoop<P> {
    queue: mpsc::Receiver<Waiting>,
    publish: P,
    limits: CommitLimits,
    metrics: CommitMetrics,
    outlook: SharedOutlook,
}

/// A committer that publishes with `publish`, and the loop that does it.
pub fn committer<P, F>(publish: P, limits: CommitLimits, metrics: CommitMetrics) -> (Committer, CommitLoop<P>)
where
    P: Fn(Bytes) -> F + Clone,
    F: Future<Output = Result<(), PublishFailure>>,
{
    let (sender, queue) = mpsc::channel(limits.queue_events);
    let outlook = SharedOutlook(Arc::new(Mutex::new(Outlook::new(Instant::now()))));
    let committer = Committer {
        queue: sender,
        used_bytes: Arc::default(),
        bytes_max: limits.queue_bytes,
        outlook: outlook.clone(),
        wait_max: limits.wait_max,
        requests: Arc::default(),
        shedder: Arc::new(Mutex::new(Shedder::new(limits.lag_max))),
    };
    (committer, CommitLoop { queue, publish, limits, metrics, outlook })
}

impl Committer {
    /// Whether a request of this tenant is taken, asked before anything is done for it.
    ///
    /// # Errors
    /// [`CommitError::Busy`]: many wait, and the processors don't keep up with them.
    pub fn takes(&self, tenant: &TenantId) -> Result<(), CommitError> {
        let few = self.requests.load(Ordering::Relaxed) < REQUESTS_ALWAYS;
        if few || self.shedder().takes(tenant, Instant::now().into_std()) { Ok(()) } else { Err(CommitError::Busy) }
    }

    /// Waits until `event` is on disk in the accept log. Dropping the future only gives up the answer: the
    /// event may still be published.
    pub async fn submit(&self, event: Event) -> Result<(), CommitError> {
        let _waits = Share::take(1, &self.requests);
        self.heard(self.enqueue(event)?.await)
    }

    /// Waits likewise for many, which are handed over together and so share bundles. One outcome each, in their order.
    pub async fn submit_all(&self, events: Vec<Event>) -> Vec<Result<(), CommitError>> {
        let _waits = Share::take(1, &self.requests);
        let waiting: Vec<_> = events.into_iter().map(|event| self.enqueue(event)).collect();
        let mut outcomes = Vec::with_capacity(waiting.len());
        for answer in waiting {
            outcomes.push(match answer {
                // What its neighbours waited for is no lag of its own.
                Ok(answer) => answer.await.map_or(Err(CommitError::Stopped), |answer| answer.outcome),
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    fn heard(&self, answer: Result<Answer, oneshot::error::RecvError>) -> Result<(), CommitError> {
        let Ok(Answer { outcome, at }) = answer else { return Err(CommitError::Stopped) };
        let now = Instant::now();
        self.shedder().lagged(now.saturating_duration_since(at), now.into_std());
        outcome
    }

    fn shedder(&self) -> MutexGuard<'_, Shedder> {
        // Nothing panics while it is held.
        self.shedder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, event: Event) -> Result<oneshot::Receiver<Answer>, CommitError> {
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        // Few never wait long, and spare the look.
        if waiting >= outlook::ALWAYS && self.outlook.lock().wait(waiting, Instant::now()) > self.wait_max {
            return Err(CommitError::Overloaded);
        }
        let bytes = event.payload.len();
        let (room, before) = Share::take(bytes, &self.used_bytes);
        if before + bytes > self.bytes_max {
            return Err(CommitError::Overloaded);
        }
        let (done, outcome) = oneshot::channel();
        self.queue.try_send(Waiting { event, arrived: Instant::now(), done, room }).map_err(
            |refused| match refused {
                mpsc::error::TrySendError::Full(_) => CommitError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => CommitError::Stopped,
            },
        )?;
        Ok(outcome)
    }
}

impl<P, F> CommitLoop<P>
where
    P: Fn(Bytes) -> F + Clone,
    F: Future<Output = Result<(), PublishFailure>>,
{
    /// Works until `stop` fires; then takes nothing new, and ends when everything that waited is answered.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut flights = FuturesUnordered::new();
        let mut pulse = Pulse::default();
        let mut left_over = VecDeque::with_capacity(1);
        loop {
            // While all slots are taken, the next group gathers in the queue.
            while flights.len() >= self.limits.in_flight {
                flights.next().await;
            }
            // The bundle before it was full, so this one has waited.
            let is_left_over = !left_over.is_empty();
            let first = match left_over.pop_front() {
                Some(waiting) => waiting,
                None => tokio::select! {
                    biased;
                    () = stop.cancelled(), if !self.queue.is_closed() => {
                        self.queue.close();
                        continue;
                    }
                    Some(()) = flights.next(), if !flights.is_empty() => continue,
                    waiting = self.queue.recv() => match waiting {
                        Some(waiting) => waiting,
                        None => break,
                    },
                },
            };
            if !is_left_over {
                self.wait_for_others(&mut flights, pulse.per_second(Instant::now().into_std())).await;
            }
            let group = self.gather(first, &mut left_over);
            if !group.requests.is_empty() {
                pulse.observe(group.requests.len(), Instant::now().into_std());
                self.metrics.bundle_events.record(count(group.requests.len()));
                let more = !left_over.is_empty() || !self.queue.is_empty();
                self.outlook.lock().began(group.requests.len(), Instant::now());
                let seconds = self.metrics.publish_seconds.clone();
                flights.push(fly(self.publish.clone(), group, seconds, self.outlook.clone(), more));
            }
        }
        while flights.next().await.is_some() {}
    }

    /// Where events come fast, a small group gathers: for a time that grows with their rate, and then as long as another
    /// bundle is under way, since JetStream would write this one after it anyway.
    async fn wait_for_others(&self, flights: &mut FuturesUnordered<impl Future<Output = ()>>, per_second: f64) {
        let is_small = || self.queue.len() + 1 < SMALL_GROUP;
        if per_second < self.limits.linger_from_rate || !is_small() {
            return;
        }
        let begun = Instant::now();
        let wait = self.limits.linger.mul_f64((per_second / RATE_OF_LINGER).clamp(1.0, LINGER_GROWTH_MAX));
        let linger = sleep_until(begun + wait);
        tokio::pin!(linger);
        loop {
            tokio::select! {
                () = &mut linger => break,
                Some(()) = flights.next(), if !flights.is_empty() => {}
            }
        }
        let patience = sleep_until(begun + LINGER_MAX);
        tokio::pin!(patience);
        while !flights.is_empty() && is_small() {
            tokio::select! {
                () = &mut patience => break,
                Some(()) = flights.next() => {}
            }
        }
    }

    /// One bundle of what waits. An event that doesn't fit begins the next one; events past their deadline are
    /// answered and not published.
    fn gather(&mut self, first: Waiting, left_over: &mut VecDeque<Waiting>) -> Group {
        let now = Instant::now();
        let mut writer = BundleWriter::default();
        let mut group = Group { bundle: Bytes::new(), requests: Vec::new(), deadline: now + self.limits.deadline };
        let mut next = Some(first);
        while let Some(waiting) = next {
            let deadline = waiting.arrived + self.limits.deadline;
            if deadline <= now {
                answer(waiting.done, Err(CommitError::Unavailable));
            } else if writer.fits(waiting.event.payload.len()) {
                writer.push(&waiting.event);
                group.deadline = group.deadline.min(deadline);
                group.requests.push((waiting.done, waiting.room));
            } else {
                left_over.push_back(waiting);
                break;
            }
            next = self.queue.try_recv().ok();
        }
        group.bundle = writer.finish();
        group
    }
}

struct Group {
    bundle: Bytes,
    requests: Vec<(oneshot::Sender<Answer>, Share)>,
    deadline: Instant,
}

/// Publishes one bundle until its outcome is known or the deadline is over, then answers its requests. `more`: others wait.
async fn fly<P, F>(publish: P, group: Group, seconds: Histogram, outlook: SharedOutlook, more: bool)
where
    P: Fn(Bytes) -> F,
    F: Future<Output = Result<(), PublishFailure>>,
{
    let started = Instant::now();
    let outcome = loop {
        match timeout_at(group.deadline, publish(group.bundle.clone())).await {
            Ok(Ok(())) => break Ok(()),
            Ok(Err(PublishFailure::Full)) => break Err(CommitError::Full),
            Ok(Err(PublishFailure::Refused)) => break Err(CommitError::Refused),
            // The same bytes again: the ids in them are the same, so a second copy is no second event.
            Ok(Err(PublishFailure::Uncertain)) if Instant::now() + REPUBLISH_PAUSE < group.deadline => {
                sleep(REPUBLISH_PAUSE).await;
            }
            Ok(Err(PublishFailure::Uncertain)) | Err(_) => break Err(CommitError::Unavailable),
        }
    };
    seconds.record(started.elapsed().as_secs_f64());
    outlook.lock().ended(group.requests.len(), more, Instant::now());
    for (done, room) in group.requests {
        drop(room);
        answer(done, outcome);
    }
}

/// Answers a request that may have gone away meanwhile; then nobody needs the answer.
fn answer(done: oneshot::Sender<Answer>, outcome: Result<(), CommitError>) {
    let _ = done.send(Answer { outcome, at: Instant::now() });
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
