//! The ledger looked at afterwards, in bounded parts: the rows by which `webhook-relay fsck` judges whether the invariants
//! hold (the judgements are in [`relay_core::audit`]; what can be put right is in [`crate::mend`]).
//!
//! Invariant: everything in here only reads. Each part is one statement, so it sees a delivery before or after a change
//! and never in the middle of one.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::audit::{Attempts, EventCounts, Figures, Place};
use relay_core::delivery::LetterState;
use relay_core::ids::{DeadLetterId, EndpointId, EventId, JobId, TenantId};
use relay_core::page::Cursor;
use uuid::Uuid;

use crate::connect::Store;
use crate::dispatch::micros;
use crate::error::StoreError;
use crate::leader::{LETTERS, SCHEDULER};

/// Rows of one part.
pub const PART_ROWS: i64 = 2_000;
/// Of violations that are found by one statement, no more than so many are returned.
pub const FOUND_MAX: i64 = 1_000;

/// A delivery that has an open and a closed row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubled {
    /// The event.
    pub event: EventId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The open row's claim.
    pub open_claim: i32,
    /// The closed row's claim.
    pub closed_claim: i32,
}

/// A dead letter beside its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetterAudit {
    /// The letter, and where the walk is with it.
    pub cursor: Cursor,
    /// What it says.
    pub state: LetterState,
    /// Where its delivery is. `None`: it has none (any more), or the letter went out as a new event.
    pub place: Option<Place>,
}

impl LetterAudit {
    /// The letter.
    pub fn id(&self) -> DeadLetterId {
        DeadLetterId(self.cursor.id)
    }
}

/// What is wrong with an open delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFault {
    /// Its event is not stored: there is nothing to send.
    NoEvent,
    /// Its endpoint doesn't exist.
    NoEndpoint,
    /// Its lease ends in more than a day, so nobody claims it.
    FarLease,
}

/// A part of the open deliveries.
#[derive(Clone, Debug)]
pub struct OpenPart {
    /// How many were looked at.
    pub rows: i64,
    /// The last of them; `None`: there are no more.
    pub last: Option<(Uuid, Uuid)>,
    /// Those that are wrong.
    pub wrong: Vec<(EventId, EndpointId, OpenFault)>,
}

/// An endpoint that may be sent to, has had work due for long, and hears nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// Whose it is.
    pub tenant: TenantId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Since when something is due.
    pub since: DateTime<Utc>,
    /// It was claimed, its lease lapsed, and nobody claimed it again.
    pub leased: bool,
    /// Otherwise its deliveries wait to be dead-lettered.
    pub is_active: bool,
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaders {
    /// Claims what is due (a dispatcher).
    pub claims: Option<String>,
    /// Works on letters (a DLQ manager).
    pub letters: Option<String>,
}

/// An endpoint whose statistics are not what its rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongFigures {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The statistics.
    pub statistics: Figures,
    /// The rows.
    pub rows: Figures,
}

impl Store {
    /// Of these events, those that are neither stored, nor aliases, nor dead letters.
    pub async fn unknown_events(&self, events: &[EventId]) -> Result<Vec<EventId>, StoreError> {
        let ids: Vec<Uuid> = events.iter().map(|e| e.0).collect();
        let unknown = self
            .keyed
            .all(sqlx::query_scalar!(
                r#"select x.id as "id!" from unnest($1::uuid[]) as x (id)
                where not exists (select from events e where e.id = x.id)
                    and not exists (select from event_aliases a where a.id = x.id)
                    and not exists (select from dead_letters d where d.event_id = x.id)"#,
                &ids
            ))
            .await?;
        Ok(unknown.into_iter().map(EventId).collect())
    }

    /// The next events behind an id, with what is stored of their deliveries.
    pub async fn audit_events(&self, after: Uuid) -> Result<Vec<(EventId, EventCounts)>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"with e as materialized (select e.id, e.fanout from events e where e.id > $1 order by e.id limit $2)
                select e.id as "id!", e.fanout as "fanout!",
                    (select count(*) from open_deliveries o where o.event_id = e.id) as "open!",
                    (select count(*) from closed_deliveries c where c.event_id = e.id) as "closed!",
                    (select count(*) from open_deliveries o join closed_deliveries c on c.event_id = o.event_id and c.endpoint_id = o.endpoint_id
                        where o.event_id = e.id) as "both!",
                    (select count(*) from dead_letters d where d.event_id = e.id and d.reason = 'unknown_endpoint'
                        and not exists (select from open_deliveries o where o.event_id = d.event_id and o.endpoint_id = d.endpoint_id)
                        and not exists (select from closed_deliveries c where c.event_id = d.event_id and c.endpoint_id = d.endpoint_id)) as "letters!",
                    (select count(*) from closed_deliveries c where c.event_id = e.id and c.status = 2
                        and not exists (select from dead_letters d where d.event_id = c.event_id and d.endpoint_id = c.endpoint_id)) as "unlettered!"
                from e order by e.id"#,
                after,
                PART_ROWS
            ))
            .await?;
        let counts = rows.into_iter().map(|r| {
            let fanout = i64::from(r.fanout);
            let (open, closed, both) = (r.open, r.closed, r.both);
            (EventId(r.id), EventCounts { fanout, open, closed, both, letters: r.letters, unlettered: r.unlettered })
        });
        Ok(counts.collect())
    }

    /// The deliveries of an event that have a row of each kind.
    pub async fn doubled(&self, event: EventId) -> Result<Vec<Doubled>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                "select o.endpoint_id, o.claim as open_claim, c.claim as closed_claim
                from open_deliveries o join closed_deliveries c on c.event_id = o.event_id and c.endpoint_id = o.endpoint_id
                where o.event_id = $1",
                event.0
            ))
            .await?;
        let doubled = rows.into_iter().map(|r| {
            let (open_claim, closed_claim) = (r.open_claim, r.closed_claim);
            Doubled { event, endpoint: EndpointId(r.endpoint_id), open_claim, closed_claim }
        });
        Ok(doubled.collect())
    }

    /// Attempts since a time, of events behind an id up to another, by endpoint.
    pub async fn audit_attempts(
        &self,
        after: Uuid,
        last: EventId,
        since: DateTime<Utc>,
    ) -> Result<HashMap<EndpointId, Attempts>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select a.endpoint_id, count(*) filter (where a.success) as "ok!", count(*) filter (where not a.success) as "failed!"
                from attempts a where a.event_id > $1 and a.event_id <= $2 and a.attempted_at >= $3 group by a.endpoint_id"#,
                after,
                last.0,
                since
            ))
            .await?;
        Ok(rows.into_iter().map(|r| (EndpointId(r.endpoint_id), Attempts { ok: r.ok, failed: r.failed })).collect())
    }

    /// Attempts since a time according to the statistics, by endpoint.
    pub async fn attempts_in_statistics(
        &self,
        since: DateTime<Utc>,
    ) -> Result<HashMap<EndpointId, Attempts>, StoreError> {
        let rows = self
            .queries
            .all(sqlx::query!(
                r#"select x.endpoint_id as "endpoint_id!", sum(x.ok)::bigint as "ok!", sum(x.failed)::bigint as "failed!"
                from (
                    select m.endpoint_id, m.attempts_ok as ok, m.attempts_failed as failed from stats_minutes m where m.minute >= date_trunc('minute', $1::timestamptz)
                    union all
                    select d.endpoint_id, d.attempts_ok, d.attempts_failed from stats_pending d where d.at >= $1
                ) x
                where x.endpoint_id <> '00000000-0000-0000-0000-000000000000'
                group by x.endpoint_id"#,
                since
            ))
            .await?;
        Ok(rows.into_iter().map(|r| (EndpointId(r.endpoint_id), Attempts { ok: r.ok, failed: r.failed })).collect())
    }

    /// The next dead letters of deliveries, oldest first.
    pub async fn audit_letters(&self, after: Cursor) -> Result<Vec<LetterAudit>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select d.dead_lettered_at, d.id, d.state, d.new_event_id is not null as "went_out!",
                    exists (select from open_deliveries o where o.event_id = d.event_id and o.endpoint_id = d.endpoint_id) as "is_open!",
                    (select c.status from closed_deliveries c where c.event_id = d.event_id and c.endpoint_id = d.endpoint_id) as closed
                from dead_letters d where (d.dead_lettered_at, d.id) > ($1, $2) order by d.dead_lettered_at, d.id limit $3"#,
                after.at,
                after.id,
                PART_ROWS
            ))
            .await?;
        let odd = |state: &str| StoreError::Inconsistent(format!("a dead letter is {state}"));
        rows.into_iter()
            .map(|r| {
                Ok(LetterAudit {
                    cursor: Cursor { at: r.dead_lettered_at, id: r.id },
                    state: LetterState::parse(&r.state).ok_or_else(|| odd(&r.state))?,
                    place: Place::of(r.is_open, r.closed).filter(|_| !r.went_out),
                })
            })
            .collect()
    }

    /// The next open deliveries.
    pub async fn audit_open(&self, after: (Uuid, Uuid)) -> Result<OpenPart, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select o.event_id, o.endpoint_id, o.leased and o.due_at > now() + interval '1 day' as "is_far!",
                    exists (select from events e where e.id = o.event_id) as "has_event!",
                    exists (select from endpoints p where p.id = o.endpoint_id) as "has_endpoint!"
                from open_deliveries o where (o.event_id, o.endpoint_id) > ($1, $2) order by o.event_id, o.endpoint_id limit $3"#,
                after.0,
                after.1,
                PART_ROWS
            ))
            .await?;
        let wrong = rows.iter().filter_map(|r| {
            let fault = match (r.has_event, r.has_endpoint, r.is_far) {
                (false, _, _) => OpenFault::NoEvent,
                (_, false, _) => OpenFault::NoEndpoint,
                (_, _, true) => OpenFault::FarLease,
                _ => return None,
            };
            Some((EventId(r.event_id), EndpointId(r.endpoint_id), fault))
        });
        Ok(OpenPart {
            rows: i64::try_from(rows.len()).unwrap_or(i64::MAX),
            wrong: wrong.collect(),
            last: rows.last().map(|r| (r.event_id, r.endpoint_id)),
        })
    }

    /// Endpoints that may be sent to, where something has been due for `long` and nothing was sent in that time.
    pub async fn overdue(&self, long: Duration) -> Result<Vec<Overdue>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select p.tenant, p.id, p.is_active, o.due_at as "due_at!", o.leased as "leased!"
                from (select now() - $1 * interval '1 microsecond' as before) t
                cross join endpoints p
                cross join lateral (
                    select o.due_at, o.leased from open_deliveries o where o.claim >= 0 and o.endpoint_id = p.id order by o.due_at limit 1
                ) o
                where o.due_at < t.before and not p.paused and p.discard_before is null
                    and coalesce((select c.to_state from circuit_events c where c.endpoint_id = p.id order by c.at desc limit 1), 'closed') <> 'open'
                    and not exists (select from stats_minutes m
                        where m.endpoint_id = p.id and m.minute > t.before and m.attempts_ok + m.attempts_failed > 0)
                    and not exists (select from stats_pending d where d.tenant = p.tenant and d.endpoint_id = p.id and d.at > t.before
                        and d.attempts_ok + d.attempts_failed > 0)
                limit $2"#,
                micros(long) as _,
                FOUND_MAX
            ))
            .await?;
        let overdue = rows.into_iter().map(|r| Overdue {
            tenant: TenantId::trusted(&r.tenant),
            endpoint: EndpointId(r.id),
            since: r.due_at,
            leased: r.leased,
            is_active: r.is_active,
        });
        Ok(overdue.collect())
    }

    /// Who leads now.
    pub async fn leaders(&self) -> Result<Leaders, StoreError> {
        let rows = self
            .queries
            .all(sqlx::query!(
                "select l.name, l.holder from leases l where l.until > now() and l.name in ($1, $2)",
                SCHEDULER,
                LETTERS
            ))
            .await?;
        let mut leaders = Leaders::default();
        for row in rows {
            let place = if row.name == SCHEDULER { &mut leaders.claims } else { &mut leaders.letters };
            *place = Some(row.holder);
        }
        Ok(leaders)
    }

    /// Endpoints whose statistics of what is open are not what is open.
    pub async fn wrong_figures(&self) -> Result<Vec<WrongFigures>, StoreError> {
        let rows = self.queries.all(sqlx::query_file!("src/sql/figures.sql", false, FOUND_MAX)).await?;
        let wrong = rows.into_iter().map(|r| WrongFigures {
            endpoint: EndpointId(r.endpoint_id),
            statistics: Figures { open: r.told_open, retrying: r.told_retrying },
            rows: Figures { open: r.open, retrying: r.retrying },
        });
        Ok(wrong.collect())
    }

    /// Jobs on letters that nobody holds and that could have begun for `long`, or that run although nobody leads.
    pub async fn stuck_jobs(&self, long: Duration) -> Result<Vec<JobId>, StoreError> {
        let ids = self
            .queries
            .all(sqlx::query_scalar!(
                "select j.id from letter_jobs j
                where j.state in ('queued', 'running') and greatest(j.held_until, j.paced_until, j.created_at) < now() - $1 * interval '1 microsecond'
                    and (j.state = 'queued' or not exists (select from leases l where l.name = $2 and l.until > now()))
                order by j.created_at limit $3",
                micros(long) as _,
                LETTERS,
                FOUND_MAX
            ))
            .await?;
        Ok(ids.into_iter().map(JobId).collect())
    }
}
