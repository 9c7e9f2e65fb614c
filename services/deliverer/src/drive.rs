//! Drives the pool: one task owns the queues, so nothing in them is locked. It starts attempts, passes on what is
//! handed back, acks messages, and tells the other services what they should know.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use relay_bus::{AckHandle, Bus};
use relay_core::endpoint::Endpoint;
use relay_core::lanes::Completion;
use relay_core::subject::{HINT_DUE, HINT_FULL, HINT_SLOW};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::attempt::{self, Attempts, Ended};
use crate::gate::{Circuit, gate};
use crate::pool::{Ask, Effects, Leased, Pool};
use crate::prepared::{Cache, Prepared, Unsendable};
use crate::stall::LOOK_PERIOD;
use crate::work::{Arrived, Key, Over, Report, Settled, Work};

/// How a message is acknowledged; shared by the ack and the words of progress before it.
pub type Ack = Arc<AckHandle>;

/// Events handled in one turn at most.
const TURN_MAX: usize = 256;
/// Between two hints that work is due.
const HINT_PERIOD: Duration = Duration::from_millis(50);

/// What the pool's task listens to.
pub struct Inbox {
    /// From intake; closed when it has stopped, which begins the end of the pool.
    pub arrivals: mpsc::Receiver<Arrived<Ack>>,
    /// From attempts.
    pub over: mpsc::Receiver<Over>,
    /// From the recorder.
    pub settled: mpsc::Receiver<Vec<(Key, Settled)>>,
    /// Tokens of rate limits.
    pub leased: mpsc::Receiver<Leased>,
}

/// Where the pool's task and its attempts speak to.
#[derive(Clone)]
pub struct Outbox {
    /// To the recorder.
    pub reports: mpsc::Sender<Report>,
    /// To the task that acks.
    pub words: mpsc::Sender<Word>,
    /// From attempts to the pool.
    pub over: mpsc::Sender<Over>,
    /// From questions for tokens to the pool.
    pub leased: mpsc::Sender<Leased>,
}

/// What the bus is to be told.
pub enum Word {
    /// A message is through.
    Ack(Ack),
    /// A message is still worked on.
    Progress(Ack),
    /// A hint to the dispatchers: its subject and body.
    Hint(&'static str, Bytes),
}

/// Tells the bus. A task of its own, so that a connection that is away holds up nobody; words that find its queue
/// full are dropped: what is not acked comes again and is found done, and hints are only hints.
pub async fn speak(mut words: mpsc::Receiver<Word>, bus: Bus) {
    while let Some(word) = words.recv().await {
        match word {
            Word::Ack(handle) => handle.ack().await,
            Word::Progress(handle) => handle.progress().await,
            Word::Hint(subject, body) => bus.hint(subject, body).await,
        }
    }
}

/// Runs until the arrivals are closed and everything is settled.
pub async fn run(mut pool: Pool<Ack>, attempts: Arc<Attempts>, mut inbox: Inbox, outbox: Outbox) {
    let mut effects = Effects::default();
    let mut cache = Cache::default();
    let (mut arrivals, mut over, mut settled) = (Vec::new(), Vec::new(), Vec::new());
    let mut arriving = true;
    let mut looked = Instant::now();
    let mut hinter = Hinter::default();
    let mut wakes_at: Option<Instant> = None;
    let mut tick = tokio::time::interval(LOOK_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while arriving || !pool.is_idle() {
        let mut ticked = false;
        tokio::select! {
            biased;
            _ = tick.tick() => ticked = true,
            n = inbox.settled.recv_many(&mut settled, TURN_MAX) => {
                if n == 0 {
                    tracing::warn!("the recorder has ended: what it had not recorded comes again");
                    return;
                }
            }
            _ = inbox.over.recv_many(&mut over, TURN_MAX) => {}
            Some(one) = inbox.leased.recv() => pool.leased(one, Instant::now()),
            () = sleep_until(wakes_at), if wakes_at.is_some() => {}
            n = inbox.arrivals.recv_many(&mut arrivals, TURN_MAX), if arriving => arriving = n > 0,
        }
        let now = Instant::now();
        attempts.disruptions.look(looked, now);
        looked = now;

        pool.settled(settled.drain(..).flatten(), &mut effects);
        for one in over.drain(..) {
            pool.over(one.endpoint, one.how, one.took_ms, now, &mut effects);
            pool.settled(one.settled, &mut effects);
        }
        while let Ok(one) = inbox.leased.try_recv() {
            pool.leased(one, now);
        }
        for message in arrivals.drain(..) {
            pool.arrived(message, now, &mut effects);
        }
        if !arriving || attempts.stopping.is_cancelled() {
            pool.stop(&mut effects);
        }
        let directory = attempts.links.directory.snapshot();
        let time = attempts.links.clock.now();
        let circuits = &attempts.links.circuits;
        let circuit = |endpoint: &Endpoint| Circuit {
            decision: circuits.decide(endpoint.id, &endpoint.circuit, time),
            ramp: circuits.ramp(endpoint.id),
        };
        let gate = |work: &Work, n: usize| gate(directory.endpoint(work.job.endpoint).map(Arc::as_ref), n, circuit);
        pool.pump(now, gate, &mut effects);
        wakes_at = pool.wakes_at();
        for ask in effects.asks.drain(..) {
            tokio::spawn(lease(Arc::clone(&attempts), ask, outbox.leased.clone()));
        }

        for (work, as_probe) in effects.starts.drain(..) {
            let endpoint = directory.endpoint(work.job.endpoint).expect("the gate found it in this very snapshot");
            let prepared = cache.get(endpoint);
            tokio::spawn(attempt(Arc::clone(&attempts), work, prepared, as_probe, outbox.clone()));
        }
        for report in effects.reports.drain(..) {
            // Fails only when the recorder has given up, which the next turn notices.
            let _ = outbox.reports.send(report).await;
        }
        for ack in effects.acks.drain(..) {
            outbox.say(Word::Ack(ack));
        }
        if ticked {
            for ack in pool.take_unannounced(now) {
                outbox.say(Word::Progress(ack));
            }
            pool.measure();
        }
        hinter.hint(&outbox, &mut effects, now);
    }
}

impl Outbox {
    fn say(&self, word: Word) {
        if self.words.try_send(word).is_err() {
            metrics::counter!("relay_deliverer_words_dropped_total").increment(1);
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// One question for tokens in its task.
async fn lease(ctx: Arc<Attempts>, ask: Ask, leased: mpsc::Sender<Leased>) {
    let answer = ctx.links.circuits.lease_tokens(ask.endpoint, &ask.limit, ask.wanted).await;
    // Fails only when the pool has ended.
    let _ = leased.send((ask, answer)).await;
}

/// One attempt in its task. Whatever happens in it, its place becomes free and its job is settled.
async fn attempt(
    ctx: Arc<Attempts>,
    work: Work,
    prepared: Result<Arc<Prepared>, Unsendable>,
    as_probe: bool,
    outbox: Outbox,
) {
    let (key, endpoint) = (work.key(), work.job.endpoint);
    let prepared = prepared.as_ref().map(Arc::as_ref);
    let ended = AssertUnwindSafe(attempt::run(&ctx, work, prepared, as_probe)).catch_unwind().await;
    let (how, took_ms, settled) = match ended {
        Ok(Ended { report: Ok(report), how, took_ms }) => match outbox.reports.send(report).await {
            Ok(()) => (how, took_ms, None),
            Err(_) => (how, took_ms, Some((key, Settled::Unknown))),
        },
        Ok(Ended { report: Err(settled), how, took_ms }) => (how, took_ms, Some((key, settled))),
        Err(_) => {
            tracing::error!(event = %key.0, %endpoint, "an attempt panicked; its job comes again");
            (Completion::NotSent, 0, Some((key, Settled::Unknown)))
        }
    };
    // Fails only when the pool has ended without waiting for this attempt.
    let _ = outbox.over.send(Over { endpoint, how, took_ms, settled }).await;
}

/// Tells the dispatchers which endpoints are full or slow, and when it is worth looking for work.
#[derive(Default)]
struct Hinter {
    due: Option<Instant>,
}

impl Hinter {
    fn hint(&mut self, outbox: &Outbox, effects: &mut Effects<Ack>, now: Instant) {
        let Effects { full, slow, roomy, .. } = effects;
        for (subject, endpoints) in [(HINT_FULL, full), (HINT_SLOW, slow), (HINT_DUE, roomy)] {
            for endpoint in endpoints.drain(..) {
                outbox.say(Word::Hint(subject, Bytes::from(endpoint.to_string())));
            }
        }
        let recently = self.due.is_some_and(|at| now.saturating_duration_since(at) < HINT_PERIOD);
        if effects.freed && !recently {
            effects.freed = false;
            self.due = Some(now);
            outbox.say(Word::Hint(HINT_DUE, Bytes::new()));
        }
    }
}
