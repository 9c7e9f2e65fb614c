//! Reading one event and what became of it. Called by the interface. Lists are in `event_lists` and `attempts`.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::delivery::{Closed, Status};
use relay_core::event::EventType;
use relay_core::ids::{EndpointId, EventId, TenantId};
use relay_core::matching::is_exact;
use uuid::Uuid;

use crate::attempts::AttemptView;
use crate::connect::Store;
use crate::error::StoreError;
use crate::event_lists::{EventFilter, pattern_regex};

/// Deliveries that the view of one event shows.
pub const DELIVERIES_SHOWN_MAX: i64 = 200;

/// An event in a list.
#[derive(Clone, Debug)]
pub struct EventSummary {
    /// Its identity.
    pub id: EventId,
    /// Its type.
    pub event_type: EventType,
    /// The one endpoint it was for.
    pub endpoint: Option<EndpointId>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// Its deliveries' status, as one.
    pub status: Status,
    /// Deliveries that the matching gave.
    pub fanout: i32,
    /// Attempts over all of them.
    pub attempts: i64,
    /// When the last of them was delivered, if all were.
    pub delivered_at: Option<DateTime<Utc>>,
    /// When the next retry is due.
    pub next_retry_at: Option<DateTime<Utc>>,
}

/// One event, with all there is to know.
#[derive(Clone, Debug)]
pub struct EventView {
    /// As in lists.
    pub summary: EventSummary,
    /// Whose it is.
    pub tenant: TenantId,
    /// The producer's idempotency key.
    pub key: Option<String>,
    /// The producer's `traceparent`.
    pub trace: Option<String>,
    /// The payload's bytes.
    pub payload: Bytes,
    /// Its deliveries, at most [`DELIVERIES_SHOWN_MAX`].
    pub deliveries: Vec<DeliveryView>,
    /// Its last attempts, oldest first, at most [`ATTEMPTS_SHOWN_MAX`](crate::attempts::ATTEMPTS_SHOWN_MAX).
    pub attempts: Vec<AttemptView>,
}

/// What says whether a request is the same as a stored event.
#[derive(Clone, Debug)]
pub struct KnownEvent {
    /// The id that was asked for.
    pub asked: EventId,
    /// The id that it is stored under.
    pub id: EventId,
    /// Its type.
    pub event_type: EventType,
    /// The one endpoint it was for.
    pub endpoint: Option<EndpointId>,
    /// SHA-256 of its payload.
    pub digest: Vec<u8>,
}

/// One delivery.
#[derive(Clone, Debug)]
pub struct DeliveryView {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its status.
    pub status: Status,
    /// Attempts made.
    pub attempts: i32,
    /// When the next one is due, of one that waits.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// When it was delivered.
    pub delivered_at: Option<DateTime<Utc>>,
    /// The last answer's status.
    pub last_status: Option<u16>,
    /// The last failure, in words.
    pub last_error: Option<String>,
}

pub(crate) struct SummaryRow {
    pub(crate) id: Uuid,
    event_type: String,
    endpoint_id: Option<Uuid>,
    accepted_at: DateTime<Utc>,
    fanout: i32,
    leased: i64,
    retrying: i64,
    pending: i64,
    delivered: i64,
    dead: i64,
    discarded: i64,
    attempts: i64,
    finished_at: Option<DateTime<Utc>>,
    next_retry_at: Option<DateTime<Utc>>,
}

impl From<&SummaryRow> for EventSummary {
    fn from(row: &SummaryRow) -> Self {
        let statuses = [
            (row.leased, Status::Delivering),
            (row.retrying, Status::Failed),
            (row.pending, Status::Pending),
            (row.delivered, Status::Delivered),
            (row.dead, Status::DeadLettered),
            (row.discarded, Status::Discarded),
        ];
        let status = Status::of_event(statuses.into_iter().filter(|(n, _)| *n > 0).map(|(_, s)| s));
        Self {
            id: EventId(row.id),
            event_type: EventType::trusted(&row.event_type),
            endpoint: row.endpoint_id.map(EndpointId),
            accepted_at: row.accepted_at,
            status,
            fanout: row.fanout,
            attempts: row.attempts,
            delivered_at: row.finished_at.filter(|_| status == Status::Delivered),
            next_retry_at: row.next_retry_at,
        }
    }
}

impl SummaryRow {
    /// The one endpoint it was for.
    pub(crate) fn endpoint(&self) -> Option<EndpointId> {
        self.endpoint_id.map(EndpointId)
    }
}

pub(crate) fn text(bytes: Option<Vec<u8>>) -> Option<String> {
    bytes.map(|b| String::from_utf8_lossy(&b).into_owned())
}

pub(crate) fn http_status(number: Option<i32>) -> Option<u16> {
    number.and_then(|s| u16::try_from(s).ok())
}

impl Store {
    /// The id that an event is stored under: its own, or the one that it is an alias of. `None`: unknown.
    pub async fn resolve_event(&self, tenant: &TenantId, event: EventId) -> Result<Option<EventId>, StoreError> {
        let id = self
            .keyed
            .optional(sqlx::query_scalar!(
                "select e.id from events e
                where e.tenant = $1 and e.id = coalesce((select x.id from events x where x.id = $2), (select a.event_id from event_aliases a where a.id = $2))",
                tenant.as_str(),
                event.0
            ))
            .await?;
        Ok(id.map(EventId))
    }

    /// Which of these ids are known, as events or as aliases of events.
    pub async fn events_present(&self, events: &[EventId]) -> Result<Vec<EventId>, StoreError> {
        let ids: Vec<Uuid> = events.iter().map(|e| e.0).collect();
        let present = self
            .keyed
            .all(sqlx::query_scalar!(
                r#"select x.id as "id!" from unnest($1::uuid[]) as x (id)
                where exists (select from events e where e.id = x.id) or exists (select from event_aliases a where a.id = x.id)"#,
                &ids
            ))
            .await?;
        Ok(present.into_iter().map(EventId).collect())
    }

    /// The event of an idempotency key, by the ids that the key has today and on the days beside it: the first
    /// of them that is known. Aliases are followed.
    pub async fn keyed_event(&self, tenant: &TenantId, ids: &[EventId]) -> Result<Option<EventView>, StoreError> {
        let present = self.events_present(ids).await?;
        match ids.iter().find(|id| present.contains(id)) {
            Some(id) => self.event_view(tenant, *id).await,
            None => Ok(None),
        }
    }

    /// The events of this tenant that these ids stand for, as events or as aliases of events.
    pub async fn known_events(&self, tenant: &TenantId, ids: &[EventId]) -> Result<Vec<KnownEvent>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|e| e.0).collect();
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select x.id as "asked!", e.id, e.type as event_type, e.endpoint_id, sha256(e.payload) as "digest!"
                from unnest($2::uuid[]) as x (id)
                cross join lateral (
                    select coalesce((select v.id from events v where v.id = x.id), (select a.event_id from event_aliases a where a.id = x.id)) as id
                ) k
                join events e on e.id = k.id
                where e.tenant = $1"#,
                tenant.as_str(),
                &ids
            ))
            .await?;
        Ok(rows
            .into_iter()
            .map(|r| KnownEvent {
                asked: EventId(r.asked),
                id: EventId(r.id),
                event_type: EventType::trusted(&r.event_type),
                endpoint: r.endpoint_id.map(EndpointId),
                digest: r.digest,
            })
            .collect())
    }

    /// One event as lists show it. `event` is the id that it is stored under.
    pub async fn event_summary(&self, tenant: &TenantId, event: EventId) -> Result<Option<EventSummary>, StoreError> {
        let rows = self.summaries(tenant, &[event.0], &EventFilter::default()).await?;
        Ok(rows.first().map(EventSummary::from))
    }

    /// One event with its deliveries and last attempts. Aliases are followed.
    pub async fn event_view(&self, tenant: &TenantId, event: EventId) -> Result<Option<EventView>, StoreError> {
        let Some(event) = self.resolve_event(tenant, event).await? else { return Ok(None) };
        let Some(summary) = self.summaries(tenant, &[event.0], &EventFilter::default()).await?.into_iter().next()
        else {
            return Ok(None);
        };
        let row = self
            .keyed
            .optional(sqlx::query!(
                "select e.idempotency_key, e.trace, e.payload from events e where e.id = $1",
                event.0
            ))
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(EventView {
            summary: EventSummary::from(&summary),
            tenant: tenant.clone(),
            key: text(row.idempotency_key),
            trace: text(row.trace),
            payload: row.payload.into(),
            deliveries: self.deliveries_of(event, None).await?,
            attempts: self.last_attempts_of(event).await?,
        }))
    }

    /// An event's deliveries to these endpoints.
    pub async fn deliveries_to(
        &self,
        event: EventId,
        endpoints: &[EndpointId],
    ) -> Result<Vec<DeliveryView>, StoreError> {
        let ids: Vec<Uuid> = endpoints.iter().map(|e| e.0).collect();
        self.deliveries_of(event, Some(&ids)).await
    }

    async fn deliveries_of(&self, event: EventId, to: Option<&[Uuid]>) -> Result<Vec<DeliveryView>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select x.endpoint_id as "endpoint_id!", x.closed as "closed!", x.lease_runs as "lease_runs!", x.attempts as "attempts!",
                    x.base as "base!", x.at as "at!", x.last_status, x.last_error
                from (
                    select o.endpoint_id, 0::smallint as closed, o.leased and o.due_at > now() as lease_runs, o.attempts, o.base, o.due_at as at,
                        o.last_status, o.last_error
                    from open_deliveries o where o.event_id = $1
                    union all
                    select c.endpoint_id, c.status, false, c.attempts, c.base, c.finished_at, c.last_status, c.last_error
                    from closed_deliveries c where c.event_id = $1
                    union all
                    select d.endpoint_id, (case d.state when 'discarded' then 3 else 2 end)::smallint, false, 0, 0, d.dead_lettered_at, null, d.error
                    from dead_letters d where d.event_id = $1 and d.reason = 'unknown_endpoint' and d.state in ('open', 'discarded')
                ) x
                where $3::uuid[] is null or x.endpoint_id = any($3)
                order by x.endpoint_id limit $2"#,
                event.0,
                DELIVERIES_SHOWN_MAX,
                to
            ))
            .await?;
        Ok(rows
            .into_iter()
            .map(|r| {
                let status = match Closed::from_number(r.closed) {
                    Some(closed) => closed.into(),
                    None => Status::of_open(r.attempts, r.base, r.lease_runs),
                };
                DeliveryView {
                    endpoint: EndpointId(r.endpoint_id),
                    status,
                    attempts: r.attempts,
                    next_retry_at: (status == Status::Failed).then_some(r.at),
                    delivered_at: (status == Status::Delivered).then_some(r.at),
                    last_status: http_status(r.last_status),
                    last_error: text(r.last_error),
                }
            })
            .collect())
    }

    /// The summaries of these events in their order, without those that aren't meant.
    pub(crate) async fn summaries(
        &self,
        tenant: &TenantId,
        ids: &[Uuid],
        filter: &EventFilter,
    ) -> Result<Vec<SummaryRow>, StoreError> {
        let (after, before) = filter.span();
        let pattern = filter.event_type.as_deref();
        self.keyed
            .all(sqlx::query_file_as!(
                SummaryRow,
                "src/sql/summaries.sql",
                ids,
                tenant.as_str(),
                after,
                before,
                pattern.filter(|p| is_exact(p)),
                pattern.filter(|p| !is_exact(p)).map(pattern_regex),
                filter.endpoint.map(|e| e.0)
            ))
            .await
    }
}
