//! Step 13 of an event's way: a closed delivery is opened again, by an operator. One statement each; the
//! scheduler does the rest. Called by the DLQ manager and the interface.
//!
//! Invariants: of two replays of one dead letter at once, one wins (the letter's row is locked); attempts count
//! on, `base` says where the new life begins; `claim` rises, so jobs of the old life are stale.

use bytes::Bytes;
use relay_core::delivery::DeadReason;
use relay_core::ids::{DeadLetterId, DeliveryId, EndpointId, EventId, TenantId};
use relay_core::page::Cursor;
use uuid::Uuid;

use crate::connect::Store;
use crate::dead_letters::LetterFilter;
use crate::error::StoreError;
use crate::window::Window;

/// Letters that one replay or discard of many takes.
pub const REPLAY_MANY_MAX: i64 = 1000;

/// What became of one replay.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplayOutcome {
    /// Open again and due.
    Replayed {
        /// The event.
        event: EventId,
        /// The endpoint.
        endpoint: EndpointId,
        /// The delivery's public id.
        delivery: DeliveryId,
    },
    /// There is no such letter, or it belongs to another tenant.
    NotFound,
    /// Replayed less than an hour ago, and not forced.
    ReplayedRecently,
    /// Its delivery is open: a job is out, or (not forced) it waits for a retry.
    InProgress,
    /// Its delivery was delivered meanwhile, and the replay is not forced.
    Delivered,
    /// The endpoint is inactive.
    InactiveEndpoint,
    /// There is no such endpoint.
    UnknownEndpoint,
    /// Its event isn't stored (any more), but the letter has a copy: to be published as a new event, then
    /// [`Store::mark_replayed`].
    AsNewEvent(LetterEvent),
    /// There is neither an event nor a copy, or nobody to whom it belongs.
    NotReplayable,
}

/// What a letter's own copy is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct LetterEvent {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its type, where it was known.
    pub event_type: String,
    /// The endpoint that it is for; nil ids are left out.
    pub endpoint: Option<EndpointId>,
    /// The copy.
    pub payload: Bytes,
}

/// What became of a re-send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResendOutcome {
    /// It was closed: a new life begins.
    Reopened,
    /// It waited: it is due now.
    DueNow,
    /// A job is out.
    InProgress,
    /// There is no such delivery.
    NotFound,
    /// The endpoint is inactive or doesn't exist.
    InactiveEndpoint,
}

impl Store {
    /// Replays one letter, before everything else that waits for its endpoint (so it is the circuit's probe).
    /// `None` as tenant: any (an operator).
    pub async fn replay_one(
        &self,
        tenant: Option<&TenantId>,
        letter: DeadLetterId,
        force: bool,
    ) -> Result<ReplayOutcome, StoreError> {
        let mut outcomes = self.replay(tenant, &[letter], force, true).await?;
        Ok(outcomes.pop().unwrap_or(ReplayOutcome::NotFound))
    }

    /// Replays letters, at most [`REPLAY_MANY_MAX`] of those that match, newest first. Only letters that are
    /// open or discarded: what was delivered is not sent again. Go on with the position until it is `None`.
    pub async fn replay_many(
        &self,
        tenant: Option<&TenantId>,
        filter: &LetterFilter,
        force: bool,
        after: Option<Cursor>,
        limit: i64,
    ) -> Result<(Vec<(DeadLetterId, ReplayOutcome)>, Option<Cursor>), StoreError> {
        let (letters, next) =
            self.letter_ids(tenant, filter, &Window::after(after, limit.min(REPLAY_MANY_MAX))).await?;
        let outcomes = self.replay(tenant, &letters, force, false).await?;
        Ok((letters.into_iter().zip(outcomes).collect(), next))
    }

    async fn replay(
        &self,
        tenant: Option<&TenantId>,
        letters: &[DeadLetterId],
        force: bool,
        first: bool,
    ) -> Result<Vec<ReplayOutcome>, StoreError> {
        let ids: Vec<Uuid> = letters.iter().map(|l| l.0).collect();
        let rows = self
            .keyed
            .all(sqlx::query_file!("src/sql/replay.sql", &ids, tenant.map(TenantId::as_str), force, first))
            .await?;
        let mut outcomes = vec![ReplayOutcome::NotFound; letters.len()];
        for row in rows {
            let (event, endpoint) = (EventId(row.event_id), EndpointId(row.endpoint_id));
            let outcome = if row.replayed {
                ReplayOutcome::Replayed { event, endpoint, delivery: DeliveryId::derive(event, endpoint) }
            } else if row.recently && !force {
                ReplayOutcome::ReplayedRecently
            } else if row.has_event.is_none() || endpoint.0.is_nil() {
                match (row.tenant, row.payload) {
                    (Some(tenant), Some(payload)) => ReplayOutcome::AsNewEvent(LetterEvent {
                        tenant: TenantId::trusted(&tenant),
                        event_type: row.event_type.unwrap_or_default(),
                        endpoint: (!endpoint.0.is_nil()).then_some(endpoint),
                        payload: payload.into(),
                    }),
                    _ => ReplayOutcome::NotReplayable,
                }
            } else {
                match (row.is_active, row.closed, row.lease_runs) {
                    (None, _, _) => ReplayOutcome::UnknownEndpoint,
                    (Some(false), _, _) => ReplayOutcome::InactiveEndpoint,
                    (_, Some(1), _) => ReplayOutcome::Delivered,
                    _ => ReplayOutcome::InProgress,
                }
            };
            if let Some(place) = usize::try_from(row.n - 1).ok().and_then(|n| outcomes.get_mut(n)) {
                *place = outcome;
            }
        }
        Ok(outcomes)
    }

    /// Marks a letter as replayed whose copy was published as a new event.
    pub async fn mark_replayed(&self, letter: DeadLetterId) -> Result<bool, StoreError> {
        let marked = self
            .queries
            .execute(sqlx::query!(
                "update dead_letters d set state = 'replayed', replay_count = d.replay_count + 1, replayed_at = now() where d.id = $1",
                letter.0
            ))
            .await?;
        Ok(marked > 0)
    }

    /// Discards a letter and its delivery. False: no such letter, or its delivery isn't dead-lettered (any more).
    pub async fn discard(&self, tenant: Option<&TenantId>, letter: DeadLetterId) -> Result<bool, StoreError> {
        Ok(self.discard_letters(tenant, &[letter]).await? > 0)
    }

    /// Discards the letters that match, at most [`REPLAY_MANY_MAX`]. Returns how many; go on until the position is `None`.
    pub async fn discard_many(
        &self,
        tenant: Option<&TenantId>,
        filter: &LetterFilter,
        after: Option<Cursor>,
        limit: i64,
    ) -> Result<(usize, Option<Cursor>), StoreError> {
        let (letters, next) =
            self.letter_ids(tenant, filter, &Window::after(after, limit.min(REPLAY_MANY_MAX))).await?;
        Ok((self.discard_letters(tenant, &letters).await?, next))
    }

    async fn discard_letters(&self, tenant: Option<&TenantId>, letters: &[DeadLetterId]) -> Result<usize, StoreError> {
        let ids: Vec<Uuid> = letters.iter().map(|l| l.0).collect();
        let discarded = self
            .keyed
            .one(sqlx::query_scalar!(
                r#"with l as materialized (
                    select d.event_id, d.endpoint_id, d.tenant, d.reason
                    from unnest($1::uuid[]) as x (id) join dead_letters d on d.id = x.id
                    where d.state = 'open' and ($2::text is null or d.tenant = $2)
                    order by d.event_id, d.endpoint_id
                    for update of d
                ),
                closed as (
                    update closed_deliveries c set status = 3
                    from l where c.event_id = l.event_id and c.endpoint_id = l.endpoint_id and c.status = 2
                ),
                letters as (
                    update dead_letters d set state = 'discarded'
                    from l where d.event_id = l.event_id and d.endpoint_id = l.endpoint_id
                ),
                statistics as (
                    insert into stats_delta (tenant, endpoint_id, dead_lettered, discarded)
                    select l.tenant, case when l.reason = $3 then '00000000-0000-0000-0000-000000000000'::uuid else l.endpoint_id end,
                        -(count(*)::int), count(*)::int
                    from l where l.tenant is not null group by 1, 2
                )
                select count(*) as "discarded!" from l"#,
                &ids,
                tenant.map(TenantId::as_str),
                DeadReason::UnknownEndpoint.as_str()
            ))
            .await?;
        Ok(usize::try_from(discarded).unwrap_or(0))
    }

    /// Sends a delivery again, or at once: a closed one begins a new life, one that waits is due now.
    pub async fn resend(
        &self,
        tenant: &TenantId,
        event: EventId,
        endpoint: EndpointId,
    ) -> Result<ResendOutcome, StoreError> {
        let row = self
            .keyed
            .one(sqlx::query!(
                r#"with target as materialized (
                    select coalesce((select e.id from events e where e.id = $2), (select a.event_id from event_aliases a where a.id = $2)) as event_id,
                        (select p.is_active from endpoints p where p.id = $3 and p.tenant = $1) as is_active
                ),
                moved as (
                    delete from closed_deliveries c using target t
                    where c.event_id = t.event_id and c.endpoint_id = $3 and c.tenant = $1 and t.is_active
                    returning c.event_id, c.endpoint_id, c.tenant, c.status, c.claim, c.attempts
                ),
                opened as (
                    insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base, lane)
                    select m.event_id, m.endpoint_id, m.tenant, now(), false, m.claim + 1, m.attempts, m.attempts, 2 from moved m
                    on conflict do nothing
                ),
                hastened as (
                    update open_deliveries o
                    set due_at = now(), leased = false
                    from target t
                    where o.event_id = t.event_id and o.endpoint_id = $3 and o.tenant = $1 and t.is_active and (not o.leased or o.due_at <= now())
                    returning 1
                ),
                letters as (
                    update dead_letters d
                    set state = 'replayed', replay_count = d.replay_count + 1, replayed_at = now()
                    from moved m where d.event_id = m.event_id and d.endpoint_id = m.endpoint_id
                ),
                statistics as (
                    insert into stats_delta (tenant, endpoint_id, delivered, dead_lettered, discarded)
                    select m.tenant, m.endpoint_id, -((m.status = 1)::int), -((m.status = 2)::int), -((m.status = 3)::int) from moved m
                )
                select (select t.is_active from target t) as is_active,
                    exists (select from moved) as "reopened!", exists (select from hastened) as "hastened!",
                    exists (select from target t join open_deliveries o on o.event_id = t.event_id and o.endpoint_id = $3 where o.tenant = $1) as "is_open!",
                    exists (select from target t join closed_deliveries c on c.event_id = t.event_id and c.endpoint_id = $3 where c.tenant = $1) as "is_closed!""#,
                tenant.as_str(),
                event.0,
                endpoint.0
            ))
            .await?;
        Ok(if row.reopened {
            ResendOutcome::Reopened
        } else if row.hastened {
            ResendOutcome::DueNow
        } else if !row.is_open && !row.is_closed {
            ResendOutcome::NotFound
        } else if row.is_active != Some(true) {
            ResendOutcome::InactiveEndpoint
        } else {
            ResendOutcome::InProgress
        })
    }
}
