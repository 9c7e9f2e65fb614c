//! Step 11 of an event's way: one statement writes a batch of results: attempts, open → closed or due again,
//! dead letters, statistics, deactivations. Called by the deliverer's recorder; safe to repeat whole.
//!
//! Invariants: the statement is [`relay_core::delivery::apply`] in SQL (a test compares the two); every attempt
//! is on record once; a result that can't be stored is stored with its evidence replaced, so that the change
//! of state is never lost; a 2xx that finds nothing is run again, since under READ COMMITTED a statement can
//! miss a row that another one just moved.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::delivery::{DeliveryResult, Evidence, Outcome};
use relay_core::ids::{DeadLetterId, TenantId};
use relay_core::protocol::FoldedResult;
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Map;
use tracing::{error, warn};
use uuid::Uuid;

use crate::bisect::{Piece, bisect};
use crate::circuit_history::CircuitEventRow;
use crate::connect::Store;
use crate::dispatch::micros;
use crate::error::{ErrorKind, StoreError};
use crate::partitions::days_of;
use crate::run::CONFLICT_RETRIES;

/// How often a 2xx that found neither an open nor a closed row is run again.
const MISSED_RUNS_MAX: usize = 3;

/// What became of one result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// A 2xx: the delivery is delivered by it.
    Delivered,
    /// A 2xx for a delivery that was delivered before.
    AlreadyDelivered,
    /// Anything else that changed its delivery's row.
    Applied,
    /// Stale, repeated, or for a life that was sent again since: only its attempts are on record.
    Stale,
    /// Its day was dropped by retention: nothing was written.
    Expired,
    /// Not even the change of state could be stored. Never seen; logged as an error.
    Unstorable,
}

/// The answer to a batch.
#[derive(Clone, Debug, Default)]
pub struct RecordedBatch {
    /// One per result, in the batch's order.
    pub results: Vec<Recorded>,
    /// Tenants of which an endpoint was deactivated: their directory has changed.
    pub deactivated: Vec<TenantId>,
}

/// How much of a result's evidence is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    All,
    /// The attempt's numbers and times, with this error in place of what the endpoint sent.
    Replaced,
    /// No attempt at all.
    Nothing,
}

struct Row {
    applied: Vec<i64>,
    delivered_before: Vec<i64>,
    refused: Vec<i64>,
    deactivated: Vec<String>,
}

struct Answer {
    /// `None`: a 2xx that found nothing.
    results: Vec<Option<Recorded>>,
    deactivated: Vec<String>,
}

impl Row {
    fn read(self, batch: &[&FoldedResult]) -> Answer {
        let ordinal = |n: &i64| usize::try_from(*n - 1).unwrap_or(usize::MAX);
        let mut results: Vec<Option<Recorded>> =
            batch.iter().map(|r| (r.decisive.outcome != Outcome::Delivered).then_some(Recorded::Stale)).collect();
        let mut set = |n: usize, to: Recorded| {
            if let Some(place) = results.get_mut(n) {
                *place = Some(to);
            }
        };
        self.refused.iter().for_each(|n| set(ordinal(n), Recorded::Stale));
        self.delivered_before.iter().for_each(|n| set(ordinal(n), Recorded::AlreadyDelivered));
        for n in self.applied.iter().map(ordinal) {
            let is_2xx = batch.get(n).is_some_and(|r| r.decisive.outcome == Outcome::Delivered);
            set(n, if is_2xx { Recorded::Delivered } else { Recorded::Applied });
        }
        Answer { results, deactivated: self.deactivated }
    }
}

/// The numbers that the statement knows the outcomes by.
fn kind(outcome: &Outcome) -> i16 {
    match outcome {
        Outcome::Delivered => 1,
        Outcome::Retry { .. } => 2,
        Outcome::Dead { .. } => 3,
        Outcome::HandedBack { .. } => 4,
    }
}

/// Attempts on record after the result, where the guard finds the job's own row.
fn attempts_after(result: &DeliveryResult) -> i32 {
    match &result.outcome {
        Outcome::HandedBack { .. } => result.attempts,
        Outcome::Dead { reason, .. } if reason.without_attempt() => result.attempts,
        _ => result.attempts.saturating_add(1),
    }
}

/// What people see as the reason of a failure.
fn last_error(result: &DeliveryResult) -> Option<String> {
    match (&result.outcome, &result.evidence) {
        (Outcome::Delivered, _) => None,
        (_, Some(e)) => e.error.clone().or_else(|| e.http_status.map(|s| format!("HTTP {s}"))),
        (Outcome::Dead { reason, .. }, None) if *reason == relay_core::delivery::DeadReason::EndpointInactive => {
            Some(crate::close::INACTIVE.to_owned())
        }
        (Outcome::Dead { reason, .. }, None) => Some(reason.as_str().to_owned()),
        _ => None,
    }
}

fn int(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// One attempt's row.
struct AttemptRow<'a> {
    result: &'a DeliveryResult,
    evidence: &'a Evidence,
    success: bool,
}

fn is_success(result: &DeliveryResult) -> bool {
    result.outcome == Outcome::Delivered
}

/// The statement for a batch, with its arguments. `batch` is sorted by event and endpoint.
fn statement(
    batch: &[&FoldedResult],
    pod: &str,
    detail: Detail,
    replacement: &str,
) -> Map<'static, Postgres, impl FnMut(PgRow) -> Result<Row, sqlx::Error> + Send + use<>, PgArguments> {
    let decisive = || batch.iter().map(|r| &r.decisive);
    let events: Vec<Uuid> = decisive().map(|r| r.event.0).collect();
    let endpoints: Vec<Uuid> = decisive().map(|r| r.endpoint.0).collect();
    let claims: Vec<i32> = decisive().map(|r| r.claim).collect();
    let attempts: Vec<i32> = decisive().map(|r| r.attempts).collect();
    let kinds: Vec<i16> = decisive().map(|r| kind(&r.outcome)).collect();
    let delays: Vec<i64> = decisive()
        .map(|r| match &r.outcome {
            Outcome::Retry { delay } | Outcome::HandedBack { delay, .. } => micros(*delay),
            Outcome::Delivered | Outcome::Dead { .. } => micros(Duration::ZERO),
        })
        .collect();
    let reasons: Vec<Option<&str>> = decisive()
        .map(|r| match &r.outcome {
            Outcome::Dead { reason, .. } => Some(reason.as_str()),
            _ => None,
        })
        .collect();
    let after: Vec<i32> = decisive().map(attempts_after).collect();
    let hand_back: Vec<i16> = decisive()
        .map(|r| match &r.outcome {
            Outcome::HandedBack { reason, .. } => *reason as i16,
            _ => 0,
        })
        .collect();
    let last_status: Vec<Option<i32>> =
        decisive().map(|r| r.evidence.as_ref().and_then(|e| e.http_status).map(i32::from)).collect();
    let errors: Vec<Option<String>> = match detail {
        Detail::All => decisive().map(last_error).collect(),
        Detail::Replaced | Detail::Nothing => {
            decisive().map(|r| last_error(r).map(|_| replacement.to_owned())).collect()
        }
    };
    let errors: Vec<Option<&[u8]>> = errors.iter().map(|e| e.as_ref().map(|e| e.as_bytes())).collect();
    let letters: Vec<Uuid> = decisive().map(|r| DeadLetterId::of_delivery(r.event, r.endpoint).0).collect();
    let tenants: Vec<&str> = decisive().map(|r| r.tenant.as_str()).collect();
    let deactivate: Vec<bool> =
        decisive().map(|r| matches!(r.outcome, Outcome::Dead { deactivate: true, .. })).collect();

    let replaced: Vec<(&DeliveryResult, Evidence)> = match detail {
        Detail::Replaced => batch
            .iter()
            .flat_map(|r| std::iter::once(&r.decisive).chain(&r.others))
            .filter_map(|r| r.evidence.as_ref().map(|e| (r, without_words(e, replacement))))
            .collect(),
        Detail::All | Detail::Nothing => Vec::new(),
    };
    let rows: Vec<AttemptRow<'_>> = match detail {
        Detail::All => batch
            .iter()
            .flat_map(|r| std::iter::once(&r.decisive).chain(&r.others))
            .filter_map(|r| {
                r.evidence.as_ref().map(|evidence| AttemptRow { result: r, evidence, success: is_success(r) })
            })
            .collect(),
        Detail::Replaced => {
            replaced.iter().map(|(r, evidence)| AttemptRow { result: r, evidence, success: is_success(r) }).collect()
        }
        Detail::Nothing => Vec::new(),
    };
    let a_events: Vec<Uuid> = rows.iter().map(|a| a.result.event.0).collect();
    let a_endpoints: Vec<Uuid> = rows.iter().map(|a| a.result.endpoint.0).collect();
    let a_ids: Vec<Uuid> = rows.iter().map(|a| a.evidence.id.0).collect();
    let a_numbers: Vec<i32> = rows.iter().map(|a| a.result.attempts.saturating_add(1)).collect();
    let a_times: Vec<DateTime<Utc>> = rows.iter().map(|a| a.evidence.attempted_at).collect();
    let a_success: Vec<bool> = rows.iter().map(|a| a.success).collect();
    let a_status: Vec<Option<i32>> = rows.iter().map(|a| a.evidence.http_status.map(i32::from)).collect();
    let a_class: Vec<Option<&str>> = rows.iter().map(|a| a.evidence.error_class).collect();
    let a_error: Vec<Option<&[u8]>> = rows.iter().map(|a| a.evidence.error.as_ref().map(|e| e.as_bytes())).collect();
    let a_total: Vec<i32> = rows.iter().map(|a| int(a.evidence.total_us)).collect();
    let a_connect: Vec<Option<i32>> = rows.iter().map(|a| a.evidence.connect_us.map(int)).collect();
    let a_first: Vec<Option<i32>> = rows.iter().map(|a| a.evidence.first_byte_us.map(int)).collect();
    let a_request: Vec<&[u8]> = rows.iter().map(|a| &a.evidence.request_headers[..]).collect();
    let a_response: Vec<&[u8]> = rows.iter().map(|a| &a.evidence.response_headers[..]).collect();
    let a_excerpt: Vec<&[u8]> = rows.iter().map(|a| &a.evidence.excerpt[..]).collect();

    sqlx::query_file_as!(
        Row,
        "src/sql/record.sql",
        &events,
        &endpoints,
        &claims,
        &attempts,
        &kinds,
        &delays,
        &reasons as _,
        &after,
        &hand_back,
        &last_status as _,
        &errors as _,
        &letters,
        &deactivate,
        &a_events,
        &a_endpoints,
        &a_ids,
        &a_numbers,
        &a_times,
        &a_success,
        &a_status as _,
        &a_class as _,
        &a_error as _,
        &a_total,
        &a_connect as _,
        &a_first as _,
        &a_request as _,
        &a_response as _,
        &a_excerpt as _,
        pod,
        &tenants as _
    )
}

/// Evidence of which only numbers and times are left.
fn without_words(evidence: &Evidence, replacement: &str) -> Evidence {
    Evidence {
        error_class: Some("unrecordable"),
        error: Some(replacement.to_owned()),
        request_headers: Bytes::new(),
        response_headers: Bytes::new(),
        excerpt: Bytes::new(),
        ..evidence.clone()
    }
}

impl Store {
    /// Writes a batch of folded results, at most one per delivery, and the circuit changes of this pod.
    pub async fn record(
        &self,
        batch: &[FoldedResult],
        pod: &str,
        transitions: &[CircuitEventRow],
    ) -> Result<RecordedBatch, StoreError> {
        if !transitions.is_empty() {
            self.record_transitions(pod, transitions).await?;
        }
        #[cfg(debug_assertions)]
        let unguarded = self.unguarded(batch).await?;
        #[cfg(debug_assertions)]
        let batch = unguarded.as_deref().unwrap_or(batch);
        // In the order of their keys: statements that meet wait for each other in one direction only.
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_unstable_by_key(|n| (batch[*n].decisive.event, batch[*n].decisive.endpoint));
        let mut results = vec![Recorded::Stale; batch.len()];
        let mut deactivated = BTreeSet::new();
        for _ in 0..=MISSED_RUNS_MAX {
            let sorted: Vec<&FoldedResult> = order.iter().map(|n| &batch[*n]).collect();
            let pieces = bisect(sorted.len(), |range| self.record_piece(&sorted[range], pod, Detail::All, "")).await?;
            let mut missed = Vec::new();
            for piece in pieces {
                let (range, answer) = match piece {
                    Piece::Done(range, answer) => (range, answer),
                    Piece::Refused(n, e) => {
                        let answer = self.record_poison(sorted[n], pod, &e).await?;
                        (n..n + 1, answer)
                    }
                };
                deactivated.extend(answer.deactivated);
                for (n, result) in range.zip(answer.results) {
                    match result {
                        Some(result) => results[order[n]] = result,
                        None => missed.push(order[n]),
                    }
                }
            }
            if missed.is_empty() {
                break;
            }
            order = missed;
            order.sort_unstable_by_key(|n| (batch[*n].decisive.event, batch[*n].decisive.endpoint));
        }
        Ok(RecordedBatch { results, deactivated: deactivated.iter().map(|t| TenantId::trusted(t)).collect() })
    }

    async fn record_piece(
        &self,
        batch: &[&FoldedResult],
        pod: &str,
        detail: Detail,
        words: &str,
    ) -> Result<Answer, StoreError> {
        let mut made_partitions = false;
        let mut conflicts = 0;
        loop {
            match self.keyed.one(statement(batch, pod, detail, words)).await {
                Ok(row) => return Ok(row.read(batch)),
                Err(e) if e.kind() == ErrorKind::Conflict && conflicts < CONFLICT_RETRIES => conflicts += 1,
                Err(e) if e.kind() == ErrorKind::MissingPartition && !made_partitions => {
                    self.ensure_partitions(days_of(batch.iter().map(|r| r.decisive.event.0))).await?;
                    made_partitions = true;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// A lone result that can't be stored as it is: without what the endpoint sent, then without the attempt.
    async fn record_poison(&self, result: &FoldedResult, pod: &str, why: &StoreError) -> Result<Answer, StoreError> {
        let (event, endpoint) = (result.decisive.event, result.decisive.endpoint);
        if why.kind() == ErrorKind::MissingPartition {
            warn!(%event, %endpoint, error = %why, "a result came after its day was dropped");
            return Ok(Answer { results: vec![Some(Recorded::Expired)], deactivated: Vec::new() });
        }
        warn!(%event, %endpoint, error = %why, "a result can't be stored: its evidence is replaced");
        let words = match why {
            StoreError::Data { sqlstate, .. } => format!("unrecordable: {sqlstate}"),
            _ => "unrecordable".to_owned(),
        };
        for detail in [Detail::Replaced, Detail::Nothing] {
            match self.record_piece(&[result], pod, detail, &words).await {
                Err(e) if e.kind() == ErrorKind::Data => {}
                answer => return answer,
            }
        }
        error!(%event, %endpoint, error = %why, "a result can't be stored at all");
        Ok(Answer { results: vec![Some(Recorded::Unstorable)], deactivated: Vec::new() })
    }
}

/// Runs a batch on a connection with an open transaction: for the test of two statements that meet.
#[cfg(test)]
pub(crate) async fn run_uncommitted(batch: &[FoldedResult], connection: &mut sqlx::PgConnection) {
    let batch: Vec<&FoldedResult> = batch.iter().collect();
    statement(&batch, "other", Detail::All, "").fetch_one(connection).await.expect("the statement runs");
}
