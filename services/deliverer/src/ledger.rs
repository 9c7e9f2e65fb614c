//! What the deliverer asks of Postgres: the check of suspect jobs, large payloads, and step 11's statement with
//! what follows from its answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use relay_bus::Bus;
use relay_core::delivery::Outcome;
use relay_core::ids::{DeadLetterId, EventId};
use relay_runtime::failpoint::{self, Point};
use relay_store::{CircuitEventRow, Recorded, RecordedBatch, Store, StoreError, TakeKey, Taken};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Links;
use crate::gather::Gather;
use crate::recorder::Batch;

/// Rows taken by one check at most.
const CHECKS_MAX: usize = 500;
/// Large payloads read by one statement at most.
const PAYLOADS_MAX: usize = 16;
/// Changes of circuits that wait for the ledger at most.
const TRANSITIONS_MAX: usize = 10_000;
/// Changes of circuits wait for a batch of results to go with for this long.
const TRANSITIONS_EVERY: Duration = Duration::from_millis(200);

/// The check, for many jobs at once.
pub fn checks(
    store: &Store,
    tasks: &TaskTracker,
    waiting_max: usize,
    stop: CancellationToken,
) -> Gather<TakeKey, Option<Taken>> {
    let store = store.clone();
    Gather::start(tasks, waiting_max, CHECKS_MAX, stop, move |keys: Vec<TakeKey>| {
        let store = store.clone();
        async move {
            store
                .take(&keys)
                .await
                .inspect_err(|error| tracing::warn!(%error, jobs = keys.len(), "a check failed; its jobs come again"))
                .ok()
        }
    })
}

/// Large payloads, for many jobs at once; `None` where retention dropped the event.
pub fn payloads(
    store: &Store,
    tasks: &TaskTracker,
    waiting_max: usize,
    stop: CancellationToken,
) -> Gather<EventId, Option<Bytes>> {
    let store = store.clone();
    Gather::start(tasks, waiting_max, PAYLOADS_MAX, stop, move |events: Vec<EventId>| {
        let store = store.clone();
        async move {
            let found = store
                .payloads(&events)
                .await
                .inspect_err(|error| tracing::warn!(%error, jobs = events.len(), "payloads can't be read; their jobs come again"))
                .ok()?;
            Some(events.iter().map(|event| found.get(event).cloned()).collect())
        }
    })
}

/// The function that records a batch: the statement, and after its commit the hints that follow from it.
pub fn write(writer: Arc<Writer>) -> impl Fn(Arc<Batch>) -> WriteFuture + Clone + Send + use<> {
    move |batch| {
        let writer = Arc::clone(&writer);
        Box::pin(async move { writer.write(&batch).await })
    }
}

/// Writes results and changes of circuits.
pub struct Writer {
    links: Links,
    pod: String,
    /// Changes of circuits whose statement failed: they go with the next try of whatever comes first.
    unwritten: Mutex<Vec<CircuitEventRow>>,
}

impl Writer {
    /// For this pod.
    pub fn new(links: &Links, pod: String) -> Arc<Self> {
        Arc::new(Self { links: links.clone(), pod, unwritten: Mutex::default() })
    }

    /// Writes changes of circuits that no result follows soon, until `stop` fires: a circuit that opened on the last
    /// delivery there was is on record all the same.
    pub async fn write_transitions(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(TRANSITIONS_EVERY)).await.is_some() {
            self.write_waiting_transitions().await;
        }
        self.write_waiting_transitions().await;
    }

    async fn write_waiting_transitions(&self) {
        let transitions = self.take_transitions();
        if transitions.is_empty() {
            return;
        }
        if let Err(error) = self.links.store.record_transitions(&self.pod, &transitions).await {
            tracing::warn!(%error, changes = transitions.len(), "changes of circuits can't be written; they are tried again");
            self.keep(transitions);
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, Vec<CircuitEventRow>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_transitions(&self) -> Vec<CircuitEventRow> {
        let mut transitions = std::mem::take(&mut *self.unwritten());
        transitions.extend(self.links.circuits.take_transitions().into_iter().map(|t| CircuitEventRow {
            endpoint: t.endpoint,
            at: t.at,
            from: t.from.as_str(),
            to: t.to.as_str(),
            why: t.why.to_owned(),
        }));
        transitions
    }

    fn keep(&self, transitions: Vec<CircuitEventRow>) {
        let mut unwritten = self.unwritten();
        unwritten.extend(transitions);
        unwritten.truncate(TRANSITIONS_MAX);
    }

    async fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let transitions = self.take_transitions();
        let recorded = match self.links.store.record(&batch.results, &self.pod, &transitions).await {
            Ok(recorded) => recorded,
            Err(error) => {
                self.keep(transitions);
                return Err(error);
            }
        };
        if failpoint::fails(Point::RecordCommitted).await {
            return Err(StoreError::Timeout);
        }
        for tenant in &recorded.deactivated {
            self.links.directory.hint(tenant.clone());
        }
        hint_letters(&self.links.bus, batch, &recorded);
        Ok(())
    }
}

/// What [`write`]'s function returns.
pub type WriteFuture = std::pin::Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// Publishes a hint for each dead letter that the batch made; the row is the truth.
fn hint_letters(bus: &Bus, batch: &Batch, recorded: &RecordedBatch) {
    for (result, what) in batch.results.iter().map(|r| &r.decisive).zip(&recorded.results) {
        let Outcome::Dead { reason, .. } = &result.outcome else { continue };
        if *what != Recorded::Applied {
            continue;
        }
        let key = (result.event, result.endpoint);
        let event_type = batch.reported.iter().find(|r| r.key == key).map(|r| &r.event_type);
        let letter = serde_json::json!({
            "id": DeadLetterId::of_delivery(result.event, result.endpoint),
            "event_id": result.event,
            "endpoint_id": result.endpoint,
            "event_type": event_type.map(|t| t.as_str()),
            "reason": reason.as_str(),
        });
        metrics::counter!("relay_deliverer_dead_letters_total", "reason" => reason.as_str()).increment(1);
        bus.publish_letter_hint(Some(&result.tenant), reason.as_str(), Bytes::from(letter.to_string()));
    }
}
