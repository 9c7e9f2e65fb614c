//! Reading attempts: those of one event, oldest first, and those of one endpoint, newest first. Called by the
//! interface.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::ids::{AttemptId, EndpointId, EventId, TenantId};
use relay_core::page::Cursor;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::events::{http_status, text};
use crate::window::{Listed, TOTAL_MAX, Window};

/// Attempts that the view of one event shows.
pub const ATTEMPTS_SHOWN_MAX: i64 = 100;

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

/// The attempts that the end of a statement picks.
macro_rules! attempts {
    ($end:literal, $($value:expr),*) => {
        sqlx::query_as!(
            AttemptRow,
            "select a.event_id, a.id, a.endpoint_id, a.number, a.attempted_at, a.success, a.http_status, a.error_class, a.error, a.total_us,
                a.connect_us, a.first_byte_us, a.request_headers, a.response_headers, a.response_excerpt, a.pod
            from attempts a " + $end,
            $($value),*
        )
    };
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

impl Store {
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
            .all(attempts!(
                "where a.event_id = $1 and ($2::timestamptz is null or (a.attempted_at, a.id) > ($2, $3::uuid))
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
    pub(crate) async fn last_attempts_of(&self, event: EventId) -> Result<Vec<AttemptView>, StoreError> {
        let rows = self
            .keyed
            .all(attempts!(
                "where a.event_id = $1
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
            .all(attempts!(
                "where a.event_id = $1 and a.endpoint_id = $2
                order by a.attempted_at desc, a.id desc
                limit $3",
                event.0,
                endpoint.0,
                ATTEMPTS_SHOWN_MAX
            ))
            .await?;
        Ok(rows.into_iter().rev().map(AttemptView::from).collect())
    }

    /// The attempts of an endpoint, newest first, by the time at which they were sent. Whose endpoint it is, is for the
    /// caller to look at.
    pub async fn attempts_of_endpoint(
        &self,
        endpoint: EndpointId,
        window: &Window,
    ) -> Result<Listed<AttemptView>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_file_as!(
                AttemptRow,
                "src/sql/attempts_of_endpoint.sql",
                endpoint.0,
                window.after_id().unwrap_or(Uuid::max()),
                window.offset,
                window.limit.saturating_add(1)
            ))
            .await?;
        let count = sqlx::query_scalar!(
            r#"select count(*) as "n!" from (select 1 from attempts a where a.endpoint_id = $1 limit $2) x"#,
            endpoint.0,
            TOTAL_MAX + 1
        );
        let total = window.total(rows.len(), self.keyed.one(count)).await?;
        let items = rows.into_iter().map(AttemptView::from).collect();
        Ok(Listed::cut(items, window, total, AttemptView::position))
    }
}
