//! Reading events and what became of them. Called by the interface. Lists are newest first; filters look at a
//! bounded number of rows and hand out an honest place to go on from, however few matched.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::delivery::{Closed, Status};
use relay_core::event::EventType;
use relay_core::ids::{AttemptId, EndpointId, EventId, TenantId};
use relay_core::page::Cursor;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::window::{Listed, TOTAL_MAX, Window};

/// Deliveries that the view of one event shows.
pub const DELIVERIES_SHOWN_MAX: i64 = 200;
/// Attempts that the view of one event shows.
pub const ATTEMPTS_SHOWN_MAX: i64 = 100;
/// Rows that one filtered list looks at.
const SCAN_ROWS_MAX: usize = 2000;
/// Rows that it reads at a time.
const SCAN_STEP: i64 = 200;

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
    /// Its last attempts, oldest first, at most [`ATTEMPTS_SHOWN_MAX`].
    pub attempts: Vec<AttemptView>,
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

/// One POST.
#[derive(Clone, Debug)]
pub struct AttemptView {
    /// Its identity.
    pub id: AttemptId,
    /// Of which event.
    pub event: EventId,
    /// To whom.
    pub endpoint: EndpointId,
    /// Its number in its delivery, from 1.
    pub number: i32,
    /// When it was sent.
    pub attempted_at: DateTime<Utc>,
    /// Whether the answer was 2xx.
    pub success: bool,
    /// The answer's status.
    pub http_status: Option<u16>,
    /// Stable class of the error.
    pub error_class: Option<String>,
    /// The error in words.
    pub error: Option<String>,
    /// Total time in microseconds.
    pub total_us: i32,
    /// Time until connected.
    pub connect_us: Option<i32>,
    /// Time until the answer's headers.
    pub first_byte_us: Option<i32>,
    /// Request headers, as `name: value` lines.
    pub request_headers: Bytes,
    /// Response headers, as `name: value` lines.
    pub response_headers: Bytes,
    /// The beginning of the response.
    pub excerpt: Bytes,
    /// The pod that sent it.
    pub pod: String,
}

/// Which events are meant.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Of this type.
    pub event_type: Option<String>,
    /// With a delivery to this endpoint.
    pub endpoint: Option<EndpointId>,
    /// With this status.
    pub status: Option<Status>,
    /// Accepted after this time.
    pub after: Option<DateTime<Utc>>,
    /// Accepted before this time.
    pub before: Option<DateTime<Utc>>,
}

struct AttemptRow {
    event_id: Uuid,
    id: Uuid,
    endpoint_id: Uuid,
    number: i32,
    attempted_at: DateTime<Utc>,
    success: bool,
    http_status: Option<i32>,
    error_class: Option<String>,
    error: Option<Vec<u8>>,
    total_us: i32,
    connect_us: Option<i32>,
    first_byte_us: Option<i32>,
    request_headers: Vec<u8>,
    response_headers: Vec<u8>,
    response_excerpt: Vec<u8>,
    pod: String,
}

impl From<AttemptRow> for AttemptView {
    fn from(row: AttemptRow) -> Self {
        Self {
            id: AttemptId(row.id),
            event: EventId(row.event_id),
            endpoint: EndpointId(row.endpoint_id),
            number: row.number,
            attempted_at: row.attempted_at,
            success: row.success,
            http_status: http_status(row.http_status),
            error_class: row.error_class,
            error: text(row.error),
            total_us: row.total_us,
            connect_us: row.connect_us,
            first_byte_us: row.first_byte_us,
            request_headers: row.request_headers.into(),
            response_headers: row.response_headers.into(),
            excerpt: row.response_excerpt.into(),
            pod: row.pod,
        }
    }
}

impl AttemptView {
    /// Its place in lists of attempts.
    fn position(&self) -> Cursor {
        Cursor { at: self.attempted_at, id: self.id.0 }
    }
}

struct SummaryRow {
    id: Uuid,
    event_type: String,
    endpoint_id: Option<Uuid>,
    accepted_at: DateTime<Utc>,
    fanout: i32,
    wanted: bool,
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

fn text(bytes: Option<Vec<u8>>) -> Option<String> {
    bytes.map(|b| String::from_utf8_lossy(&b).into_owned())
}

fn http_status(number: Option<i32>) -> Option<u16> {
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

    /// One event with its deliveries and last attempts. Aliases are followed.
    pub async fn event_view(&self, tenant: &TenantId, event: EventId) -> Result<Option<EventView>, StoreError> {
        let Some(event) = self.resolve_event(tenant, event).await? else { return Ok(None) };
        let Some(summary) =
            self.summaries(tenant, Some(event), &EventFilter::default(), None, 0, 1).await?.into_iter().next()
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
            deliveries: self.deliveries_of(event).await?,
            attempts: self.last_attempts_of(event).await?,
        }))
    }

    async fn deliveries_of(&self, event: EventId) -> Result<Vec<DeliveryView>, StoreError> {
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
                order by x.endpoint_id limit $2"#,
                event.0,
                DELIVERIES_SHOWN_MAX
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

    /// The attempts of an event, oldest first. `None`: no such event.
    pub async fn attempts_of_event(
        &self,
        tenant: &TenantId,
        event: EventId,
        window: &Window,
    ) -> Result<Option<Listed<AttemptView>>, StoreError> {
        let Some(event) = self.resolve_event(tenant, event).await? else { return Ok(None) };
        let rows = self
            .keyed
            .all(sqlx::query_as!(
                AttemptRow,
                "select a.event_id, a.id, a.endpoint_id, a.number, a.attempted_at, a.success, a.http_status, a.error_class, a.error, a.total_us,
                    a.connect_us, a.first_byte_us, a.request_headers, a.response_headers, a.response_excerpt, a.pod
                from attempts a
                where a.event_id = $1 and ($2::timestamptz is null or (a.attempted_at, a.id) > ($2, $3::uuid))
                order by a.attempted_at, a.id
                offset $4 limit $5",
                event.0,
                window.after_at(),
                window.after_id(),
                window.offset,
                window.limit.saturating_add(1)
            ))
            .await?;
        let count = sqlx::query_scalar!(
            r#"select count(*) as "n!" from (select 1 from attempts a where a.event_id = $1 limit $2) x"#,
            event.0,
            TOTAL_MAX + 1
        );
        let total = window.total(rows.len(), self.keyed.one(count)).await?;
        let items = rows.into_iter().map(AttemptView::from).collect();
        Ok(Some(Listed::cut(items, window, total, AttemptView::position)))
    }

    /// The last attempts of an event, oldest first.
    async fn last_attempts_of(&self, event: EventId) -> Result<Vec<AttemptView>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_as!(
                AttemptRow,
                "select a.event_id, a.id, a.endpoint_id, a.number, a.attempted_at, a.success, a.http_status, a.error_class, a.error, a.total_us,
                    a.connect_us, a.first_byte_us, a.request_headers, a.response_headers, a.response_excerpt, a.pod
                from attempts a
                where a.event_id = $1
                order by a.attempted_at desc, a.id desc
                limit $2",
                event.0,
                ATTEMPTS_SHOWN_MAX
            ))
            .await?;
        Ok(rows.into_iter().rev().map(AttemptView::from).collect())
    }

    /// The last attempts of one delivery, oldest first, at most [`ATTEMPTS_SHOWN_MAX`].
    pub async fn attempts_of_delivery(
        &self,
        event: EventId,
        endpoint: EndpointId,
    ) -> Result<Vec<AttemptView>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_as!(
                AttemptRow,
                "select a.event_id, a.id, a.endpoint_id, a.number, a.attempted_at, a.success, a.http_status, a.error_class, a.error, a.total_us,
                    a.connect_us, a.first_byte_us, a.request_headers, a.response_headers, a.response_excerpt, a.pod
                from attempts a
                where a.event_id = $1 and a.endpoint_id = $2
                order by a.attempted_at desc, a.id desc
                limit $3",
                event.0,
                endpoint.0,
                ATTEMPTS_SHOWN_MAX
            ))
            .await?;
        Ok(rows.into_iter().rev().map(AttemptView::from).collect())
    }

    /// Events of a tenant, newest first. A filter looks at a bounded number of events: there may be fewer items
    /// than asked for, and `next` all the same. Page numbers (offsets) count events before the filter by
    /// endpoint and status; totals are given without those two filters only.
    pub async fn list_events(
        &self,
        tenant: &TenantId,
        filter: &EventFilter,
        window: &Window,
    ) -> Result<Listed<EventSummary>, StoreError> {
        let limit = usize::try_from(window.limit).unwrap_or(0);
        let is_filtered = filter.status.is_some() || filter.endpoint.is_some() || filter.event_type.is_some();
        let step = if is_filtered { SCAN_STEP.max(window.limit) } else { window.limit.saturating_add(1) };
        let (mut items, mut after, mut offset, mut scanned) = (Vec::new(), window.after, window.offset, 0);
        let mut next = None;
        'scan: loop {
            let rows = self.summaries(tenant, None, filter, after, offset, step).await?;
            let is_end = i64::try_from(rows.len()).unwrap_or(i64::MAX) < step;
            for row in &rows {
                let summary = EventSummary::from(row);
                let wanted = row.wanted && filter.status.is_none_or(|s| s == summary.status);
                if wanted && items.len() == limit {
                    next = after;
                    break 'scan;
                }
                after = Some(Cursor { at: row.accepted_at, id: row.id });
                if wanted {
                    items.push(summary);
                }
            }
            scanned += rows.len();
            offset = 0;
            if is_end {
                break;
            }
            if scanned >= SCAN_ROWS_MAX {
                next = after;
                break;
            }
        }
        let total =
            if window.with_total && !is_filtered { Some(self.count_events(tenant, filter).await?) } else { None };
        Ok(Listed { items, total: total.filter(|n| *n <= TOTAL_MAX), next })
    }

    async fn count_events(&self, tenant: &TenantId, filter: &EventFilter) -> Result<i64, StoreError> {
        self.queries
            .one(sqlx::query_scalar!(
                r#"select count(*) as "n!" from (
                    select 1 from events e
                    where e.tenant = $1 and ($2::timestamptz is null or e.accepted_at > $2) and ($3::timestamptz is null or e.accepted_at < $3)
                    limit $4
                ) x"#,
                tenant.as_str(),
                filter.after,
                filter.before,
                TOTAL_MAX + 1
            ))
            .await
    }

    async fn summaries(
        &self,
        tenant: &TenantId,
        event: Option<EventId>,
        filter: &EventFilter,
        after: Option<Cursor>,
        offset: i64,
        limit: i64,
    ) -> Result<Vec<SummaryRow>, StoreError> {
        let ids: Vec<Uuid> = match event {
            Some(event) => vec![event.0],
            None => {
                self.queries
                    .all(sqlx::query_scalar!(
                        "select e.id from events e
                        where e.tenant = $1 and ($2::timestamptz is null or e.accepted_at > $2) and ($3::timestamptz is null or e.accepted_at < $3)
                            and ($4::timestamptz is null or (e.accepted_at, e.id) < ($4, $5::uuid))
                        order by e.accepted_at desc, e.id desc
                        offset $6 limit $7",
                        tenant.as_str(),
                        filter.after,
                        filter.before,
                        after.map(|c| c.at),
                        after.map(|c| c.id),
                        offset,
                        limit
                    ))
                    .await?
            }
        };
        self.keyed
            .all(sqlx::query_file_as!(
                SummaryRow,
                "src/sql/summaries.sql",
                &ids,
                filter.event_type,
                filter.endpoint.map(|e| e.0)
            ))
            .await
    }
}
