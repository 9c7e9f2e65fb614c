//! Jobs that replay or discard the open dead letters that match a filter: made and ended by the interface, carried out
//! step by step by the DLQ manager (what comes next is decided in [`relay_core::bulk`]).
//!
//! Invariants: a step changes its letters, the job's place and its counters in one transaction that holds the job's
//! row, so a crash leaves all of it or nothing, and of two runners one waits for the other and goes on behind it. Only
//! letters that came before the job are taken, each once.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::bulk::{JobKind, JobState, NextStep, Pace, next_step};
use relay_core::delivery::DeadReason;
use relay_core::ids::{DeadLetterId, EndpointId, EventId, JobId, TenantId};
use relay_core::page::Cursor;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::connect::Store;
use crate::dead_letters::{LetterFilter, LetterState};
use crate::dispatch::micros;
use crate::error::StoreError;
use crate::new_event::mark_replayed_on;
use crate::replay::{ReplayOutcome, discard_on, replay_on};
use crate::window::{Listed, TOTAL_MAX, Window};

/// Letters that are counted for a job or before one.
pub const COUNT_MAX: i64 = 1_000_000;
/// Letters that could not be done and are named.
pub const ERRORS_SHOWN_MAX: usize = 20;
/// Jobs that one look finds.
const RUNNABLE_MAX: i64 = 64;

/// What a job is to do.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// Whose letters; `None`: everybody's and nobody's (an operator's job).
    pub tenant: Option<TenantId>,
    /// What happens to each.
    pub kind: JobKind,
    /// Which letters; the state is always open.
    pub filter: LetterFilter,
    /// Also those that were replayed less than an hour ago, or delivered after all.
    pub force: bool,
    /// Letters per second; `None`: as fast as it goes.
    pub rate: Option<u32>,
}

/// A job and how far it is.
#[derive(Clone, Debug)]
pub struct LetterJob {
    /// Its identity.
    pub id: JobId,
    /// What it does.
    pub spec: JobSpec,
    /// How far it is.
    pub state: JobState,
    /// Letters that matched at the start; `None`: not begun, or more than [`COUNT_MAX`].
    pub total: Option<i64>,
    /// Letters replayed or discarded.
    pub done: i64,
    /// Letters left as they were, since they need it no more or not yet.
    pub skipped: i64,
    /// Letters that could not be done.
    pub errors: i64,
    /// The first of them, at most [`ERRORS_SHOWN_MAX`].
    pub error_examples: Vec<JobError>,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was made; later letters are not touched.
    pub created_at: DateTime<Utc>,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was over.
    pub finished_at: Option<DateTime<Utc>>,
    position: Option<Cursor>,
    paced_until: Option<DateTime<Utc>>,
}

/// A letter that a job could not do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JobError {
    /// The letter.
    pub letter: DeadLetterId,
    /// Why, as a stable word.
    pub why: String,
}

/// What became of one step.
#[derive(Clone, Debug)]
pub enum Stepped {
    /// It begins now.
    Began,
    /// Letters were taken.
    Took {
        /// What is done with them.
        kind: JobKind,
        /// How many are replayed or discarded.
        done: u64,
        /// What became of each, where they were replayed.
        outcomes: Vec<(DeadLetterId, ReplayOutcome)>,
    },
    /// Nothing was changed: publish these letters as new events first, and step again with what became of them.
    NewEvents {
        /// The letters.
        letters: Vec<DeadLetterId>,
        /// Whether the job is forced.
        force: bool,
    },
    /// Nothing to do before this time has passed.
    Wait(Duration),
    /// The job is over, or there is none.
    Over,
}

/// What became of letters that had to be published: the new event, or why it doesn't go.
pub type Published = HashMap<DeadLetterId, Result<EventId, ReplayOutcome>>;

struct Row {
    id: Uuid,
    tenant: Option<String>,
    kind: String,
    state: String,
    endpoint_id: Option<Uuid>,
    event_type: Option<String>,
    reason: Option<String>,
    after_at: Option<DateTime<Utc>>,
    before_at: Option<DateTime<Utc>>,
    force: bool,
    rate: Option<i32>,
    total: Option<i64>,
    done: i64,
    skipped: i64,
    errors: i64,
    error_examples: serde_json::Value,
    error: Option<String>,
    position_at: Option<DateTime<Utc>>,
    position_id: Option<Uuid>,
    paced_until: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

/// The jobs that the end of a statement picks.
macro_rules! letter_jobs {
    ($end:literal, $($value:expr),*) => {
        sqlx::query_as!(
            Row,
            "select j.id, j.tenant, j.kind, j.state, j.endpoint_id, j.event_type, j.reason, j.after_at, j.before_at, j.force, j.rate, j.total, j.done,
                j.skipped, j.errors, j.error_examples, j.error, j.position_at, j.position_id, j.paced_until, j.created_at, j.started_at, j.finished_at
            from letter_jobs j " + $end,
            $($value),*
        )
    };
}

impl TryFrom<Row> for LetterJob {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let odd = |what: &str| StoreError::Inconsistent(format!("job {} has an unknown {what}", row.id));
        let reason = row.reason.as_deref().map(|r| DeadReason::parse(r).ok_or_else(|| odd("reason"))).transpose()?;
        Ok(Self {
            id: JobId(row.id),
            state: JobState::parse(&row.state).ok_or_else(|| odd("state"))?,
            error_examples: serde_json::from_value(row.error_examples).map_err(|_| odd("list of errors"))?,
            spec: JobSpec {
                tenant: row.tenant.as_deref().map(TenantId::trusted),
                kind: JobKind::parse(&row.kind).ok_or_else(|| odd("kind"))?,
                filter: LetterFilter {
                    endpoint: row.endpoint_id.map(EndpointId),
                    event_type: row.event_type,
                    reason,
                    state: Some(LetterState::Open),
                    after: row.after_at,
                    before: row.before_at,
                },
                force: row.force,
                rate: row.rate.and_then(|rate| u32::try_from(rate).ok()),
            },
            total: row.total,
            done: row.done,
            skipped: row.skipped,
            errors: row.errors,
            error: row.error,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            position: row.position_at.zip(row.position_id).map(|(at, id)| Cursor { at, id }),
            paced_until: row.paced_until,
        })
    }
}

impl Store {
    /// Makes a job; whoever made it runs it for `held`, the leader of the DLQ managers afterwards.
    pub async fn create_job(&self, id: JobId, spec: &JobSpec, held: Duration) -> Result<LetterJob, StoreError> {
        let row = self
            .queries
            .one(sqlx::query_as!(
                Row,
                "insert into letter_jobs (id, tenant, kind, endpoint_id, event_type, reason, after_at, before_at, force, rate, held_until)
                values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now() + $11 * interval '1 microsecond')
                returning id, tenant, kind, state, endpoint_id, event_type, reason, after_at, before_at, force, rate, total, done, skipped, errors,
                    error_examples, error, position_at, position_id, paced_until, created_at, started_at, finished_at",
                id.0,
                spec.tenant.as_ref().map(TenantId::as_str),
                spec.kind.as_str(),
                spec.filter.endpoint.map(|e| e.0),
                spec.filter.event_type,
                spec.filter.reason.map(DeadReason::as_str),
                spec.filter.after,
                spec.filter.before,
                spec.force,
                spec.rate.map(|rate| i32::try_from(rate).unwrap_or(i32::MAX)),
                micros(held) as _
            ))
            .await?;
        row.try_into()
    }

    /// One job. `None` as tenant: any (an operator).
    pub async fn letter_job(&self, tenant: Option<&TenantId>, job: JobId) -> Result<Option<LetterJob>, StoreError> {
        let row = self
            .queries
            .optional(letter_jobs!(
                "where j.id = $1 and ($2::text is null or j.tenant = $2)",
                job.0,
                tenant.map(TenantId::as_str)
            ))
            .await?;
        row.map(LetterJob::try_from).transpose()
    }

    /// Jobs, newest first. `None` as tenant: everybody's (an operator).
    pub async fn jobs(&self, tenant: Option<&TenantId>, window: &Window) -> Result<Listed<LetterJob>, StoreError> {
        let rows = self
            .queries
            .all(letter_jobs!("where ($1::text is null or j.tenant = $1)
                    and (j.created_at, j.id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
                order by j.created_at desc, j.id desc
                offset $4 limit $5",
                tenant.map(TenantId::as_str),
                window.after_at(),
                window.after_id(),
                window.offset,
                window.limit.saturating_add(1)
            ))
            .await?;
        let count = sqlx::query_scalar!(
            r#"select count(*) as "n!" from (select 1 from letter_jobs j where $1::text is null or j.tenant = $1 limit $2) x"#,
            tenant.map(TenantId::as_str),
            TOTAL_MAX + 1
        );
        let total = window.total(rows.len(), self.queries.one(count)).await?;
        let items = rows.into_iter().map(LetterJob::try_from).collect::<Result<_, _>>()?;
        Ok(Listed::cut(items, window, total, |job: &LetterJob| Cursor { at: job.created_at, id: job.id.0 }))
    }

    /// Ends a job that isn't over: what is done is done. A step that runs is waited for. False: it is over, or there is
    /// none.
    pub async fn cancel_job(&self, tenant: Option<&TenantId>, job: JobId) -> Result<bool, StoreError> {
        let cancelled = self
            .queries
            .execute(sqlx::query!(
                "update letter_jobs j set state = 'cancelled', finished_at = now()
                where j.id = $1 and ($2::text is null or j.tenant = $2) and j.state in ('queued', 'running')",
                job.0,
                tenant.map(TenantId::as_str)
            ))
            .await?;
        Ok(cancelled > 0)
    }

    /// Leaves a job to the leader.
    pub async fn release_job(&self, job: JobId) -> Result<(), StoreError> {
        self.queries
            .execute(sqlx::query!("update letter_jobs j set held_until = null where j.id = $1", job.0))
            .await
            .map(|_| ())
    }

    /// Ends a job that can't go on.
    pub async fn fail_job(&self, job: JobId, why: &str) -> Result<(), StoreError> {
        self.queries
            .execute(sqlx::query!(
                "update letter_jobs j set state = 'failed', error = $2, finished_at = now()
                where j.id = $1 and j.state in ('queued', 'running')",
                job.0,
                why
            ))
            .await
            .map(|_| ())
    }

    /// Jobs that somebody has to go on with, oldest first.
    pub async fn runnable_jobs(&self) -> Result<Vec<JobId>, StoreError> {
        let ids = self
            .queries
            .all(sqlx::query_scalar!(
                "select j.id from letter_jobs j
                where j.state in ('queued', 'running') and (j.held_until is null or j.held_until < now())
                order by j.created_at limit $1",
                RUNNABLE_MAX
            ))
            .await?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    /// Deletes jobs that were over before `before`. Returns how many.
    pub async fn forget_jobs(&self, before: DateTime<Utc>) -> Result<u64, StoreError> {
        self.queries.execute(sqlx::query!("delete from letter_jobs j where j.finished_at < $1", before)).await
    }

    /// How many open letters a job would find now; `None`: more than [`COUNT_MAX`].
    pub async fn count_for_job(&self, spec: &JobSpec) -> Result<Option<i64>, StoreError> {
        let n = self.count_letters(spec.tenant.as_ref(), &spec.filter, COUNT_MAX + 1).await?;
        Ok((n <= COUNT_MAX).then_some(n))
    }

    /// Does what comes next for a job: see [`Stepped`].
    pub async fn step_job(&self, id: JobId, published: &Published) -> Result<Stepped, StoreError> {
        let Some(job) = self.letter_job(None, id).await? else { return Ok(Stepped::Over) };
        // Counted outside of the transaction: it may take a while, and nobody should wait for it to cancel.
        let total = match job.state {
            JobState::Queued => self.count_for_job(&JobSpec { filter: job.reach(), ..job.spec }).await?,
            _ => None,
        };
        // A transaction that is not committed ends with its connection, which nobody gets back.
        let mut held = self.keyed.hold().await?;
        let step = step(held.conn(), id, total, published);
        let stepped = tokio::time::timeout(self.keyed.deadline, step).await.map_err(|_| StoreError::Timeout)??;
        held.give_back();
        Ok(stepped)
    }
}

async fn step(
    connection: &mut PgConnection,
    id: JobId,
    total: Option<i64>,
    published: &Published,
) -> Result<Stepped, StoreError> {
    sqlx::raw_sql("begin").execute(&mut *connection).await?;
    let stepped = step_locked(connection, id, total, published).await?;
    let end = if matches!(stepped, Stepped::NewEvents { .. }) { "rollback" } else { "commit" };
    sqlx::raw_sql(end).execute(connection).await?;
    Ok(stepped)
}

async fn step_locked(
    connection: &mut PgConnection,
    id: JobId,
    total: Option<i64>,
    published: &Published,
) -> Result<Stepped, StoreError> {
    let row = letter_jobs!("where j.id = $1 for update", id.0).fetch_optional(&mut *connection).await?;
    let Some(row) = row else { return Ok(Stepped::Over) };
    let job = LetterJob::try_from(row)?;
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *connection).await?;
    let pace = Pace { rate: job.spec.rate, until: job.paced_until };
    match next_step(job.state, pace, now) {
        NextStep::Over => Ok(Stepped::Over),
        NextStep::Wait(wait) => Ok(Stepped::Wait(wait)),
        NextStep::Begin => {
            sqlx::query!(
                "update letter_jobs j set state = 'running', total = $2, started_at = $3, paced_until = $3 where j.id = $1",
                id.0,
                total,
                now
            )
            .execute(connection)
            .await?;
            Ok(Stepped::Began)
        }
        NextStep::Take(letters) => take(connection, job, pace, now, letters, published).await,
    }
}

async fn take(
    connection: &mut PgConnection,
    mut job: LetterJob,
    pace: Pace,
    now: DateTime<Utc>,
    letters: u32,
    published: &Published,
) -> Result<Stepped, StoreError> {
    let rows = sqlx::query_file!(
        "src/sql/letters_oldest.sql",
        job.spec.tenant.as_ref().map(TenantId::as_str),
        job.spec.filter.endpoint.map(|e| e.0),
        job.spec.filter.event_type,
        job.spec.filter.reason.map(DeadReason::as_str),
        LetterState::Open.as_str(),
        job.spec.filter.after,
        job.reach().before,
        job.position.map(|p| p.at),
        job.position.map(|p| p.id),
        i64::from(letters)
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<DeadLetterId> = rows.iter().map(|row| DeadLetterId(row.id)).collect();
    let tenant = job.spec.tenant.clone();
    let done_before = job.done;
    let outcomes = match job.spec.kind {
        JobKind::Discard => {
            let discarded = discard_on(&mut *connection, tenant.as_ref(), &ids).await?;
            job.done += i64::try_from(discarded).unwrap_or(0);
            // Somebody else was quicker with the others.
            job.skipped += i64::try_from(ids.len() - discarded).unwrap_or(0);
            Vec::new()
        }
        JobKind::Replay => {
            let mut outcomes = replay_on(&mut *connection, tenant.as_ref(), &ids, job.spec.force, false).await?;
            let missing: Vec<DeadLetterId> = ids
                .iter()
                .zip(&outcomes)
                .filter(|(id, outcome)| **outcome == ReplayOutcome::NeedsNewEvent && !published.contains_key(id))
                .map(|(id, _)| *id)
                .collect();
            if !missing.is_empty() {
                return Ok(Stepped::NewEvents { letters: missing, force: job.spec.force });
            }
            for (id, outcome) in ids.iter().zip(&mut outcomes) {
                if *outcome == ReplayOutcome::NeedsNewEvent {
                    *outcome = match published.get(id) {
                        Some(Ok(event)) => {
                            mark_replayed_on(&mut *connection, *id, *event).await?;
                            ReplayOutcome::SentAsNewEvent(*event)
                        }
                        Some(Err(refused)) => refused.clone(),
                        None => ReplayOutcome::NotFound,
                    };
                }
                job.count(*id, outcome);
            }
            ids.into_iter().zip(outcomes).collect()
        }
    };
    let is_end = rows.len() < usize::try_from(letters).unwrap_or(usize::MAX);
    let last = rows.last();
    sqlx::query!(
        "update letter_jobs j
        set done = $2, skipped = $3, errors = $4, error_examples = $5, paced_until = $6, position_at = coalesce($7, j.position_at),
            position_id = coalesce($8, j.position_id), state = case when $9 then 'done' else j.state end, finished_at = case when $9 then $10::timestamptz end
        where j.id = $1",
        job.id.0,
        job.done,
        job.skipped,
        job.errors,
        serde_json::to_value(&job.error_examples).unwrap_or_default(),
        pace.used(now, rows.len()),
        last.map(|row| row.dead_lettered_at),
        last.map(|row| row.id),
        is_end,
        now
    )
    .execute(connection)
    .await?;
    let done = u64::try_from(job.done - done_before).unwrap_or(0);
    Ok(Stepped::Took { kind: job.spec.kind, done, outcomes })
}

impl LetterJob {
    /// The filter, and nothing that came after the job.
    fn reach(&self) -> LetterFilter {
        let filter = self.spec.filter.clone();
        let before = filter.before.map_or(self.created_at, |before| before.min(self.created_at));
        LetterFilter { before: Some(before), ..filter }
    }

    fn count(&mut self, letter: DeadLetterId, outcome: &ReplayOutcome) {
        match outcome {
            ReplayOutcome::Replayed { .. } | ReplayOutcome::SentAsNewEvent(_) => self.done += 1,
            ReplayOutcome::ReplayedRecently
            | ReplayOutcome::InProgress
            | ReplayOutcome::Delivered
            | ReplayOutcome::NotFound => self.skipped += 1,
            ReplayOutcome::InactiveEndpoint
            | ReplayOutcome::UnknownEndpoint
            | ReplayOutcome::NeedsNewEvent
            | ReplayOutcome::NotReplayable => {
                self.errors += 1;
                if self.error_examples.len() < ERRORS_SHOWN_MAX {
                    self.error_examples.push(JobError { letter, why: outcome.why().to_owned() });
                }
            }
        }
    }
}
