//! Puts right what an audit found, where the rows themselves say what is right. Called by `webhook-relay fsck --repair`.
//!
//! Invariants: each repair is one statement that looks again whether the fault is still there; nothing that is delivered
//! is sent again, and nothing that may not have been delivered is closed.

use relay_core::audit::{Attempts, Side, later};
use relay_core::delivery::DeadReason;
use relay_core::ids::{DeadLetterId, EndpointId, EventId, TenantId};
use relay_core::matching::TypeFilter;
use uuid::Uuid;

use crate::audit::{Doubled, FOUND_MAX, LetterAudit};
use crate::connect::Store;
use crate::error::StoreError;

/// The claim of a restored row: above that of any job of its old life, so those are stale.
const RESTORED_CLAIM: i32 = 1_000_000;

impl Store {
    /// Gives an event back the `missing` deliveries that have no row. Returns how many; 0: it can't be known which they
    /// are.
    pub async fn restore_deliveries(&self, event: EventId, missing: i64) -> Result<i64, StoreError> {
        let restored = self.restore(event, missing, &[]).await?;
        if restored > 0 {
            return Ok(restored);
        }
        // No trace of them is left: those that match now and were there when the event came.
        let rows = self
            .queries
            .all(sqlx::query!(
                r#"select p.id, p.event_types_filter, e.type from events e join endpoints p on p.tenant = e.tenant
                where e.id = $1 and e.endpoint_id is null and p.created_at <= e.accepted_at"#,
                event.0
            ))
            .await?;
        let matching =
            rows.iter().filter(|r| TypeFilter::parse(&r.event_types_filter).is_ok_and(|f| f.matches(&r.r#type)));
        let matching: Vec<Uuid> = matching.map(|r| r.id).collect();
        self.restore(event, missing, &matching).await
    }

    async fn restore(&self, event: EventId, missing: i64, matching: &[Uuid]) -> Result<i64, StoreError> {
        self.keyed
            .one(sqlx::query_file_scalar!("src/sql/restore.sql", event.0, matching, missing, RESTORED_CLAIM))
            .await
    }

    /// Deletes the older of a delivery's two rows, if both are still as they were found.
    pub async fn drop_older(&self, doubled: &Doubled) -> Result<bool, StoreError> {
        let (event, endpoint) = (doubled.event.0, doubled.endpoint.0);
        let (open, closed) = (doubled.open_claim, doubled.closed_claim);
        let query = match later(open, closed) {
            Side::Closed => sqlx::query!(
                "delete from open_deliveries o where o.event_id = $1 and o.endpoint_id = $2 and o.claim = $3
                    and exists (select from closed_deliveries c where c.event_id = $1 and c.endpoint_id = $2 and c.claim = $4)",
                event,
                endpoint,
                open,
                closed
            ),
            Side::Open => sqlx::query!(
                "delete from closed_deliveries c where c.event_id = $1 and c.endpoint_id = $2 and c.claim = $4
                    and exists (select from open_deliveries o where o.event_id = $1 and o.endpoint_id = $2 and o.claim = $3)",
                event,
                endpoint,
                open,
                closed
            ),
        };
        Ok(self.keyed.execute(query).await? > 0)
    }

    /// Writes the letters of an event's dead-lettered deliveries that have none. Returns how many.
    pub async fn write_lost_letters(&self, event: EventId) -> Result<u64, StoreError> {
        let endpoints = self
            .keyed
            .all(sqlx::query_scalar!(
                "select c.endpoint_id from closed_deliveries c where c.event_id = $1 and c.status = 2
                    and not exists (select from dead_letters d where d.event_id = c.event_id and d.endpoint_id = c.endpoint_id)",
                event.0
            ))
            .await?;
        let letters: Vec<Uuid> = endpoints.iter().map(|e| DeadLetterId::of_delivery(event, EndpointId(*e)).0).collect();
        self.keyed
            .execute(sqlx::query!(
                "insert into dead_letters (event_id, endpoint_id, id, tenant, event_type, reason, error, last_status, attempts, dead_lettered_at)
                select c.event_id, c.endpoint_id, x.letter_id, c.tenant, relay_event_type(c.event_id),
                    case when c.attempts = 0 then $4 else $5 end, c.last_error, c.last_status, c.attempts, c.finished_at
                from unnest($2::uuid[], $3::uuid[]) as x (endpoint_id, letter_id)
                join closed_deliveries c on c.event_id = $1 and c.endpoint_id = x.endpoint_id
                where c.status = 2
                on conflict do nothing",
                event.0,
                &endpoints,
                &letters,
                DeadReason::EndpointInactive.as_str(),
                DeadReason::Exhausted.as_str()
            ))
            .await
    }

    /// Lets a letter say what its delivery is, if both are still as they were found.
    pub async fn correct_letter(&self, letter: &LetterAudit) -> Result<bool, StoreError> {
        let Some(place) = letter.place else { return Ok(false) };
        let corrected = self
            .keyed
            .execute(sqlx::query!(
                "update dead_letters d set state = $3
                where d.id = $1 and d.state = $2 and case when $4::smallint is null
                    then exists (select from open_deliveries o where o.event_id = d.event_id and o.endpoint_id = d.endpoint_id)
                    else exists (select from closed_deliveries c where c.event_id = d.event_id and c.endpoint_id = d.endpoint_id and c.status = $4) end",
                letter.id().0,
                letter.state.as_str(),
                place.letter().as_str(),
                place.closed().map(|closed| closed as i16)
            ))
            .await?;
        Ok(corrected > 0)
    }

    /// Ends a lease that runs for more than a day: the delivery is due now.
    pub async fn end_far_lease(&self, event: EventId, endpoint: EndpointId) -> Result<bool, StoreError> {
        let ended = self
            .keyed
            .execute(sqlx::query!(
                "update open_deliveries o set due_at = now(), leased = false
                where o.event_id = $1 and o.endpoint_id = $2 and o.leased and o.due_at > now() + interval '1 day'",
                event.0,
                endpoint.0
            ))
            .await?;
        Ok(ended > 0)
    }

    /// Adds to the statistics of what is open what is missing there. Returns how many endpoints it concerned.
    pub async fn correct_figures(&self) -> Result<usize, StoreError> {
        Ok(self.queries.all(sqlx::query_file!("src/sql/figures.sql", true, FOUND_MAX)).await?.len())
    }

    /// Adds attempts to the statistics that are on record and not in them.
    pub async fn add_attempts(&self, endpoint: EndpointId, missing: Attempts) -> Result<(), StoreError> {
        let nobodys = TenantId::system();
        let int = |n: i64| i32::try_from(n).unwrap_or(i32::MAX);
        self.queries
            .execute(sqlx::query!(
                "insert into stats_delta (tenant, endpoint_id, attempts_ok, attempts_failed)
                values (coalesce((select p.tenant from endpoints p where p.id = $1), $4), $1, $2, $3)",
                endpoint.0,
                int(missing.ok),
                int(missing.failed),
                nobodys.as_str()
            ))
            .await
            .map(|_| ())
    }
}
