//! Dispatchers, and the schedulers in them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use relay_core::delivery::{Closed, DeadReason};
use relay_core::event::Event;
use relay_core::ids::EndpointId;
use relay_core::job::Job;
use relay_core::protocol::{
    Budgets, FoldedEvent, PlannedDead, PlannedDelivery, PlannedEvent, fold_events, may_claim_lapsed, split,
};
use relay_core::subject::Lane;

use super::config::Mutation;
use super::store::{Cause, Dispatched, Statement};
use super::world::{EndpointRow, Owner, World, lease, short_key};

/// A leader's lease row.
const LEADER_MS: u64 = 10_000;
/// How often a leader renews it.
const RENEW_MS: u64 = 3_000;
/// Between two words that a batch is still worked on.
const PROGRESS_MS: u64 = 4_000;

/// A dispatcher's memory.
#[derive(Default)]
pub struct Dispatcher {
    version: i64,
    directory: Vec<EndpointRow>,
    budgets: Budgets,
    leads_since: Option<u64>,
    asked_at: Option<u64>,
    pub failed_at: Option<u64>,
    /// Messages of EVENTS that are worked on.
    holding: Vec<usize>,
}

struct Batch {
    sequences: Vec<usize>,
    events: Vec<Event>,
}

impl World {
    pub fn start_dispatcher(&mut self, d: usize) {
        let owner = self.owner(d);
        self.dispatchers[d] = Dispatcher::default();
        self.refresh(d);
        self.poll_directory(owner);
        self.intake(owner);
        self.schedule(owner);
        self.tell_progress(owner);
    }

    fn refresh(&mut self, d: usize) {
        if self.postgres_is_up() {
            self.dispatchers[d].version = self.store.directory_version;
            self.dispatchers[d].directory = self.endpoints.clone();
        }
    }

    fn poll_directory(&mut self, owner: Owner) {
        self.does(owner, 500, move |w| {
            w.refresh(owner.process);
            w.poll_directory(owner);
        });
    }

    fn tell_progress(&mut self, owner: Owner) {
        self.does(owner, PROGRESS_MS, move |w| {
            if w.nats_is_up() {
                let now = w.now;
                for sequence in w.dispatchers[owner.process].holding.clone() {
                    w.events.progress(sequence, now);
                }
            }
            w.tell_progress(owner);
        });
    }

    /// Pulls messages and takes them through.
    fn intake(&mut self, owner: Owner) {
        let now = self.now;
        let most = self.dice.range(1, 6) as usize;
        let pulled = if self.nats_is_up() { self.events.pull(most, now) } else { Vec::new() };
        if pulled.is_empty() {
            let wait = self.dice.range(30, 120);
            return self.does(owner, wait, move |w| w.intake(owner));
        }
        let batch = Batch {
            sequences: pulled.iter().map(|m| m.sequence).collect(),
            events: pulled.into_iter().flat_map(|m| m.body).collect(),
        };
        self.note(|| format!("dispatcher {} takes EVENTS {:?}", owner.process, batch.sequences));
        self.dispatchers[owner.process].holding = batch.sequences.clone();
        if self.mutated(Mutation::AckEventsBeforeCommit) {
            batch.sequences.iter().for_each(|s| self.ack_events(*s));
        }
        self.process(owner, batch);
    }

    fn process(&mut self, owner: Owner, batch: Batch) {
        let folded = if self.mutated(Mutation::NoFold) {
            batch.events.iter().map(|e| FoldedEvent { event: e.clone(), aliases: Vec::new() }).collect()
        } else {
            fold_events(batch.events.clone())
        };
        self.round(owner, batch, folded);
    }

    fn round(&mut self, owner: Owner, batch: Batch, todo: Vec<FoldedEvent>) {
        let planned = todo.into_iter().map(|folded| self.plan(owner.process, folded)).collect();
        let parts = split(planned);
        self.parts(owner, batch, parts.into_iter(), Vec::new());
    }

    fn plan(&mut self, d: usize, folded: FoldedEvent) -> PlannedEvent {
        let dispatcher = &self.dispatchers[d];
        let (version, held) = (dispatcher.version, self.setup.held);
        let active: Vec<(EndpointId, bool)> =
            dispatcher.directory.iter().filter(|e| e.active).map(|e| (e.id, e.paused)).collect();
        let mut dead = None;
        let chosen: Vec<(EndpointId, bool)> = match folded.event.endpoint {
            None => active,
            Some(named) => {
                let there = dispatcher.directory.iter().any(|e| e.id == named);
                let found: Vec<_> = active.into_iter().filter(|(id, _)| *id == named).collect();
                if found.is_empty() {
                    let reason = if there { DeadReason::EndpointInactive } else { DeadReason::UnknownEndpoint };
                    dead = Some(PlannedDead { endpoint: named, reason, error: String::new() });
                }
                found
            }
        };
        let deliveries = chosen
            .into_iter()
            .map(|(endpoint, paused)| PlannedDelivery {
                endpoint,
                leased: !paused && !self.dice.chance(held),
                lease: lease(),
                lane: Lane::Fresh,
            })
            .collect();
        PlannedEvent { event: folded.event, aliases: folded.aliases, directory_version: version, deliveries, dead }
    }

    fn parts(
        &mut self,
        owner: Owner,
        batch: Batch,
        mut parts: std::vec::IntoIter<Vec<PlannedEvent>>,
        stale: Vec<FoldedEvent>,
    ) {
        let Some(part) = parts.next() else {
            if stale.is_empty() {
                return self.acknowledge(owner, &batch);
            }
            self.refresh(owner.process);
            let wait = self.dice.range(2, 30);
            return self.does(owner, wait, move |w| w.round(owner, batch, stale));
        };
        self.dispatch(owner, part, move |w, part, answer| {
            let Ok((claimed_at, outcomes)) = answer else {
                // Whatever is the matter, the events are not at fault: the whole batch again.
                let wait = w.dice.range(200, 2000);
                return w.does(owner, wait, move |w| w.process(owner, batch));
            };
            let mut stale = stale;
            let mut jobs = Vec::new();
            for (planned, outcome) in part.into_iter().zip(outcomes) {
                match outcome {
                    Dispatched::Inserted => jobs.extend(fresh_jobs(&planned, claimed_at)),
                    Dispatched::Present | Dispatched::Alias => {}
                    Dispatched::Stale => stale.push(FoldedEvent { event: planned.event, aliases: planned.aliases }),
                }
            }
            w.publish_jobs(owner, jobs, move |w| w.parts(owner, batch, parts, stale));
        });
    }

    fn acknowledge(&mut self, owner: Owner, batch: &Batch) {
        self.note(|| format!("dispatcher {} acks EVENTS {:?}", owner.process, batch.sequences));
        self.dispatchers[owner.process].holding.clear();
        let sequences = batch.sequences.clone();
        self.after(1, move |w| sequences.iter().for_each(|s| w.ack_events(*s)));
        self.does(owner, 2, move |w| w.intake(owner));
    }

    /// A pass of the scheduler, where it leads.
    fn schedule(&mut self, owner: Owner) {
        let wait = self.dice.range(300, 700);
        self.does(owner, wait, move |w| {
            let asked = w.dispatchers[owner.process].asked_at;
            if asked.is_some_and(|at| w.now - at < RENEW_MS) {
                return w.pass(owner);
            }
            let asked_at = w.now;
            let statement = Statement {
                begin: Box::new(|_: &mut World| ()),
                commit: Box::new(move |w: &mut World, ()| {
                    let free = w.store.leader.is_none_or(|(holder, until)| holder == owner || until <= w.now);
                    if free {
                        w.store.leader = Some((owner, w.now + LEADER_MS));
                    }
                    free || w.setup.two_leaders
                }),
            };
            w.statement(owner, statement, move |w, answer| {
                let d = &mut w.dispatchers[owner.process];
                match answer {
                    Ok(leads) => {
                        d.leads_since = if leads { d.leads_since.or(Some(asked_at)) } else { None };
                        d.asked_at = Some(asked_at);
                    }
                    Err(_) if d.asked_at.is_none_or(|at| asked_at - at >= LEADER_MS) => d.leads_since = None,
                    Err(_) => {}
                }
                w.pass(owner);
            });
        });
    }

    fn pass(&mut self, owner: Owner) {
        let Some(since) = self.dispatchers[owner.process].leads_since else { return self.schedule(owner) };
        let failed_at = self.dispatchers[owner.process].failed_at;
        let lapsed = may_claim_lapsed(since, failed_at, self.now) || self.mutated(Mutation::NoGrace);
        let now = self.now;
        let d = &mut self.dispatchers[owner.process];
        let sendable: Vec<&EndpointRow> = d.directory.iter().filter(|e| e.active && !e.paused).collect();
        let budgets: BTreeMap<EndpointId, usize> =
            sendable.into_iter().map(|e| (e.id, d.budgets.budget(e.id, now).min(20))).collect();
        let budgets_after = budgets.clone();
        let statement = Statement {
            begin: Box::new(|_: &mut World| ()),
            commit: Box::new(move |w: &mut World, ()| {
                w.close_for_inactive();
                w.claim_due(budgets, lapsed)
            }),
        };
        self.statement(owner, statement, move |w, answer| match answer {
            Ok(jobs) => {
                let now = w.now;
                for endpoint in budgets_after.keys() {
                    let n = jobs.iter().filter(|j| j.endpoint == *endpoint).count();
                    w.dispatchers[owner.process].budgets.claimed(*endpoint, n, now);
                }
                w.publish_jobs(owner, jobs, move |w| w.schedule(owner));
            }
            Err(_) => {
                w.dispatchers[owner.process].failed_at = Some(w.now);
                w.schedule(owner);
            }
        });
    }

    fn claim_due(&mut self, mut budgets: BTreeMap<EndpointId, usize>, lapsed: bool) -> Vec<Job> {
        let time = self.time();
        let due: Vec<_> =
            self.store.rows.iter().filter(|(_, k)| k.row.is_due(lapsed, time)).map(|(key, _)| *key).collect();
        let mut jobs = Vec::new();
        for key in due {
            let Some(left) = budgets.get_mut(&key.1).filter(|left| **left > 0) else { continue };
            *left -= 1;
            let claimed = self.change(key, Cause::Other, |row| row.claim(lease(), lapsed, time)).flatten();
            if let (Some(state), Some(event)) = (claimed, self.store.events.get(&key.0)) {
                jobs.push(job_of(event, key.1, (state.claim, state.attempts, state.base), time));
                if self.mutated(Mutation::NoLease)
                    && let Some(kept) = self.store.rows.get_mut(&key)
                {
                    kept.row.due_at = DateTime::<Utc>::MAX_UTC;
                }
            }
        }
        for job in &jobs {
            self.note(|| format!("{} claimed, claim {}", short_key((job.event, job.endpoint)), job.claim));
        }
        jobs
    }

    fn close_for_inactive(&mut self) {
        let time = self.time();
        let inactive: Vec<EndpointId> = self.endpoints.iter().filter(|e| !e.active).map(|e| e.id).collect();
        if inactive.is_empty() {
            return;
        }
        let keys: Vec<_> = self
            .store
            .rows
            .iter()
            .filter(|(key, kept)| inactive.contains(&key.1) && kept.row.closed().is_none())
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.change(key, Cause::Other, |row| row.close_for_others(Closed::DeadLettered, time));
        }
    }

    /// A pod had no room for a job.
    pub fn bounced(&mut self, endpoint: EndpointId) {
        let now = self.now;
        self.dispatchers.iter_mut().for_each(|d| d.budgets.bounced(endpoint, now, now));
    }
}

fn fresh_jobs(planned: &PlannedEvent, claimed_at: DateTime<Utc>) -> Vec<Job> {
    let leased = planned.deliveries.iter().filter(|d| d.leased);
    leased.map(|d| job_of(&planned.event, d.endpoint, (1, 0, 0), claimed_at)).collect()
}

fn job_of(
    event: &Event,
    endpoint: EndpointId,
    (claim, attempts, base): (i32, i32, i32),
    claimed_at: DateTime<Utc>,
) -> Job {
    Job {
        event: event.id,
        endpoint,
        tenant: event.tenant.clone(),
        event_type: event.event_type.clone(),
        claim,
        attempts,
        base,
        claimed_at,
        accepted_at: event.accepted_at,
        directory_version: 0,
        probe: false,
        trace: None,
        payload: None,
    }
}
