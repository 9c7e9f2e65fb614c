//! A stream with one pull consumer, as JetStream behaves: redelivery after `ack_wait`, and after a kill of the server
//! acked messages that come back with delivery count 1.

use std::collections::HashSet;

use super::config::Mutation;
use super::world::{ACK_WAIT_MS, Owner, World};

/// Of acks younger than this some are forgotten by a kill.
const FORGOTTEN_MS: u64 = 5000;
/// Of messages of JOBS younger than this some are lost by a kill.
const LOST_TAIL_MS: u64 = 500;
/// A publish without an answer is repeated after this time …
const PUBLISH_AGAIN_MS: u64 = 2000;
/// … so many times.
const PUBLISHES: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Out { until: u64 },
    Acked { at: u64 },
    Lost,
}

struct Message<M> {
    body: M,
    stored: u64,
    id: u64,
    marked: bool,
    state: State,
    delivered: u64,
}

/// See the module.
pub struct Stream<M> {
    messages: Vec<Message<M>>,
    ids: HashSet<u64>,
    /// Everything before it is acked or lost.
    floor: usize,
}

impl<M> Default for Stream<M> {
    fn default() -> Self {
        Self { messages: Vec::new(), ids: HashSet::new(), floor: 0 }
    }
}

/// A message that was pulled.
#[derive(Clone, Debug)]
pub struct Pulled<M> {
    pub sequence: usize,
    pub body: M,
    pub delivered: u64,
    pub marked: bool,
}

impl<M: Clone> Stream<M> {
    /// Stores a message; `false`: one with this id is there.
    pub fn publish(&mut self, body: M, id: u64, marked: bool, deduplicate: bool, now: u64) -> bool {
        if deduplicate && !self.ids.insert(id) {
            return false;
        }
        self.messages.push(Message { body, stored: now, id, marked, state: State::Waiting, delivered: 0 });
        true
    }

    pub fn pull(&mut self, most: usize, now: u64) -> Vec<Pulled<M>> {
        let mut pulled = Vec::new();
        while self.messages.get(self.floor).is_some_and(|m| matches!(m.state, State::Acked { .. } | State::Lost)) {
            self.floor += 1;
        }
        for (sequence, message) in self.messages.iter_mut().enumerate().skip(self.floor) {
            if pulled.len() == most {
                break;
            }
            let free = match message.state {
                State::Waiting => true,
                State::Out { until } => until <= now,
                State::Acked { .. } | State::Lost => false,
            };
            if free {
                message.state = State::Out { until: now + ACK_WAIT_MS };
                message.delivered += 1;
                let (body, delivered, marked) = (message.body.clone(), message.delivered, message.marked);
                pulled.push(Pulled { sequence, body, delivered, marked });
            }
        }
        pulled
    }

    /// The body, where the message was not acked before.
    pub fn ack(&mut self, sequence: usize, now: u64) -> Option<&M> {
        let message = self.messages.get_mut(sequence)?;
        if matches!(message.state, State::Acked { .. } | State::Lost) {
            return None;
        }
        message.state = State::Acked { at: now };
        Some(&message.body)
    }

    pub fn progress(&mut self, sequence: usize, now: u64) {
        if let Some(message) = self.messages.get_mut(sequence)
            && let State::Out { until } = &mut message.state
        {
            *until = now + ACK_WAIT_MS;
        }
    }

    pub fn all_acked(&self) -> bool {
        self.messages.iter().skip(self.floor).all(|m| matches!(m.state, State::Acked { .. } | State::Lost))
    }

    /// The consumer falls back: acks after `since` are forgotten, what was out waits again, all with count 1.
    fn fall_back(&mut self, since: u64) {
        for message in &mut self.messages {
            match message.state {
                State::Acked { at } if at >= since => (message.state, message.delivered) = (State::Waiting, 0),
                State::Out { .. } => (message.state, message.delivered) = (State::Waiting, 0),
                State::Waiting | State::Acked { .. } | State::Lost => {}
            }
        }
        self.floor = 0;
    }

    fn lose(&mut self, stored_since: u64) {
        for message in &mut self.messages {
            if message.stored >= stored_since {
                message.state = State::Lost;
                self.ids.remove(&message.id);
            }
        }
    }
}

impl World {
    pub fn nats_is_up(&self) -> bool {
        self.nats_down_until <= self.now
    }

    /// Nobody reaches JetStream for a while.
    pub fn cut_nats(&mut self, down_ms: u64) {
        self.nats_down_until = self.nats_down_until.max(self.now + down_ms);
        self.disrupt();
        self.after(down_ms, Self::disrupt);
    }

    /// What EVENTS holds is given out again from there on, as `webhook-relay recover` has it read again.
    pub fn refill(&mut self, acked_since: u64) {
        self.events.fall_back(acked_since);
    }

    /// nats-server is killed and comes back.
    pub fn kill_nats(&mut self, down_ms: u64) {
        let since = self.now.saturating_sub(self.dice.range(0, FORGOTTEN_MS));
        let tail = self.now.saturating_sub(self.dice.range(0, LOST_TAIL_MS));
        self.events.fall_back(since);
        self.jobs.fall_back(since);
        self.jobs.lose(tail);
        self.nats_down_until = self.now + down_ms;
        self.disrupt();
        // The reconnect is a disruption too.
        self.after(down_ms, Self::disrupt);
    }

    pub fn fail_over(&mut self) {
        let since = self.now.saturating_sub(self.dice.range(0, FORGOTTEN_MS));
        self.events.fall_back(since);
        self.jobs.fall_back(since);
        self.disrupt();
    }

    pub fn delete_jobs(&mut self) {
        self.jobs.lose(0);
        self.disrupt();
    }

    fn disrupt(&mut self) {
        let now = self.now;
        self.pods.iter_mut().for_each(|pod| pod.disrupted_at = Some(now));
        // A scheduler counts a reconnect as a failed pass.
        self.dispatchers.iter_mut().for_each(|d| d.failed_at = Some(now));
    }

    /// Acks a message of EVENTS (I1).
    pub fn ack_events(&mut self, sequence: usize) {
        if !self.nats_is_up() || self.dice.chance(self.chances.events_ack_lost) {
            return;
        }
        let now = self.now;
        let Some(body) = self.events.ack(sequence, now) else { return };
        let missing = body.iter().map(|e| e.id).find(|id| self.store.resolve(*id).is_none());
        if let Some(id) = missing {
            self.fail(format!("I1: EVENTS {sequence} is acked, event {} is not committed", super::world::short(id.0)));
        }
    }

    /// Acks a message of JOBS: each job in it must be through.
    pub fn ack_jobs(&mut self, sequence: usize) {
        if !self.nats_is_up() || self.dice.chance(self.chances.jobs_ack_lost) {
            return;
        }
        let (now, time) = (self.now, self.time());
        let Some(body) = self.jobs.ack(sequence, now) else { return };
        let current = body.iter().find(|job| {
            let row = self.store.row((job.event, job.endpoint));
            row.is_some_and(|r| {
                r.lease_runs(time) && (r.state().claim, r.state().attempts) == (job.claim, job.attempts)
            })
        });
        if let Some(job) = current {
            let key = super::world::short_key((job.event, job.endpoint));
            let claim = job.claim;
            self.fail(format!("JOBS {sequence} is acked while its job {key} with claim {claim} is still to be done"));
        }
    }

    /// Publishes jobs in bundles, each until JetStream has it or for some seconds.
    pub fn publish_jobs(
        &mut self,
        owner: Owner,
        jobs: Vec<relay_core::job::Job>,
        done: impl FnOnce(&mut Self) + 'static,
    ) {
        let bundles = relay_core::job::bundles(jobs);
        self.publish_rest(owner, bundles.into_iter(), Box::new(done));
    }

    fn publish_rest(
        &mut self,
        owner: Owner,
        mut rest: std::vec::IntoIter<Vec<relay_core::job::Job>>,
        done: super::world::Action,
    ) {
        let Some(bundle) = rest.next() else { return done(self) };
        let id = self.dice.next();
        self.publish_one(owner, bundle, id, 1, Box::new(move |w| w.publish_rest(owner, rest, done)));
    }

    fn publish_one(
        &mut self,
        owner: Owner,
        bundle: Vec<relay_core::job::Job>,
        id: u64,
        turn: u32,
        done: super::world::Action,
    ) {
        let wait = self.dice.range(1, 4);
        self.after(wait, move |w| {
            let safe = !w.mutated(Mutation::NoDeduplication);
            let up = w.nats_is_up();
            if up {
                let stored = w.jobs.publish(bundle.clone(), id, turn > 1 && safe, safe, w.now);
                w.note(|| format!("JOBS gets {} jobs, turn {turn}, stored: {stored}", bundle.len()));
            }
            if up && !w.dice.chance(w.chances.publish_unknown) {
                w.does(owner, 1, done);
            } else if turn < PUBLISHES {
                w.does(owner, PUBLISH_AGAIN_MS, move |w| w.publish_one(owner, bundle, id, turn + 1, done));
            } else {
                w.does(owner, PUBLISH_AGAIN_MS, done);
            }
        });
    }
}
