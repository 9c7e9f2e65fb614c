//! The handle that services hold: two connections (publishing and consuming, so that neither delays the other) and
//! the background tasks, which end with the last handle.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use async_nats::Client;
use bytes::Bytes;
use relay_core::shard::Shard;
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api;
use crate::connect::{Address, BusOptions, Connection};
use crate::discover::keep_looking;
use crate::disruption::Disruption;
use crate::error::BusError;
use crate::history::Sample;
use crate::letters::{self, LetterHint};
use crate::replies::Replies;
use crate::shards::{Known, Turns};
use crate::topology::Topology;

/// A connection to NATS with everything the services do there. Cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

/// What all clones share.
pub struct Inner {
    pub(crate) publishing: Connection,
    pub(crate) consuming: Connection,
    pub(crate) replies: Replies,
    pub(crate) disruption: Arc<Disruption>,
    pub(crate) topology: Mutex<Topology>,
    pub(crate) declaring: tokio::sync::Mutex<Option<Instant>>,
    /// A stream didn't answer when it was to be declared: to be done again.
    pub(crate) is_unsettled: AtomicBool,
    /// Start of every message id of this process on JOBS.
    pub(crate) nonce: String,
    pub(crate) published_jobs: AtomicU64,
    /// Which streams there are.
    pub(crate) known: watch::Sender<Known>,
    /// Rung by whoever finds that no longer true.
    pub(crate) bell: Arc<Notify>,
    pub(crate) event_turns: Mutex<Turns>,
    pub(crate) job_turns: Mutex<Turns>,
    pub(crate) letters: mpsc::Sender<LetterHint>,
    pub(crate) letters_dropped: Arc<AtomicU64>,
    pub(crate) history: Mutex<HashMap<Shard, VecDeque<Sample>>>,
    /// Unused streams of which it was said that they can be deleted.
    pub(crate) said_empty: Mutex<HashSet<&'static str>>,
    pub(crate) watches_leaders: AtomicBool,
    pub(crate) stop: CancellationToken,
    _stop: DropGuard,
}

impl Deref for Bus {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    /// The client for questions to JetStream.
    pub(crate) fn api(&self) -> &Client {
        &self.consuming.client
    }
}

impl Bus {
    /// Connects, twice. Afterwards lost connections are made again for ever in the background.
    ///
    /// # Errors
    /// The URL is not valid, or no server can be reached now.
    pub async fn connect(options: BusOptions) -> Result<Self, BusError> {
        let address = Address::parse(&options.url)?;
        let disruption = Arc::new(Disruption::new());
        let (to_publish, to_consume) = (format!("{} publishing", options.name), format!("{} consuming", options.name));
        let (publishing, consuming) = tokio::try_join!(
            Connection::open(&address, &to_publish, &disruption),
            Connection::open(&address, &to_consume, &disruption),
        )?;
        let stop = CancellationToken::new();
        let replies = Replies::start(&publishing, stop.clone()).await?;
        let (letters, queue) = mpsc::channel(letters::QUEUE_MAX);
        let letters_dropped = Arc::new(AtomicU64::new(0));
        let bus = Self(Arc::new(Inner {
            publishing,
            consuming,
            replies,
            disruption,
            topology: Mutex::new(Topology::default()),
            declaring: tokio::sync::Mutex::new(None),
            is_unsettled: AtomicBool::new(false),
            nonce: nonce(),
            published_jobs: AtomicU64::new(0),
            known: watch::Sender::new(Known::default()),
            bell: Arc::new(Notify::new()),
            event_turns: Mutex::default(),
            job_turns: Mutex::default(),
            letters,
            letters_dropped,
            history: Mutex::default(),
            said_empty: Mutex::default(),
            watches_leaders: AtomicBool::new(false),
            _stop: stop.clone().drop_guard(),
            stop,
        }));
        tokio::spawn(letters::publish_queued(Arc::downgrade(&bus.0), queue));
        let looking = keep_looking(Arc::downgrade(&bus.0), bus.consuming.link.clone(), Arc::clone(&bus.bell));
        let stop = bus.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(looking).await });
        Ok(bus)
    }

    /// A handle made of what a background task kept.
    pub(crate) fn of(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Asks JetStream for a sign of life, and each EVENTS that didn't answer this process's last publish there, too.
    ///
    /// # Errors
    /// No answer in 5 s, JetStream is not enabled, or no EVENTS stores anything.
    pub async fn ping(&self) -> Result<(), BusError> {
        api::ask(self.api(), "INFO", &json!({})).await?;
        self.check_events().await
    }

    /// The time of the last change after which deliveries may have gone to others or acknowledged ones may come
    /// back as new: a connection, a pull, a consumer's leader. Connecting counts.
    pub fn disruption(&self) -> watch::Receiver<Instant> {
        self.disruption.subscribe()
    }

    /// Publishes a hint on core NATS: nobody may get it.
    pub async fn hint(&self, subject: &str, body: Bytes) {
        // While there is no connection it would only queue, and be stale when it leaves.
        if self.publishing.link.borrow().up
            && let Err(error) = self.publishing.client.publish(subject.to_owned(), body).await
        {
            tracing::debug!(subject, %error, "hint not published");
        }
    }
}

/// Tells this process's message ids from those of all others.
#[expect(clippy::disallowed_methods, reason = "an adapter knows the core alone; this is no id that is stored")]
fn nonce() -> String {
    format!("{:016x}", rand::random::<u64>())
}
