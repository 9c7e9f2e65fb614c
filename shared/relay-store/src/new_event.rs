//! Letters that are sent as new events: on request, and where the old event isn't stored (any more). First the new
//! event's id is written beside the letter, then the caller publishes the event, then the letter counts as replayed.
//! Called by the DLQ manager.
//!
//! Invariant: whoever repeats this before the replay counts (a crash, two at once) gets the same id, and the ledger
//! stores an id once.

use bytes::Bytes;
use relay_core::ids::{DeadLetterId, EndpointId, EventId, TenantId};
use sqlx::PgConnection;

use crate::connect::Store;
use crate::error::StoreError;
use crate::replay::ReplayOutcome;
use crate::run::Runner;

/// What a letter is sent as.
#[derive(Clone, Debug, PartialEq)]
pub struct LetterEvent {
    /// The new event's id.
    pub id: EventId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its type, where it was known.
    pub event_type: String,
    /// The endpoint that it is for; `None`: all that match.
    pub endpoint: Option<EndpointId>,
    /// The old event's payload, or the letter's own copy.
    pub payload: Bytes,
}

/// Counts a letter as replayed on a connection of `keyed`, whatever transaction it is in.
pub(crate) async fn mark_replayed_on(
    connection: &mut PgConnection,
    letter: DeadLetterId,
    event: EventId,
) -> Result<bool, sqlx::Error> {
    let marked = sqlx::query!(
        "update dead_letters d set state = 'replayed', replay_count = d.replay_count + 1, replayed_at = now()
        where d.id = $1 and d.new_event_id = $2 and d.new_event_for = d.replay_count",
        letter.0,
        event.0
    )
    .execute(connection)
    .await?;
    Ok(marked.rows_affected() > 0)
}

impl Store {
    /// The event that a letter is to be published as, under the id `fresh` or one that was reserved before; or why it
    /// doesn't go. Publish it, then [`Store::mark_replayed`].
    pub async fn reserve_new_event(
        &self,
        tenant: Option<&TenantId>,
        letter: DeadLetterId,
        force: bool,
        fresh: EventId,
    ) -> Result<Result<LetterEvent, ReplayOutcome>, StoreError> {
        let row = self
            .keyed
            .optional(sqlx::query!(
                r#"with l as materialized (
                    select d.event_id, d.endpoint_id, d.tenant, d.event_type, d.payload,
                        coalesce(d.replayed_at > now() - interval '1 hour', false) as recently,
                        (select p.is_active from endpoints p where p.id = d.endpoint_id and p.tenant = d.tenant) as is_active,
                        (select c.status from closed_deliveries c where c.event_id = d.event_id and c.endpoint_id = d.endpoint_id) as closed,
                        exists (select from open_deliveries o where o.event_id = d.event_id and o.endpoint_id = d.endpoint_id) as is_open
                    from dead_letters d
                    where d.id = $1 and ($2::text is null or d.tenant = $2)
                    for update of d
                ),
                reserved as (
                    update dead_letters d
                    -- A new one after a day: by then the old one's day may be gone.
                    set new_event_id = case when d.new_event_for = d.replay_count and d.new_event_id >= relay_day_floor((now() at time zone 'utc')::date - 1)
                            then d.new_event_id else $4 end,
                        new_event_for = d.replay_count
                    from l
                    where d.event_id = l.event_id and d.endpoint_id = l.endpoint_id and l.tenant is not null
                        and ($3 or not (l.recently or l.is_open or coalesce(l.closed, 0) = 1))
                        and (l.is_active or l.endpoint_id = '00000000-0000-0000-0000-000000000000')
                    returning d.new_event_id
                )
                select l.endpoint_id as "endpoint_id!", l.tenant, l.event_type, l.recently as "recently!", l.is_active, l.closed, l.is_open as "is_open!",
                    (select r.new_event_id from reserved r) as new_event_id,
                    coalesce(l.payload, (select e.payload from events e where e.id = l.event_id)) as payload
                from l"#,
                letter.0,
                tenant.map(TenantId::as_str),
                force,
                fresh.0
            ))
            .await?;
        let Some(row) = row else { return Ok(Err(ReplayOutcome::NotFound)) };
        let (Some(tenant), Some(payload)) = (row.tenant, row.payload) else {
            return Ok(Err(ReplayOutcome::NotReplayable));
        };
        Ok(match row.new_event_id {
            Some(id) => Ok(LetterEvent {
                id: EventId(id),
                tenant: TenantId::trusted(&tenant),
                event_type: row.event_type.unwrap_or_default(),
                endpoint: (!row.endpoint_id.is_nil()).then_some(EndpointId(row.endpoint_id)),
                payload: payload.into(),
            }),
            None if row.recently && !force => Err(ReplayOutcome::ReplayedRecently),
            None => Err(match row.is_active {
                None if !row.endpoint_id.is_nil() => ReplayOutcome::UnknownEndpoint,
                Some(false) => ReplayOutcome::InactiveEndpoint,
                _ if row.is_open => ReplayOutcome::InProgress,
                _ => ReplayOutcome::Delivered,
            }),
        })
    }

    /// Counts a letter as replayed whose new event is published. False: it did already.
    pub async fn mark_replayed(&self, letter: DeadLetterId, event: EventId) -> Result<bool, StoreError> {
        let mut held = self.keyed.hold().await?;
        let answer = tokio::time::timeout(self.keyed.deadline, mark_replayed_on(held.conn(), letter, event)).await;
        Runner::settle(held, answer)
    }
}
