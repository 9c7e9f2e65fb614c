//! Producers, operators and accidents. Each accident books the duplicates that it explains: one for every delivery
//! that was sent and not yet on record in the pods that it hits.

use relay_core::delivery::Closed;
use relay_core::event::{Event, EventType};
use relay_core::ids::{EventId, IdempotencyKey, TenantId};
use relay_core::protocol::rows::Resent;

use super::config::Fault;
use super::store::{Cause, Store};
use super::world::{FAULTS_UNTIL_MS, Key, Owner, World, short, short_key};

/// A stall shorter than this lets no `ack_wait` and no lease lapse.
const HARMLESS_STALL_MS: u64 = 5_000;
/// How old a dump is at most that is restored.
const DUMP_AGE_MS_MAX: u64 = 20_000;
/// Between the end of all processes and the restoring of a dump.
const STOPPED_MS: u64 = 10;
/// Events come until then, over midnight.
const PRODUCE_UNTIL_MS: u64 = 25_000;

impl World {
    /// Everything that will happen from outside.
    pub fn arrange(&mut self) {
        for d in 0..self.setup.dispatchers {
            self.start_dispatcher(d);
        }
        for p in 0..self.setup.pods {
            self.start_pod(p);
            // The system has been up for a while.
            self.pods[p].disrupted_at = None;
        }
        self.producing = self.setup.bundles;
        for _ in 0..self.setup.bundles {
            let at = self.dice.range(0, PRODUCE_UNTIL_MS);
            self.after(at, Self::produce);
        }
        for (at, fault) in self.setup.faults.clone() {
            if fault == Fault::Restore {
                let dumped = at - self.dice.range(0, at.min(DUMP_AGE_MS_MAX));
                self.after(dumped, move |w| {
                    w.dumps.insert(at, (w.now, w.store.clone()));
                });
            }
            self.after(at, move |w| w.strike(fault));
        }
        self.after(FAULTS_UNTIL_MS, |w| {
            w.note(|| "nothing goes wrong any more".to_owned());
            w.chances = Default::default();
            w.setup.two_leaders = false;
            let mut changed = false;
            for endpoint in &mut w.endpoints {
                changed |= endpoint.paused;
                endpoint.paused = false;
            }
            w.store.directory_version += i64::from(changed);
            w.nats_down_until = w.nats_down_until.min(w.now);
            w.events_full_until = w.events_full_until.min(w.now);
            w.store.down_until = w.store.down_until.min(w.now);
        });
    }

    fn produce(&mut self) {
        let events: Vec<Event> = (0..self.dice.range(1, 5)).map(|_| self.draw_event()).collect();
        self.publish_events(events);
    }

    fn draw_event(&mut self) -> Event {
        let now = self.time();
        let tenant = TenantId::default_tenant();
        let key = self.dice.chance(0.3).then(|| format!("key-{}", self.dice.range(0, 5)));
        let key = key.and_then(|k| IdempotencyKey::parse(&k).ok());
        let id = match &key {
            Some(key) => EventId::keyed(&tenant, key, now),
            None => EventId::fresh(now, self.dice.bytes10()),
        };
        let named = self.dice.index(self.endpoints.len());
        let endpoint = match self.dice.range(0, 19) {
            0..=3 => Some(self.endpoints[named].id),
            4 => Some(relay_core::ids::EndpointId(relay_core::ids::uuid_v7(now, self.dice.bytes10()))),
            _ => None,
        };
        Event {
            id,
            tenant,
            event_type: EventType::trusted("order.created"),
            endpoint,
            key,
            accepted_at: now,
            trace: None,
            payload: Default::default(),
        }
    }

    /// Ingest publishes a bundle until it has a PubAck.
    fn publish_events(&mut self, events: Vec<Event>) {
        if !self.nats_is_up() || self.events_full_until > self.now {
            return self.after(200, move |w| w.publish_events(events));
        }
        let now = self.now;
        self.events.publish(events.clone(), 0, false, false, now);
        self.note(|| {
            let ids: Vec<String> = events.iter().map(|e| short(e.id.0)).collect();
            format!("EVENTS gets {}", ids.join(" "))
        });
        if self.dice.chance(self.chances.published_twice) {
            let wait = self.dice.range(1, 3000);
            return self.after(wait, move |w| w.publish_events(events));
        }
        self.producing -= 1;
        self.accepted.extend(events);
    }

    /// Books one duplicate for everything that a pod has sent and not put on record.
    fn book(&mut self, p: usize, orphaned: bool) {
        for ((key, _), id) in self.pods[p].sent.clone() {
            self.seen.entry(key).or_default().allowed += 1;
            if orphaned && let Some(send) = self.sends.get_mut(&id) {
                send.orphaned = true;
            }
        }
    }

    /// The same for a process, if it is a pod's.
    pub fn book_owner(&mut self, owner: Owner) {
        if let Some(p) = owner.process.checked_sub(self.setup.dispatchers) {
            self.book(p, false);
        }
    }

    fn book_all(&mut self) {
        for p in 0..self.pods.len() {
            self.book(p, false);
        }
    }

    fn book_delivery(&mut self, key: Key, reopened: bool) {
        let on_the_way = self.pods.iter().flat_map(|p| p.sent.keys()).filter(|(sent, _)| *sent == key).count();
        let seen = self.seen.entry(key).or_default();
        seen.allowed += u32::try_from(on_the_way).unwrap_or(0) + u32::from(reopened && seen.receipts_2xx > 0);
    }

    fn strike(&mut self, fault: Fault) {
        if self.now >= FAULTS_UNTIL_MS {
            return;
        }
        self.note(|| format!("FAULT {fault:?}"));
        let left = FAULTS_UNTIL_MS - self.now;
        let stall = self.dice.range(500, 50_000).min(left);
        let outage = self.dice.range(200, 50_000).min(left);
        let (d, p) = (self.dice.index(self.setup.dispatchers), self.dice.index(self.setup.pods));
        let pod_process = self.setup.dispatchers + p;
        match fault {
            Fault::KillDispatcher => self.kill_dispatcher(d),
            Fault::KillAll => self.kill_all(),
            Fault::StallDispatcher => self.processes[d].stalled_until = self.now + stall,
            Fault::KillPod => self.kill_pod(p),
            Fault::StallPod => {
                if stall >= HARMLESS_STALL_MS {
                    self.book(p, false);
                }
                self.processes[pod_process].stalled_until = self.now + stall;
                let owner = self.owner(pod_process);
                // What a pod notices first when it wakes.
                let wakes = self.now + stall;
                self.after(stall, move |w| {
                    if w.alive(owner) && w.processes[pod_process].stalled_until <= wakes {
                        let now = w.now;
                        w.pods[p].disrupted_at = Some(now);
                    }
                });
            }
            Fault::StopPod if !self.pods[p].up => {}
            Fault::StopPod => {
                self.stop_pod(p);
                let owner = self.owner(pod_process);
                let (grace, flush) = (self.dice.range(20, 3000), self.dice.range(500, 2000));
                self.does(owner, grace, move |w| w.abort_pod(owner));
                self.after(grace + flush, move |w| {
                    if w.alive(owner) {
                        w.kill_pod(p);
                    }
                });
            }
            Fault::KillNats => {
                self.book_all();
                let down = self.dice.range(50, 5000);
                self.kill_nats(down);
            }
            Fault::Failover => {
                self.book_all();
                self.fail_over();
            }
            Fault::DeleteJobs => {
                self.book_all();
                self.delete_jobs();
            }
            Fault::KillPostgres => {
                self.book_all();
                self.store.crashes += 1;
                self.store.down_until = self.now + outage;
            }
            Fault::PostgresAway => {
                self.store.cuts += 1;
                self.store.down_until = self.store.down_until.max(self.now + outage);
            }
            Fault::NatsAway => {
                if outage >= HARMLESS_STALL_MS {
                    self.book_all();
                }
                self.cut_nats(outage);
            }
            Fault::EventsFull => self.events_full_until = self.now + outage,
            Fault::Restore => self.restore(),
            Fault::Replay | Fault::Resend | Fault::Discard => self.operate(fault),
            Fault::Deactivate => {
                let e = self.dice.index(self.endpoints.len());
                self.set_active(e, false);
                let until = self.dice.range(1000, 15_000);
                if self.dice.chance(0.7) {
                    self.after(until, move |w| w.set_active(e, true));
                }
            }
            Fault::Pause => {
                let e = self.dice.index(self.endpoints.len());
                self.set_paused(e, true);
                let until = self.dice.range(500, 15_000);
                self.after(until, move |w| w.set_paused(e, false));
            }
            Fault::CreateEndpoint => {
                if self.postgres_is_up() {
                    self.create_endpoint();
                    // "Create an endpoint, send at once."
                    self.producing += 1;
                    self.after(1, Self::produce);
                }
            }
        }
    }

    fn kill_dispatcher(&mut self, d: usize) {
        self.kill(d);
        let down = self.dice.range(500, 5000);
        let life = self.owner(d);
        self.after(down, move |w| {
            // Unless it was killed again meanwhile: then that kill's start counts.
            if w.alive(life) {
                w.start_dispatcher(d);
            }
        });
    }

    fn kill_all(&mut self) {
        (0..self.setup.dispatchers).for_each(|d| self.kill_dispatcher(d));
        (0..self.setup.pods).for_each(|p| self.kill_pod(p));
    }

    /// Everything is stopped, JOBS is emptied, the dump is restored, and EVENTS is read again from there on. What was
    /// delivered since may come again; what operators did since is gone.
    fn restore(&mut self) {
        let Some((dumped_at, dump)) = self.dumps.remove(&self.now) else { return };
        self.kill_all();
        // What was on the wire has arrived by then, and nobody has started again.
        self.after(STOPPED_MS, move |w| w.put_back(dumped_at, dump));
    }

    fn put_back(&mut self, dumped_at: u64, dump: Store) {
        self.delete_jobs();
        for (key, seen) in &mut self.seen {
            let was_delivered = dump.row(*key).is_some_and(|row| row.closed() == Some(Closed::Delivered));
            seen.allowed += if was_delivered { 0 } else { seen.receipts_2xx };
            // Claims count from the dump's on.
            seen.sent_claims.clear();
        }
        for (id, send) in &mut self.sends {
            send.orphaned |= !dump.attempts.contains_key(id);
        }
        self.store.restore(dump);
        self.refill(dumped_at);
    }

    fn kill(&mut self, process: usize) {
        self.processes[process].life += 1;
        self.processes[process].stalled_until = 0;
    }

    fn kill_pod(&mut self, p: usize) {
        self.book(p, true);
        self.kill(self.setup.dispatchers + p);
        self.pods[p] = super::pod::Pod::new(Some(self.now));
        let down = self.dice.range(200, 5000);
        let life = self.owner(self.setup.dispatchers + p);
        self.after(down, move |w| {
            if w.alive(life) {
                w.start_pod(p);
            }
        });
    }

    fn set_active(&mut self, e: usize, active: bool) {
        if !self.postgres_is_up() {
            return;
        }
        self.endpoints[e].active = active;
        self.endpoints[e].was_inactive |= !active;
        self.store.directory_version += 1;
    }

    fn set_paused(&mut self, e: usize, paused: bool) {
        if self.postgres_is_up() || self.now >= FAULTS_UNTIL_MS {
            self.endpoints[e].paused = paused;
            self.store.directory_version += 1;
        }
    }

    /// An operator acts on some delivery.
    fn operate(&mut self, fault: Fault) {
        if !self.postgres_is_up() || self.store.rows.is_empty() {
            return;
        }
        let with_letter: Vec<Key> =
            self.store.rows.iter().filter(|(_, k)| k.row.letter.is_some()).map(|(key, _)| *key).collect();
        let all: Vec<Key> = self.store.rows.keys().copied().collect();
        let from = if with_letter.is_empty() || fault == Fault::Resend { all } else { with_letter };
        let key = from[self.dice.index(from.len())];
        let active = self.endpoints.iter().any(|e| e.id == key.1 && e.active);
        let (force, time) = (self.dice.chance(0.5), self.time());
        let reopened = match fault {
            Fault::Discard => {
                self.change(key, Cause::Operator, |row| row.discard());
                None
            }
            Fault::Replay if active => {
                let replayed = self.change(key, Cause::Operator, |row| row.replay(force, time));
                (replayed == Some(true)).then_some(true)
            }
            Fault::Resend if active => match self.change(key, Cause::Operator, |row| row.resend(time)) {
                Some(Resent::Reopened) => Some(true),
                Some(Resent::DueNow) => Some(false),
                Some(Resent::InProgress) | None => None,
            },
            _ => None,
        };
        if let Some(reopened) = reopened {
            self.note(|| format!("{} sent again by an operator", short_key(key)));
            self.book_delivery(key, reopened);
        }
    }
}
