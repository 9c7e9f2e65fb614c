//! Closing open deliveries that nobody will send: of deactivated endpoints, of a pause that ends without its
//! backlog, of days that are dropped. Called by leaders and by the interface, a thousand rows a statement.
//!
//! Invariant: a row under a running lease is left alone; its job reports for itself or its lease lapses.

use relay_core::delivery::{Closed, DeadReason};
use relay_core::ids::{DeadLetterId, EndpointId, EventId};
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::resume::Resuming;

/// Rows that one statement closes.
pub const CLOSE_ROWS_MAX: i64 = 1000;

/// What a dead letter of an inactive endpoint says.
pub(crate) const INACTIVE: &str = "Endpoint is inactive";
/// What a delivery says that a resume left out.
const LEFT_OUT: &str = "Discarded when the endpoint was resumed without what waited for it";
const EXPIRED: &str = "Retention dropped its day before it was delivered";

/// How rows are closed.
struct Manner {
    status: Closed,
    reason: Option<DeadReason>,
    error: Option<&'static str>,
    only_inactive: bool,
    copy_payload: bool,
}

impl Store {
    /// Dead-letters open deliveries of inactive endpoints, at most `limit`. Returns how many; 0 = done for now.
    pub async fn close_for_inactive(&self, limit: i64) -> Result<usize, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                "select o.event_id, o.endpoint_id
                from endpoints p
                cross join lateral (
                    select o.event_id, o.endpoint_id from open_deliveries o
                    where o.claim >= 0 and o.endpoint_id = p.id and (not o.leased or o.due_at <= now())
                    order by o.due_at limit $1
                ) o
                where not p.is_active
                limit $1",
                limit
            ))
            .await?;
        let keys = rows.into_iter().map(|r| (r.event_id, r.endpoint_id)).collect();
        let manner = Manner {
            status: Closed::DeadLettered,
            reason: Some(DeadReason::EndpointInactive),
            error: Some(INACTIVE),
            only_inactive: true,
            copy_payload: false,
        };
        self.close_rows(keys, manner).await
    }

    /// Discards what a resume leaves out, at most `limit`, unless the user has ended that resume meanwhile. Returns how
    /// many; 0 = done for now.
    pub(crate) async fn discard_waiting(&self, resuming: &Resuming, limit: i64) -> Result<usize, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                "select o.event_id, o.endpoint_id
                from open_deliveries o join events e on e.id = o.event_id
                where o.claim >= 0 and o.endpoint_id = $1 and e.accepted_at < $2 and (not o.leased or o.due_at <= now())
                    and exists (select from endpoints p where p.id = $1 and p.discard_before = $2)
                order by o.due_at limit $3",
                resuming.endpoint.0,
                resuming.before,
                limit
            ))
            .await?;
        let keys = rows.into_iter().map(|r| (r.event_id, r.endpoint_id)).collect();
        let manner = Manner {
            status: Closed::Discarded,
            reason: None,
            error: Some(LEFT_OUT),
            only_inactive: false,
            copy_payload: false,
        };
        self.close_rows(keys, manner).await
    }

    /// Dead-letters open deliveries of events before the id `floor`, with a copy of their payloads.
    pub(crate) async fn expire_below(&self, floor: Uuid, limit: i64) -> Result<usize, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                "select o.event_id, o.endpoint_id from open_deliveries o
                where o.event_id < $1 and (not o.leased or o.due_at <= now()) order by o.event_id, o.endpoint_id limit $2",
                floor,
                limit
            ))
            .await?;
        let keys = rows.into_iter().map(|r| (r.event_id, r.endpoint_id)).collect();
        let manner = Manner {
            status: Closed::DeadLettered,
            reason: Some(DeadReason::Expired),
            error: Some(EXPIRED),
            only_inactive: false,
            copy_payload: true,
        };
        self.close_rows(keys, manner).await
    }

    async fn close_rows(&self, mut keys: Vec<(Uuid, Uuid)>, manner: Manner) -> Result<usize, StoreError> {
        if keys.is_empty() {
            return Ok(0);
        }
        keys.sort_unstable();
        let events: Vec<Uuid> = keys.iter().map(|k| k.0).collect();
        let endpoints: Vec<Uuid> = keys.iter().map(|k| k.1).collect();
        let letters: Vec<Uuid> =
            keys.iter().map(|k| DeadLetterId::of_delivery(EventId(k.0), EndpointId(k.1)).0).collect();
        let closed = self
            .keyed
            .one(sqlx::query_file_scalar!(
                "src/sql/close.sql",
                &events,
                &endpoints,
                &letters,
                manner.only_inactive,
                manner.status as i16,
                manner.reason.map(DeadReason::as_str),
                manner.error.map(str::as_bytes),
                manner.copy_payload
            ))
            .await?;
        Ok(usize::try_from(closed).unwrap_or(0))
    }
}
