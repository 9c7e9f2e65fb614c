//! Step 13 of an event's way: a closed delivery is opened again, by an operator. One statement each; the
//! scheduler does the rest. Called by the DLQ manager and the interface.
//!
//! Invariants: of two replays of one dead letter at once, one wins (the letter's row is locked); attempts count
//! on, `base` says where the new life begins; `claim` rises, so jobs of the old life are stale.

use relay_core::delivery::DeadReason;
use relay_core::ids::{DeadLetterId, DeliveryId, EndpointId, EventId, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::run::Runner;

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
    /// Its event isn't stored (any more), but the letter has a copy: see [`Store::reserve_new_event`].
    NeedsNewEvent,
    /// It went out as this new event.
    SentAsNewEvent(EventId),
    /// There is neither an event nor a copy, or nobody to whom it belongs.
    NotReplayable,
}

impl ReplayOutcome {
    /// The outcome as a stable word.
    pub fn why(&self) -> &'static str {
        match self {
            Self::Replayed { .. } | Self::SentAsNewEvent(_) => "replayed",
            Self::NotFound => "not_found",
            Self::ReplayedRecently => "replayed_recently",
            Self::InProgress => "in_progress",
            Self::Delivered => "delivered",
            Self::InactiveEndpoint => "endpoint_inactive",
            Self::UnknownEndpoint => "unknown_endpoint",
            Self::NeedsNewEvent | Self::NotReplayable => "not_replayable",
        }
    }
}

/// What became of a re-send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

fn ids(letters: &[DeadLetterId]) -> Vec<Uuid> {
    letters.iter().map(|l| l.0).collect()
}

/// Replays letters on a connection of `keyed`, whatever transaction it is in.
pub(crate) async fn replay_on(
    connection: &mut PgConnection,
    tenant: Option<&TenantId>,
    letters: &[DeadLetterId],
    force: bool,
    first: bool,
) -> Result<Vec<ReplayOutcome>, sqlx::Error> {
    let tenant = tenant.map(TenantId::as_str);
    let rows =
        sqlx::query_file!("src/sql/replay.sql", &ids(letters), tenant, force, first).fetch_all(connection).await?;
    let mut outcomes = vec![ReplayOutcome::NotFound; letters.len()];
    for row in rows {
        let (event, endpoint) = (EventId(row.event_id), EndpointId(row.endpoint_id));
        let outcome = if row.replayed {
            ReplayOutcome::Replayed { event, endpoint, delivery: DeliveryId::derive(event, endpoint) }
        } else if row.recently && !force {
            ReplayOutcome::ReplayedRecently
        } else if row.has_event.is_none() || endpoint.0.is_nil() {
            if row.has_copy { ReplayOutcome::NeedsNewEvent } else { ReplayOutcome::NotReplayable }
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

/// Discards letters and their deliveries on a connection of `keyed`, whatever transaction it is in. Returns how many
/// were open.
pub(crate) async fn discard_on(
    connection: &mut PgConnection,
    tenant: Option<&TenantId>,
    letters: &[DeadLetterId],
) -> Result<usize, sqlx::Error> {
    let discarded = sqlx::query_scalar!(
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
        &ids(letters),
        tenant.map(TenantId::as_str),
        DeadReason::UnknownEndpoint.as_str()
    )
    .fetch_one(connection)
    .await?;
    Ok(usize::try_from(discarded).unwrap_or(0))
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
        let mut held = self.keyed.hold().await?;
        let letters = [letter];
        let replay = replay_on(held.conn(), tenant, &letters, force, true);
        let answer = tokio::time::timeout(self.keyed.deadline, replay).await;
        let outcomes = Runner::settle(held, answer)?;
        Ok(outcomes.into_iter().next().unwrap_or(ReplayOutcome::NotFound))
    }

    /// Discards a letter and its delivery. False: no such letter, or its delivery isn't dead-lettered (any more).
    pub async fn discard(&self, tenant: Option<&TenantId>, letter: DeadLetterId) -> Result<bool, StoreError> {
        let mut held = self.keyed.hold().await?;
        let answer = tokio::time::timeout(self.keyed.deadline, discard_on(held.conn(), tenant, &[letter])).await;
        Ok(Runner::settle(held, answer)? > 0)
    }

    /// Sends an event's deliveries to these endpoints again, or at once: a closed one begins a new life, one that waits is
    /// due now. One outcome per endpoint, in their order. `event` is the id that it is stored under.
    pub async fn resend(
        &self,
        tenant: &TenantId,
        event: EventId,
        endpoints: &[EndpointId],
    ) -> Result<Vec<ResendOutcome>, StoreError> {
        let ids: Vec<Uuid> = endpoints.iter().map(|e| e.0).collect();
        let rows = self.keyed.all(sqlx::query_file!("src/sql/resend.sql", tenant.as_str(), event.0, &ids)).await?;
        let mut outcomes = vec![ResendOutcome::NotFound; endpoints.len()];
        for row in rows {
            let outcome = if row.reopened {
                ResendOutcome::Reopened
            } else if row.hastened {
                ResendOutcome::DueNow
            } else if !row.exists {
                ResendOutcome::NotFound
            } else if row.is_active != Some(true) {
                ResendOutcome::InactiveEndpoint
            } else {
                ResendOutcome::InProgress
            };
            if let Some(place) = usize::try_from(row.n - 1).ok().and_then(|n| outcomes.get_mut(n)) {
                *place = outcome;
            }
        }
        Ok(outcomes)
    }

    /// The endpoints that an event has deliveries to, in the order of their ids; go on after the last one.
    pub async fn delivery_endpoints(
        &self,
        tenant: &TenantId,
        event: EventId,
        after: Option<EndpointId>,
        limit: i64,
    ) -> Result<Vec<EndpointId>, StoreError> {
        let ids = self
            .keyed
            .all(sqlx::query_scalar!(
                r#"select x.endpoint_id as "endpoint_id!" from (
                    select o.endpoint_id, o.tenant from open_deliveries o where o.event_id = $2
                    union
                    select c.endpoint_id, c.tenant from closed_deliveries c where c.event_id = $2
                ) x
                where x.tenant = $1 and x.endpoint_id > $3 order by x.endpoint_id limit $4"#,
                tenant.as_str(),
                event.0,
                after.map_or(Uuid::nil(), |e| e.0),
                limit
            ))
            .await?;
        Ok(ids.into_iter().map(EndpointId).collect())
    }
}
