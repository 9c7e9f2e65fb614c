//! What the routes share: the links to the outside, the committer, and the look-ups that several of them need.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use relay_core::address::AddressPolicy;
use relay_core::endpoint::Endpoint;
use relay_core::ids::{EndpointId, EventId, TenantId};
use relay_core::subject::HINT_DIRECTORY;
use relay_links::Links;
use relay_store::{EventView, StoreError};
use tokio::time::Instant;

use crate::committer::Committer;
use crate::refresh::Refresher;
use crate::refusal::Refusal;
use crate::waiters::{WAIT, Waited, Waiters, may_be_on_its_way};

/// State of the routes. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

/// What is behind [`Api`].
pub struct Shared {
    /// The outside.
    pub links: Links,
    /// The way into the accept log.
    pub committer: Committer,
    /// Refreshes of the directory.
    pub refresher: Refresher,
    /// Requests that wait for the dispatcher.
    pub waiters: Waiters,
    /// Which addresses endpoints may have.
    pub policy: AddressPolicy,
    /// Largest payload, in bytes.
    pub payload_bytes_max: usize,
    /// Counters of outcomes.
    pub counters: Counters,
}

/// `relay_ingest_events_total` by outcome.
pub struct Counters {
    /// Accepted and on disk.
    pub accepted: Counter,
    /// A repeat of a key whose event is known.
    pub repeated: Counter,
    /// Refused for what the request says.
    pub refused: Counter,
    /// Not accepted for reasons of ours (503).
    pub unavailable: Counter,
}

impl Counters {
    /// Counts an event that wasn't accepted.
    pub fn refusal(&self, refusal: &Refusal) {
        let counter = if refusal.is_the_clients() { &self.refused } else { &self.unavailable };
        counter.increment(1);
    }

    /// Registers them with the installed recorder.
    pub fn register() -> Self {
        let outcome = |outcome: &'static str| metrics::counter!("relay_ingest_events_total", "outcome" => outcome);
        Self {
            accepted: outcome("accepted"),
            repeated: outcome("repeated"),
            refused: outcome("refused"),
            unavailable: outcome("unavailable"),
        }
    }
}

impl Deref for Api {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Api {
    /// The state around `shared`.
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// After a change of the tenant's endpoints: this pod knows it before the answer goes out, the others are
    /// told. Failing is fine: all pods poll, and events carry a version fence.
    pub async fn directory_changed(&self, tenant: &TenantId) {
        if !self.refresher.read_through(&self.links.directory, tenant).await {
            tracing::warn!(%tenant, "the directory could not be refreshed after a change; the next poll does it");
        }
        self.links.bus.hint(HINT_DIRECTORY, Bytes::copy_from_slice(tenant.as_str().as_bytes())).await;
    }

    /// The event with this id, waiting for the dispatcher where it may have been accepted just now.
    pub async fn event(&self, tenant: &TenantId, id: EventId) -> Result<EventView, Refusal> {
        self.stored(id, || self.links.store.event_view(tenant, id)).await
    }

    /// The id that an event is stored under (its own, or the one that it is an alias of), waiting likewise.
    pub async fn stored_id(&self, tenant: &TenantId, id: EventId) -> Result<EventId, Refusal> {
        self.stored(id, || self.links.store.resolve_event(tenant, id)).await
    }

    /// What `ask` finds of an event; where it finds nothing and the event may have been accepted just now, it is asked
    /// again once the dispatcher has stored it.
    pub async fn stored<T, A>(&self, id: EventId, ask: impl Fn() -> A) -> Result<T, Refusal>
    where
        A: Future<Output = Result<Option<T>, StoreError>>,
    {
        if let Some(found) = ask().await? {
            return Ok(found);
        }
        self.wait_for_dispatch(id).await?;
        ask().await?.ok_or(Refusal::UnknownEvent)
    }

    /// An endpoint of the tenant, as Postgres has it.
    pub async fn endpoint(&self, tenant: &TenantId, id: EndpointId) -> Result<Endpoint, Refusal> {
        self.links.store.get_endpoint(tenant, id).await?.ok_or(Refusal::UnknownEndpoint)
    }

    async fn wait_for_dispatch(&self, id: EventId) -> Result<(), Refusal> {
        if !may_be_on_its_way(id, self.links.clock.now()) {
            return Err(Refusal::UnknownEvent);
        }
        match self.waiters.wait(id, Instant::now() + WAIT).await {
            Waited::Stored => Ok(()),
            Waited::TimedOut if self.events_lag().await => {
                Err(Refusal::Unavailable("Accepted events are still being worked off".to_owned()))
            }
            Waited::TimedOut => Err(Refusal::UnknownEvent),
            Waited::Unavailable => Err(Refusal::Unavailable("The database does not answer".to_owned())),
            Waited::Crowded => Err(Refusal::overloaded("Too many requests wait for events")),
        }
    }

    /// Whether accepted events wait for a dispatcher; unknown counts as yes.
    async fn events_lag(&self) -> bool {
        match tokio::time::timeout(Duration::from_millis(500), self.links.bus.events_lag()).await {
            Ok(Ok(lag)) => lag.pending + lag.ack_pending > 0,
            _ => true,
        }
    }
}
