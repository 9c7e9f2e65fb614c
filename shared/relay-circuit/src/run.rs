//! The background work: flushing reports, hearing of changes, reading everything every 2 s. One task per pod.
//!
//! Invariant: a report is dropped only when Redis has taken it; what Redis forgot (it was flushed, or came back
//! empty) is told to it again.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use relay_core::breaker::{Circuit, CircuitState};
use relay_core::ids::EndpointId;
use tokio_util::sync::CancellationToken;

use crate::circuits::{Circuits, Inner};
use crate::error::CircuitError;
use crate::listen::{Announced, parse};
use crate::local::CircuitTransition;
use crate::report::Report;
use crate::shared::{Known, REPORTS_MAX, Reply, Word};
use crate::snapshot::Snapshot;

/// Failures are gathered for this long.
const GATHER: Duration = Duration::from_millis(20);
/// Successes of endpoints in trouble go out at least this often.
const TICK: Duration = Duration::from_millis(100);
/// How often everything is read.
const POLL_PERIOD: Duration = Duration::from_secs(2);
/// How often Redis is tried while it is away.
const AWAY_PERIOD: Duration = Duration::from_millis(250);
/// Polls between two clean-ups.
const POLLS_PER_SWEEP: u32 = 30;

impl Circuits {
    /// Runs until `stop` fires; then what is left is reported once more.
    pub async fn run(self, stop: CancellationToken) {
        let inner = &*self.0;
        tokio::join!(
            async {
                stop.run_until_cancelled(flush_loop(inner)).await;
                inner.flush().await;
            },
            stop.run_until_cancelled(poll_loop(inner)),
            stop.run_until_cancelled(listen_loop(inner)),
        );
    }
}

async fn flush_loop(inner: &Inner) {
    loop {
        tokio::select! {
            () = inner.flush_now.notified() => {}
            () = inner.flush_soon.notified() => {
                // An opening doesn't wait for others to gather.
                drop(tokio::time::timeout(GATHER, inner.flush_now.notified()).await);
            }
            () = tokio::time::sleep(TICK) => {}
        }
        if inner.local().has_reports() && !inner.flush().await {
            tokio::time::sleep(AWAY_PERIOD).await;
        }
    }
}

impl Inner {
    /// Reports all that is pending; `false` when Redis didn't take it.
    async fn flush(&self) -> bool {
        let mut rest = self.local().take_reports();
        let mut unsent = Vec::new();
        while !rest.is_empty() {
            let batch: Vec<_> = rest.drain(..rest.len().min(REPORTS_MAX)).collect();
            let now = self.now();
            match self.shared.report(&batch, |until| left(until, now)).await {
                Ok(replies) => {
                    self.set_up();
                    batch.into_iter().zip(replies).for_each(|((endpoint, report), reply)| {
                        self.take_reply(endpoint, report, reply);
                    });
                }
                Err(error) => {
                    self.set_down(&error);
                    unsent.extend(batch);
                    unsent.append(&mut rest);
                }
            }
        }
        let all_sent = unsent.is_empty();
        self.local().put_back(unsent);
        all_sent
    }

    fn take_reply(&self, endpoint: EndpointId, report: Report, reply: Reply) {
        if let Some(was_open) = reply.changed_from_open {
            let at = self.now();
            let by_counts = || counted(endpoint, at, was_open, reply.word);
            self.local().record(report.transition.unwrap_or_else(by_counts));
        }
        // "Closed" is news only where this report closed it; otherwise it may be older than what we know.
        let closed_it = reply.changed_from_open == Some(true) && reply.word == Word::Closed;
        let is_newest = self.local().answered(endpoint);
        if (reply.word != Word::Closed || closed_it) && is_newest {
            self.apply(endpoint, reply.word);
        }
    }

    fn hear(&self, endpoint: EndpointId, announced: Announced) {
        match announced {
            Announced::Open(left) => self.apply(endpoint, Word::Open(left)),
            Announced::Probing(left) => self.apply(endpoint, Word::Probing(left)),
            Announced::Closed => self.apply(endpoint, Word::Closed),
            Announced::HalfOpen => self.half_open_locally(endpoint),
            Announced::Waiting(left) => {
                let _one_at_a_time = self.local();
                let until = self.now() + left;
                self.snapshot.change(endpoint, |k| k.wait_until = k.wait_until.max(Some(until)));
            }
        }
    }

    /// Makes the snapshot say what Redis said at `asked`, but for what changed here since.
    fn take_over(&self, known: Known, asked: Instant) {
        let probes: HashMap<_, _> = known.probes.into_iter().filter(|(_, left)| !left.is_zero()).collect();
        let open: HashSet<_> = known.open.iter().map(|(endpoint, _)| *endpoint).collect();
        let is_older = |endpoint| self.snapshot.get(endpoint).is_none_or(|k| k.changed < asked);
        let is_settled = |endpoint| is_older(endpoint) && !self.local().has_report_on(endpoint);
        for (endpoint, left) in known.open {
            if is_settled(endpoint) && !says_the_same(&self.snapshot, endpoint, &probes, left, self.now()) {
                self.apply(endpoint, probes.get(&endpoint).map_or(Word::Open(left), |lease| Word::Probing(*lease)));
            }
        }
        for (endpoint, here) in self.snapshot.all() {
            if here.is_open() && !open.contains(&endpoint) && is_settled(endpoint) {
                self.apply(endpoint, Word::Closed);
            }
        }
        for (endpoint, left) in known.waits.into_iter().filter(|(_, left)| !left.is_zero()) {
            if self.snapshot.get(endpoint).is_none_or(|k| k.wait_until.is_none()) && is_older(endpoint) {
                self.hear(endpoint, Announced::Waiting(left));
            }
        }
    }

    /// Redis forgot everything: it is told what this pod knows.
    fn restore(&self) {
        let mut local = self.local();
        let now = self.now();
        for (endpoint, known) in self.snapshot.all() {
            let until = match known.circuit {
                Circuit::Open { until } => Some(until),
                Circuit::Probing { .. } => Some(now),
                Circuit::Closed | Circuit::Ramp { .. } => None,
            };
            if until.is_some() || known.wait_until.is_some_and(|w| w > now) {
                let report = local.report(endpoint);
                report.restore_until = until.or(report.restore_until);
                report.wait_until = report.wait_until.max(known.wait_until);
            }
        }
        drop(local);
        self.flush_now.notify_one();
    }
}

async fn poll_loop(inner: &Inner) {
    let mut born: Option<String> = None;
    let mut polls = 0u32;
    loop {
        let asked = Instant::now();
        let period = match inner.shared.poll().await {
            Ok(known) => {
                inner.set_up();
                if born.replace(known.born.clone()).is_some_and(|before| before != known.born) {
                    tracing::warn!(pod = inner.pod, "Redis lost its memory; open circuits are restored");
                    inner.restore();
                } else {
                    inner.take_over(known, asked);
                }
                POLL_PERIOD
            }
            Err(error) => {
                inner.set_down(&error);
                AWAY_PERIOD
            }
        };
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(POLLS_PER_SWEEP) && inner.is_up.load(Ordering::Relaxed) {
            let now = inner.now();
            inner.local().prune(&inner.snapshot, now);
            if let Err(error) = inner.shared.sweep().await {
                inner.set_down(&error);
            }
        }
        drop(tokio::time::timeout(period, inner.poll_now.notified()).await);
    }
}

async fn listen_loop(inner: &Inner) {
    loop {
        if let Err(error) = listen(inner).await {
            inner.set_down(&error);
        }
        tokio::time::sleep(AWAY_PERIOD).await;
    }
}

/// Hears of changes until the connection ends.
async fn listen(inner: &Inner) -> Result<(), CircuitError> {
    let listener = inner.shared.listen().await?;
    // What was announced before this moment is read now.
    inner.poll_now.notify_one();
    let mut messages = listener.into_on_message();
    while let Some(message) = messages.next().await {
        let text: String = message.get_payload()?;
        match parse(&text) {
            Some((endpoint, announced)) => inner.hear(endpoint, announced),
            None => tracing::debug!(text, "not an announcement of ours"),
        }
    }
    Ok(())
}

/// Whether the snapshot says, within half a second, what Redis says: then nothing is copied.
fn says_the_same(
    snapshot: &Snapshot,
    endpoint: EndpointId,
    probes: &HashMap<EndpointId, Duration>,
    left: Duration,
    now: DateTime<Utc>,
) -> bool {
    let is_near = |a: DateTime<Utc>, b: DateTime<Utc>| (a - b).abs() < chrono::TimeDelta::milliseconds(500);
    match (snapshot.get(endpoint).map(|k| k.circuit), probes.get(&endpoint)) {
        (Some(Circuit::Open { until }), None) => is_near(until, now + left) || (left.is_zero() && until <= now),
        (Some(Circuit::Probing { lease_until }), Some(lease)) => is_near(lease_until, now + *lease),
        // A lease that ran out needs no news: it is asked for again in either case.
        (Some(Circuit::Probing { lease_until }), None) => lease_until <= now && left.is_zero(),
        _ => false,
    }
}

/// The change that Redis found by all pods' counts together.
fn counted(endpoint: EndpointId, at: DateTime<Utc>, was_open: bool, word: Word) -> CircuitTransition {
    let (from, to, why) = match (was_open, word) {
        (false, _) => (CircuitState::Closed, CircuitState::Open, "too many failures"),
        (true, Word::Closed) => (CircuitState::HalfOpen, CircuitState::Closed, "the probe succeeded"),
        (true, _) => (CircuitState::HalfOpen, CircuitState::Open, "the probe failed"),
    };
    CircuitTransition { endpoint, at, from, to, why }
}

/// Milliseconds until then.
fn left(until: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    u64::try_from((until - now).num_milliseconds()).unwrap_or(0)
}
