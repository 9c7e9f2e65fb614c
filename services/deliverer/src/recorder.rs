//! Step 11 of an event's way: results are gathered into batches and written by one statement each; only then
//! do their jobs count as settled, which is what acks their messages.
//!
//! Nobody waits for a record but the room it takes up, so a batch gathers as long as the rate of results makes
//! worth while; a recorder that little comes to writes at once, and one statement at a time. Invariants: a batch whose
//! outcome is unknown, or that failed because of the database, is written again *as it is* until it succeeds; nothing is
//! settled before its commit.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use relay_core::delivery::DeliveryResult;
use relay_core::event::EventType;
use relay_core::gathering::{LINGER_MAX, Pulse, linger};
use relay_core::protocol::{FoldedResult, fold_results};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::flow::Flow;
use crate::work::{Key, Report, Settled};

/// Results in one statement at most.
const BATCH_MAX: usize = 500;
/// With this many waiting, a further statement is begun beside those under way.
const BATCH_FULL_ENOUGH: usize = 200;
/// Statements under way at once.
const STATEMENTS_MAX: usize = 3;
/// First wait before a failed batch is written again; doubled up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest such wait: shorter than a scheduler waits after an outage before it claims lapsed leases.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// With results older than this unrecorded, the pod pulls nothing.
const FLUSH_AGE_MAX: Duration = Duration::from_secs(5);

/// A batch, as it is written: the same at every try.
#[derive(Debug, Default)]
pub struct Batch {
    /// At most one result per delivery, sorted.
    pub results: Vec<FoldedResult>,
    /// What was reported, in the order in which it came.
    pub reported: Vec<Reported>,
}

/// What is kept of a report beside its result.
#[derive(Debug)]
pub struct Reported {
    /// The delivery.
    pub key: Key,
    /// The claim that its result carries.
    pub claim: i32,
    /// What a dead letter's hint says besides.
    pub event_type: EventType,
}

impl Batch {
    fn of(reports: impl Iterator<Item = Report>) -> Self {
        let mut batch = Self::default();
        let mut results: Vec<DeliveryResult> = Vec::new();
        for report in reports {
            let (key, claim) = (report.key(), report.result.claim);
            batch.reported.push(Reported { key, claim, event_type: report.event_type });
            results.push(report.result);
        }
        batch.results = fold_results(results);
        batch
    }
}

/// How many results may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// With more results unrecorded the pod pulls nothing.
    pub unrecorded_max: usize,
}

/// Runs until all senders of `reports` are gone and everything is written, or until `give_up` fires. `write`
/// carries out one batch; `settled` hears of each one that is committed.
pub async fn run<W, F, E>(
    mut reports: mpsc::Receiver<Report>,
    flow: Flow,
    limits: Limits,
    write: W,
    settled: mpsc::Sender<Vec<(Key, Settled)>>,
    give_up: CancellationToken,
) where
    W: Fn(Arc<Batch>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let mut waiting: VecDeque<Report> = VecDeque::new();
    let mut gathered: Vec<Report> = Vec::new();
    let mut oldest = Instant::now();
    let mut pulse = Pulse::default();
    let mut statements: JoinSet<bool> = JoinSet::new();
    let mut begun: Vec<Begun> = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ended = false;
    loop {
        let until = oldest + worth_waiting(&mut pulse, statements.is_empty());
        while !waiting.is_empty() && statements.len() < STATEMENTS_MAX {
            if !ended && waiting.len() < BATCH_FULL_ENOUGH && Instant::now() < until {
                break;
            }
            let batch = Arc::new(Batch::of(waiting.drain(..waiting.len().min(BATCH_MAX))));
            metrics::histogram!("relay_deliverer_record_batch").record(batch.reported.len() as f64);
            let task = statements.spawn(until_written(write.clone(), Arc::clone(&batch), give_up.clone()));
            begun.push(Begun { task: task.id(), since: oldest, batch });
            oldest = Instant::now();
        }
        if ended && waiting.is_empty() && statements.is_empty() {
            return;
        }
        let unrecorded = waiting.len() + reports.len() + begun.iter().map(|b| b.batch.reported.len()).sum::<usize>();
        let late = begun.iter().any(|b| b.since.elapsed() > FLUSH_AGE_MAX);
        flow.set(unrecorded <= limits.unrecorded_max && !late);
        metrics::gauge!("relay_deliverer_unrecorded").set(unrecorded as f64);

        let can_begin = statements.len() < STATEMENTS_MAX;
        tokio::select! {
            n = reports.recv_many(&mut gathered, BATCH_MAX), if !ended && waiting.len() < BATCH_MAX => {
                ended = n == 0;
                if waiting.is_empty() {
                    oldest = Instant::now();
                }
                pulse.observe(n, Instant::now().into_std());
                waiting.extend(gathered.drain(..));
            }
            Some(done) = statements.join_next_with_id() => {
                let (id, written) = match done {
                    Ok(done) => done,
                    Err(error) => {
                        tracing::error!(%error, "a record statement's task failed; its jobs come again");
                        (error.id(), false)
                    }
                };
                if let Some(place) = begun.iter().position(|b| b.task == id) {
                    let batch = begun.swap_remove(place).batch;
                    let how = |claim: i32| if written { Settled::Done { claim } } else { Settled::Unknown };
                    // The pool is gone only when nobody waits for this any more.
                    let _ = settled.send(batch.reported.iter().map(|r| (r.key, how(r.claim))).collect()).await;
                }
            }
            () = sleep_until(until), if can_begin && !waiting.is_empty() => {}
            _ = tick.tick() => {}
            () = give_up.cancelled() => {
                tracing::warn!(unrecorded, "stopped before all results were recorded; their jobs come again");
                return;
            }
        }
    }
}

/// How long a result waits for others: beside a statement under way as long as any does.
fn worth_waiting(pulse: &mut Pulse, is_idle: bool) -> Duration {
    if is_idle { linger(pulse.per_second(Instant::now().into_std())) } else { LINGER_MAX }
}

/// A batch whose statement is under way.
struct Begun {
    task: tokio::task::Id,
    /// When its oldest result came, nearly.
    since: Instant,
    batch: Arc<Batch>,
}

/// Writes one batch again and again until it is committed; `false` when told to give up.
async fn until_written<W, F, E>(write: W, batch: Arc<Batch>, give_up: CancellationToken) -> bool
where
    W: Fn(Arc<Batch>) -> F,
    F: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut wait = RETRY_FIRST;
    loop {
        match write(Arc::clone(&batch)).await {
            Ok(()) => return true,
            Err(error) => {
                metrics::counter!("relay_deliverer_record_failures_total").increment(1);
                tracing::warn!(%error, results = batch.reported.len(), "recording failed; the same batch is written again");
            }
        }
        if give_up.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return false;
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

#[cfg(test)]
mod tests;
