//! Step 5: pulls messages from EVENTS, gathers them into batches and hands these on. While batches are on their
//! way into Postgres the next one gathers, so batches grow with the load; an idle dispatcher waits for nothing
//! where events come singly, and for a moment where they come fast.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use relay_bus::{EventMessage, EventSource};
use relay_core::event::Event;
use relay_core::gathering::{LINGER_MAX, Pulse, linger};
use relay_core::mutation::{self, Safety};
use relay_core::protocol::{DISPATCH_BYTES_MAX, DISPATCH_EVENTS_MAX};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::{Batch, Batcher};
use crate::decode::{self, Decoded, Unusable};
use crate::meters::Meters;
use crate::room::Room;
use crate::{Config, Links};

/// Messages asked for at a time.
const MESSAGES_MAX: usize = 500;
/// Below this many events a batch waits for more where they come fast, longer while others are under way.
const SMALL_BATCH: usize = 200;
/// The longest that a batch waits for more where no other is under way: what the next events gain by it, this one pays.
const IDLE_WAIT_MAX: Duration = Duration::from_millis(3);
/// When a message of a newer program, or one that failed, is offered again.
const NAK_DELAY: Duration = Duration::from_secs(5);

/// What the pulling loop needs.
pub struct Intake {
    links: Links,
    batcher: Arc<Batcher>,
    batches: usize,
    payload_bytes_max: usize,
}

impl Intake {
    /// Ready to pull.
    pub fn new(links: Links, room: Arc<Room>, meters: Arc<Meters>, config: &Config) -> Self {
        Self {
            batcher: Arc::new(Batcher::new(links.clone(), room, meters)),
            links,
            batches: config.dispatch_batches.max(1),
            payload_bytes_max: config.payload_bytes_max,
        }
    }
}

/// Messages decoded and waiting for their batch.
#[derive(Default)]
struct Gathered {
    batch: Batch,
    bytes: usize,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.batch.events.len() >= DISPATCH_EVENTS_MAX || self.bytes >= DISPATCH_BYTES_MAX
    }

    async fn add(&mut self, message: EventMessage, payload_max: usize) {
        let EventMessage { message, delivered, ack } = message;
        match decode::decode(&message, payload_max) {
            Decoded::Events(events) if delivered > 1 && mutation::is_broken(Safety::DeliveryCount) => {
                self.batch.letters.extend(events.iter().map(|e| Unusable::given_up(e, delivered)));
                self.batch.acks.push(ack);
            }
            Decoded::Events(events) => {
                self.bytes += events.iter().map(|e: &Event| e.payload.len()).sum::<usize>();
                self.batch.events.extend(events);
                self.batch.acks.push(ack);
            }
            Decoded::Unusable(letter) => {
                tracing::info!(
                    subject = letter.subject,
                    reason = letter.reason.as_str(),
                    error = letter.error,
                    "a message can't be used and becomes a dead letter"
                );
                self.bytes += letter.payload.len();
                self.batch.letters.push(*letter);
                self.batch.acks.push(ack);
            }
            Decoded::Newer(version) => {
                tracing::error!(
                    version,
                    "a bundle of a newer version was left for a newer dispatcher: update this one"
                );
                ack.nak(NAK_DELAY).await;
            }
        }
    }
}

/// Pulls until `stop` fires, then waits for the batches under way.
pub async fn run(intake: Intake, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(intake.batches));
    let tasks = TaskTracker::new();
    let mut source: EventSource = intake.links.bus.events();
    let mut spare: VecDeque<EventMessage> = VecDeque::new();
    let mut pulse = Pulse::default();
    let others = intake.batches - 1;
    while !stop.is_cancelled() {
        // The permit first: nothing is pulled that nobody has room for.
        let Some(Ok(permit)) = stop.run_until_cancelled(Arc::clone(&permits).acquire_owned()).await else {
            break;
        };
        let mut gathered = Gathered::default();
        if spare.is_empty() {
            spare.extend(source.next(MESSAGES_MAX, &stop).await);
        }
        let begun = Instant::now();
        let wait = linger(pulse.per_second(begun.into_std()));
        loop {
            while let Some(message) = spare.pop_front() {
                gathered.add(message, intake.payload_bytes_max).await;
                if gathered.is_full() {
                    break;
                }
            }
            let alone = permits.available_permits() >= others;
            // Where events come fast, a batch waits for the one before it: two at a time cost more than one that is larger.
            let until = begun + if alone || wait.is_zero() { wait.min(IDLE_WAIT_MAX) } else { LINGER_MAX };
            if gathered.is_full()
                || gathered.batch.events.len() >= SMALL_BATCH
                || Instant::now() >= until
                || stop.is_cancelled()
            {
                break;
            }
            tokio::select! {
                more = timeout_at(until, source.next(MESSAGES_MAX, &stop)) => match more {
                    Ok(more) if !more.is_empty() => spare.extend(more),
                    _ => break,
                },
                // All that were under way are done: look again.
                _ = permits.acquire_many(u32::try_from(others).unwrap_or(u32::MAX)), if !alone => {}
            }
        }
        if gathered.batch.acks.is_empty() {
            continue;
        }
        pulse.observe(gathered.batch.events.len(), Instant::now().into_std());
        let batcher = Arc::clone(&intake.batcher);
        let stop = stop.clone();
        tasks.spawn(async move {
            batcher.process(gathered.batch, &stop).await;
            drop(permit);
        });
    }
    for message in spare {
        message.ack.nak(Duration::ZERO).await;
    }
    tasks.close();
    tasks.wait().await;
}
