//! Steps 5 to 7 for one batch: fold, match, one statement, jobs, and last the acknowledgements.
//!
//! Invariant I1: a message is acknowledged only when each of its events is committed, or its dead letter is.
//! Whatever goes wrong that isn't the event's own fault makes no dead letter, however often it happens: the
//! batch is tried again, and a batch that is given up at shutdown comes back from JetStream.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_bus::AckHandle;
use relay_circuit::Decision;
use relay_core::delivery::DeadReason;
use relay_core::endpoint::Endpoint;
use relay_core::event::Event;
use relay_core::ids::{DeadLetterId, EndpointId, TenantId};
use relay_core::job::{self, Job};
use relay_core::mutation::{self, Safety};
use relay_core::protocol::{self, FoldedEvent, PlannedEvent};
use relay_core::subject::{HINT_DUE, Lane};
use relay_runtime::failpoint::{self, Point};
use relay_store::{DispatchOutcome, Dispatched, RawLetter, StoreError};
use tokio_util::sync::CancellationToken;

use crate::Links;
use crate::decode::Unusable;
use crate::jobs;
use crate::meters::Meters;
use crate::plan;
use crate::room::Room;

/// After this many refusals by the version fence the version row is locked.
const STALE_MAX: usize = 3;
/// Pause after a failure of the infrastructure; doubles up to the maximum.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often JetStream is told that a batch is still worked on (its `ack_wait` is 10 s).
const PROGRESS: Duration = Duration::from_secs(4);

/// Decoded messages that go through together.
#[derive(Default)]
pub struct Batch {
    /// Their events.
    pub events: Vec<Event>,
    /// What can't be an event.
    pub letters: Vec<Unusable>,
    /// One handle a message.
    pub acks: Vec<AckHandle>,
}

/// Takes batches through.
pub struct Batcher {
    links: Links,
    room: Arc<Room>,
    meters: Arc<Meters>,
}

impl Batcher {
    /// Ready.
    pub fn new(links: Links, room: Arc<Room>, meters: Arc<Meters>) -> Self {
        Self { links, room, meters }
    }

    /// Takes one batch through, however long Postgres is away, and acknowledges it. Gives up only when `stop`
    /// has fired and the infrastructure fails: JetStream offers the messages again.
    pub async fn process(&self, batch: Batch, stop: &CancellationToken) {
        let Batch { events, letters, acks } = batch;
        let events = protocol::fold_events(events);
        if mutation::is_broken(Safety::EventsAckedLate) {
            for ack in &acks {
                ack.ack().await;
            }
        }
        let work = async {
            let mut pause = PAUSE;
            loop {
                match self.store(events.clone(), &letters).await {
                    Ok(()) => return true,
                    Err(error) => {
                        tracing::warn!(%error, events = events.len(), "a batch of events was not stored; trying again");
                        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                            return false;
                        }
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                }
            }
        };
        tokio::pin!(work);
        let stored = loop {
            tokio::select! {
                stored = &mut work => break stored,
                () = tokio::time::sleep(PROGRESS) => {
                    for ack in &acks {
                        ack.progress().await;
                    }
                }
            }
        };
        failpoint::pass(Point::DispatchPublished).await;
        for ack in acks {
            if stored {
                ack.ack().await;
            } else {
                ack.nak(Duration::ZERO).await;
            }
        }
    }

    /// Safe to repeat whole.
    async fn store(&self, events: Vec<FoldedEvent>, letters: &[Unusable]) -> Result<(), StoreError> {
        if !letters.is_empty() {
            self.write_letters(letters.iter().map(Unusable::letter).collect()).await?;
        }
        let mut todo = events;
        let mut rounds = 0;
        while !todo.is_empty() {
            if rounds < STALE_MAX {
                todo = self.round(todo, rounds).await?;
            } else {
                // Somebody changes these tenants' endpoints faster than we match: hold their versions still.
                let tenants: BTreeSet<TenantId> = todo.iter().map(|e| e.event.tenant.clone()).collect();
                let tenants: Vec<TenantId> = tenants.into_iter().collect();
                let lock = self.links.store.lock_versions(&tenants).await?;
                for tenant in &tenants {
                    self.links.directory.refresh(tenant).await?;
                }
                todo = self.round(todo, rounds).await?;
                lock.release().await?;
            }
            rounds += 1;
        }
        Ok(())
    }

    /// Plans and stores; returns what the version fence refused.
    async fn round(&self, todo: Vec<FoldedEvent>, rounds: usize) -> Result<Vec<FoldedEvent>, StoreError> {
        let now = self.links.clock.now();
        let snapshot = self.links.directory.snapshot();
        let mut held: HashMap<EndpointId, bool> = HashMap::new();
        let mut holds = |endpoint: &Endpoint| *held.entry(endpoint.id).or_insert_with(|| self.holds(endpoint, now));
        let (planned, unknown) = plan::plan_all(todo, &snapshot, &mut holds);
        let mut again = self.unknown_tenants(unknown, rounds).await?;
        let mut refused = BTreeSet::new();
        for part in protocol::split(planned) {
            self.meters.batch(part.len());
            failpoint::pass(Point::DispatchMatched).await;
            let done = self.links.store.dispatch(&part).await?;
            let stale = self.follow_up(part, done).await?;
            refused.extend(stale.iter().map(|e| e.event.tenant.clone()));
            again.extend(stale);
        }
        for tenant in refused {
            self.links.directory.refresh(&tenant).await?;
        }
        Ok(again)
    }

    /// Whether work for this endpoint waits in the table.
    fn holds(&self, endpoint: &Endpoint, now: DateTime<Utc>) -> bool {
        endpoint.paused
            || self.room.is_deep(self.room.lane(endpoint.id, Lane::Fresh))
            || self.room.holds_fresh(endpoint.id, endpoint.rate_limit.is_some())
            || !matches!(self.links.circuits.decide(endpoint.id, &endpoint.circuit, now), Decision::Allow)
    }

    /// A tenant that the directory doesn't know is looked up once; then it is unknown.
    async fn unknown_tenants(&self, unknown: Vec<Event>, rounds: usize) -> Result<Vec<FoldedEvent>, StoreError> {
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        if rounds == 0 {
            self.links.directory.refresh_all().await?;
            return Ok(unknown.into_iter().map(|event| FoldedEvent { event, aliases: Vec::new() }).collect());
        }
        let letters = unknown
            .iter()
            .map(|e| event_letter(e, None, DeadReason::UnknownTenant, "the tenant does not exist"))
            .collect();
        self.write_letters(letters).await?;
        Ok(Vec::new())
    }

    /// Jobs for what was inserted, letters for what can't be; returns what was refused as stale.
    async fn follow_up(&self, part: Vec<PlannedEvent>, done: Dispatched) -> Result<Vec<FoldedEvent>, StoreError> {
        let (mut jobs, mut stale, mut poison) = (Vec::new(), Vec::new(), Vec::new());
        let mut held = false;
        let mut dead: Vec<(TenantId, DeadReason)> = Vec::new();
        for (planned, outcome) in part.into_iter().zip(done.outcomes) {
            self.meters.event(&outcome);
            match outcome {
                DispatchOutcome::Inserted => {
                    held |= planned.deliveries.iter().any(|d| !d.leased);
                    dead.extend(planned.dead.iter().map(|d| (planned.event.tenant.clone(), d.reason)));
                    jobs.extend(fresh_jobs(&planned, done.now));
                }
                DispatchOutcome::Present | DispatchOutcome::Alias(_) => {}
                DispatchOutcome::Stale => {
                    stale.push(FoldedEvent { event: planned.event, aliases: planned.aliases });
                }
                DispatchOutcome::Poison(error) => {
                    poison.push(own_letter(&planned.event, DeadReason::Malformed, &error))
                }
                DispatchOutcome::Expired(error) => poison.push(own_letter(&planned.event, DeadReason::Expired, &error)),
            }
        }
        if !poison.is_empty() {
            self.write_letters(poison).await?;
        }
        for (tenant, reason) in dead {
            self.links.bus.publish_letter_hint(Some(&tenant), reason.as_str(), Bytes::new());
        }
        if !jobs.is_empty() && failpoint::fails(Point::DispatchCommitted).await {
            return Err(StoreError::Timeout);
        }
        for (lane, jobs) in self.room.by_lane(jobs.into_iter().map(|job| (Lane::Fresh, job))) {
            self.meters.jobs(jobs::publish(&self.links.bus, lane, jobs).await);
        }
        if held {
            self.links.bus.hint(HINT_DUE, Bytes::new()).await;
        }
        Ok(stale)
    }

    async fn write_letters(&self, letters: Vec<RawLetter>) -> Result<(), StoreError> {
        self.links.store.write_letters(&letters).await?;
        for letter in letters {
            self.links.bus.publish_letter_hint(letter.tenant.as_ref(), letter.reason.as_str(), Bytes::new());
        }
        Ok(())
    }
}

/// The jobs of an event that was just stored.
fn fresh_jobs(planned: &PlannedEvent, now: DateTime<Utc>) -> Vec<Job> {
    let event = &planned.event;
    let inline = event.payload.len() <= job::PAYLOAD_BYTES_MAX;
    let jobs = planned.deliveries.iter().filter(|d| d.leased).map(|delivery| Job {
        event: event.id,
        endpoint: delivery.endpoint,
        tenant: event.tenant.clone(),
        event_type: event.event_type.clone(),
        claim: 1,
        attempts: 0,
        base: 0,
        claimed_at: now,
        accepted_at: event.accepted_at,
        directory_version: planned.directory_version,
        probe: false,
        trace: event.trace.clone(),
        payload: inline.then(|| event.payload.clone()),
    });
    jobs.collect()
}

fn own_letter(event: &Event, reason: DeadReason, error: &str) -> RawLetter {
    event_letter(event, Some(event.tenant.clone()), reason, error)
}

fn event_letter(event: &Event, tenant: Option<TenantId>, reason: DeadReason, error: &str) -> RawLetter {
    RawLetter {
        id: DeadLetterId::of_delivery(event.id, EndpointId(uuid::Uuid::nil())),
        event_id: Some(event.id),
        tenant,
        event_type: Some(event.event_type.as_str().to_owned()),
        reason,
        error: error.to_owned(),
        subject: Bytes::copy_from_slice(relay_core::subject::event(&event.tenant, &event.event_type).as_bytes()),
        payload: event.payload.clone(),
        at: event.accepted_at,
    }
}
