//! Dead letters of what never became a delivery: messages that can't be read, events of unknown tenants,
//! events that the ledger can't hold. Called by the dispatcher.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use relay_core::delivery::DeadReason;
use relay_core::ids::{DeadLetterId, EventId, TenantId};
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;

/// A letter without a delivery. Writing it twice writes it once.
#[derive(Clone, Debug)]
pub struct RawLetter {
    /// Its identity: derived from the stream position, or from the event.
    pub id: DeadLetterId,
    /// The event, where there was an id to read; else the letter's own id stands for it.
    pub event_id: Option<EventId>,
    /// Whose it is. `None`: nobody's, only operators see it.
    pub tenant: Option<TenantId>,
    /// The type, where it could be read.
    pub event_type: Option<String>,
    /// Why.
    pub reason: DeadReason,
    /// Why, in words.
    pub error: String,
    /// The subject it came on.
    pub subject: Bytes,
    /// What it carried.
    pub payload: Bytes,
    /// When it happened.
    pub at: DateTime<Utc>,
}

/// Text as Postgres can hold it: without U+0000.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

impl Store {
    /// Writes letters; those that are there already stay as they are.
    pub async fn write_letters(&self, letters: &[RawLetter]) -> Result<(), StoreError> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut sorted: Vec<&RawLetter> = letters.iter().collect();
        sorted.sort_by_key(|l| l.event_id.map_or(l.id.0, |e| e.0));
        let ids: Vec<Uuid> = sorted.iter().map(|l| l.id.0).collect();
        let events: Vec<Uuid> = sorted.iter().map(|l| l.event_id.map_or(l.id.0, |e| e.0)).collect();
        let tenants: Vec<Option<String>> =
            sorted.iter().map(|l| l.tenant.as_ref().map(|t| storable(t.as_str()))).collect();
        let types: Vec<Option<String>> = sorted.iter().map(|l| l.event_type.as_deref().map(storable)).collect();
        let reasons: Vec<&str> = sorted.iter().map(|l| l.reason.as_str()).collect();
        let errors: Vec<&[u8]> = sorted.iter().map(|l| l.error.as_bytes()).collect();
        let subjects: Vec<&[u8]> = sorted.iter().map(|l| &l.subject[..]).collect();
        let payloads: Vec<&[u8]> = sorted.iter().map(|l| &l.payload[..]).collect();
        let times: Vec<DateTime<Utc>> = sorted.iter().map(|l| l.at).collect();
        self.keyed
            .execute(sqlx::query!(
                "with added as (
                    insert into dead_letters (event_id, endpoint_id, id, tenant, event_type, reason, error, subject, payload, dead_lettered_at)
                    select x.event_id, '00000000-0000-0000-0000-000000000000'::uuid, x.id, x.tenant, x.type, x.reason, x.error, x.subject, x.payload, x.at
                    from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bytea[], $8::bytea[], $9::timestamptz[])
                        as x (event_id, id, tenant, type, reason, error, subject, payload, at)
                    on conflict do nothing
                    returning tenant
                )
                insert into stats_delta (tenant, endpoint_id, opened, dead_lettered)
                select a.tenant, '00000000-0000-0000-0000-000000000000'::uuid, count(*)::int, count(*)::int
                from added a where a.tenant is not null group by a.tenant",
                &events,
                &ids,
                &tenants as _,
                &types as _,
                &reasons as _,
                &errors as _,
                &subjects as _,
                &payloads as _,
                &times
            ))
            .await
            .map(|_| ())
    }
}
