//! The end of a pause without its backlog: the endpoint notes before which time what waits is to be discarded, stays
//! paused until that is done, and only then sends again. Called by ingest, and by a leader for what is left over.
//!
//! Invariants: the note survives a crash of whoever works on it; nothing that is to be discarded is sent, since the
//! pause ends in a statement that sees none of it open; a pause or resume by the user ends the note.

use chrono::{DateTime, Utc};
use relay_core::ids::{EndpointId, TenantId};

use crate::connect::Store;
use crate::error::StoreError;

/// An endpoint whose backlog is being discarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resuming {
    /// Whose it is.
    pub tenant: TenantId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Events accepted before this are discarded.
    pub before: DateTime<Utc>,
}

/// What one step of a resume did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeStep {
    /// So many deliveries were discarded; there may be more.
    Discarded(usize),
    /// A job for one of them is still out: go on when it has come back.
    Waits,
    /// The pause is over.
    Done,
}

impl Store {
    /// Notes that a paused endpoint is to go on without what was accepted before `before` (`None`: before now).
    /// `None`: there is no such endpoint, or it isn't paused.
    pub async fn begin_resume(
        &self,
        tenant: &TenantId,
        endpoint: EndpointId,
        before: Option<DateTime<Utc>>,
    ) -> Result<Option<Resuming>, StoreError> {
        let before = self
            .queries
            .optional(sqlx::query_scalar!(
                r#"update endpoints e set discard_before = coalesce($3, now()), updated_at = now()
                where e.id = $1 and e.tenant = $2 and e.paused
                returning e.discard_before as "discard_before!""#,
                endpoint.0,
                tenant.as_str(),
                before
            ))
            .await?;
        Ok(before.map(|before| Resuming { tenant: tenant.clone(), endpoint, before }))
    }

    /// Discards at most `limit` deliveries, or ends the pause where none is left.
    pub async fn step_resume(&self, resuming: &Resuming, limit: i64) -> Result<ResumeStep, StoreError> {
        let discarded = self.discard_waiting(resuming, limit).await?;
        if discarded > 0 {
            return Ok(ResumeStep::Discarded(discarded));
        }
        let ended = self
            .keyed
            .execute(sqlx::query!(
                "with t as (
                    update tenants set directory_version = directory_version + 1
                    where id = $2 and exists (select from endpoints e where e.id = $1 and e.discard_before = $3)
                        and not exists (
                            select from open_deliveries o join events v on v.id = o.event_id
                            where o.claim >= 0 and o.endpoint_id = $1 and v.accepted_at < $3
                        )
                    returning directory_version
                )
                update endpoints e set paused = false, discard_before = null, updated_at = now(), version = t.directory_version
                from t where e.id = $1 and e.discard_before = $3",
                resuming.endpoint.0,
                resuming.tenant.as_str(),
                resuming.before
            ))
            .await?;
        if ended > 0 || !self.resuming().await?.contains(resuming) {
            return Ok(ResumeStep::Done);
        }
        Ok(ResumeStep::Waits)
    }

    /// Endpoints whose backlog is being discarded.
    pub async fn resuming(&self) -> Result<Vec<Resuming>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query!(
                r#"select e.tenant, e.id, e.discard_before as "before!" from endpoints e where e.discard_before is not null"#
            ))
            .await?;
        Ok(rows
            .into_iter()
            .map(|r| Resuming { tenant: TenantId::trusted(&r.tenant), endpoint: EndpointId(r.id), before: r.before })
            .collect())
    }
}
