//! Reading dead letters: one, or a list of those that match a filter, newest first. Called by the DLQ manager.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::delivery::DeadReason;
pub use relay_core::delivery::LetterState;
use relay_core::ids::{DeadLetterId, EndpointId, EventId, TenantId};
use relay_core::page::Cursor;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::window::{Listed, TOTAL_MAX, Window};

/// Which letters are meant.
#[derive(Clone, Debug, Default)]
pub struct LetterFilter {
    /// Of this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Of this event type.
    pub event_type: Option<String>,
    /// For this reason.
    pub reason: Option<DeadReason>,
    /// In this state; `None`: all but resolved and discarded ones.
    pub state: Option<LetterState>,
    /// Dead-lettered after this time.
    pub after: Option<DateTime<Utc>>,
    /// Dead-lettered before this time.
    pub before: Option<DateTime<Utc>>,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its identity.
    pub id: DeadLetterId,
    /// The event; of a message that never became one, the letter's own id.
    pub event: EventId,
    /// The endpoint; `None` for a message that never became an event.
    pub endpoint: Option<EndpointId>,
    /// Whose it is.
    pub tenant: Option<TenantId>,
    /// Its type, where it was known.
    pub event_type: Option<String>,
    /// What became of it.
    pub state: LetterState,
    /// Why it is here.
    pub reason: DeadReason,
    /// Why, in words.
    pub error: Option<String>,
    /// The last answer's status.
    pub last_status: Option<u16>,
    /// Attempts made.
    pub attempts: i32,
    /// How often it was replayed.
    pub replay_count: i32,
    /// When it was last replayed.
    pub replayed_at: Option<DateTime<Utc>>,
    /// The new event that it was last replayed as.
    pub replayed_as: Option<EventId>,
    /// When it came here (last).
    pub dead_lettered_at: DateTime<Utc>,
    /// The payload: the event's, or the letter's own copy.
    pub payload: Option<Bytes>,
    /// The subject, of a message that never became an event.
    pub subject: Option<Bytes>,
}

struct Row {
    event_id: Uuid,
    endpoint_id: Uuid,
    id: Uuid,
    tenant: Option<String>,
    event_type: Option<String>,
    state: String,
    reason: String,
    error: Option<Vec<u8>>,
    last_status: Option<i32>,
    attempts: i32,
    replay_count: i32,
    replayed_at: Option<DateTime<Utc>>,
    replayed_as: Option<Uuid>,
    dead_lettered_at: DateTime<Utc>,
    payload: Option<Vec<u8>>,
    subject: Option<Vec<u8>>,
}

impl TryFrom<Row> for DeadLetter {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let odd = |what: &str, text: &str| {
            StoreError::Inconsistent(format!("dead letter {} has the {what} {text:?}", row.id))
        };
        Ok(Self {
            id: DeadLetterId(row.id),
            event: EventId(row.event_id),
            endpoint: (!row.endpoint_id.is_nil()).then_some(EndpointId(row.endpoint_id)),
            tenant: row.tenant.as_deref().map(TenantId::trusted),
            state: LetterState::parse(&row.state).ok_or_else(|| odd("state", &row.state))?,
            reason: DeadReason::parse(&row.reason).ok_or_else(|| odd("reason", &row.reason))?,
            event_type: row.event_type,
            error: row.error.map(|e| String::from_utf8_lossy(&e).into_owned()),
            last_status: row.last_status.and_then(|s| u16::try_from(s).ok()),
            attempts: row.attempts,
            replay_count: row.replay_count,
            replayed_at: row.replayed_at,
            replayed_as: row.replayed_as.map(EventId),
            dead_lettered_at: row.dead_lettered_at,
            payload: row.payload.map(Bytes::from),
            subject: row.subject.map(Bytes::from),
        })
    }
}

impl Store {
    /// One letter. `None` as tenant: any (an operator).
    pub async fn dead_letter(
        &self,
        tenant: Option<&TenantId>,
        letter: DeadLetterId,
    ) -> Result<Option<DeadLetter>, StoreError> {
        let row = self
            .keyed
            .optional(sqlx::query_as!(
                Row,
                "select d.event_id, d.endpoint_id, d.id, d.tenant, d.event_type, d.state, d.reason, d.error, d.last_status, d.attempts, d.replay_count,
                    d.replayed_at, case when d.new_event_for < d.replay_count then d.new_event_id end as replayed_as, d.dead_lettered_at, coalesce(d.payload, (select e.payload from events e where e.id = d.event_id)) as payload, d.subject
                from dead_letters d where d.id = $1 and ($2::text is null or d.tenant = $2)",
                letter.0,
                tenant.map(TenantId::as_str)
            ))
            .await?;
        row.map(DeadLetter::try_from).transpose()
    }

    /// Letters that match, newest first. `None` as tenant: everybody's and nobody's (an operator), but not the
    /// system's own.
    pub async fn dead_letters(
        &self,
        tenant: Option<&TenantId>,
        filter: &LetterFilter,
        window: &Window,
    ) -> Result<Listed<DeadLetter>, StoreError> {
        let (ids, next, total) = self.matching_letters(tenant, filter, window).await?;
        let rows = self
            .keyed
            .all(sqlx::query_as!(
                Row,
                "select d.event_id, d.endpoint_id, d.id, d.tenant, d.event_type, d.state, d.reason, d.error, d.last_status, d.attempts, d.replay_count,
                    d.replayed_at, case when d.new_event_for < d.replay_count then d.new_event_id end as replayed_as, d.dead_lettered_at, coalesce(d.payload, (select e.payload from events e where e.id = d.event_id)) as payload, d.subject
                from unnest($1::uuid[]) with ordinality as x (id, n) join dead_letters d on d.id = x.id order by x.n",
                &ids
            ))
            .await?;
        let items = rows.into_iter().map(DeadLetter::try_from).collect::<Result<_, _>>()?;
        Ok(Listed { items, total, next })
    }

    async fn matching_letters(
        &self,
        tenant: Option<&TenantId>,
        filter: &LetterFilter,
        window: &Window,
    ) -> Result<(Vec<Uuid>, Option<Cursor>, Option<i64>), StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_file!(
                "src/sql/letters.sql",
                tenant.map(TenantId::as_str),
                filter.endpoint.map(|e| e.0),
                filter.event_type,
                filter.reason.map(DeadReason::as_str),
                filter.state.map(LetterState::as_str),
                filter.after,
                filter.before,
                window.after_at(),
                window.after_id(),
                window.offset,
                window.limit.saturating_add(1)
            ))
            .await?;
        let total = window.total(rows.len(), self.count_letters(tenant, filter, TOTAL_MAX + 1)).await?;
        let found = rows.into_iter().map(|r| (r.id, r.dead_lettered_at)).collect();
        let listed = Listed::cut(found, window, total, |(id, at)| Cursor { at: *at, id: *id });
        Ok((listed.items.into_iter().map(|(id, _)| id).collect(), listed.next, listed.total))
    }

    /// How many letters match, up to `limit`.
    pub(crate) async fn count_letters(
        &self,
        tenant: Option<&TenantId>,
        filter: &LetterFilter,
        limit: i64,
    ) -> Result<i64, StoreError> {
        self.keyed
            .one(sqlx::query_file_scalar!(
                "src/sql/letters_count.sql",
                tenant.map(TenantId::as_str),
                filter.endpoint.map(|e| e.0),
                filter.event_type,
                filter.reason.map(DeadReason::as_str),
                filter.state.map(LetterState::as_str),
                filter.after,
                filter.before,
                limit
            ))
            .await
    }
}
