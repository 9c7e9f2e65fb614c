//! Open dead letters by endpoint and reason: what the trouble is, and since when. Called by the DLQ manager.
//!
//! Cost: an index probe for each group there is, up to [`TOTAL_MAX`] of them, and for each group that is answered its
//! letters up to [`GROUP_LETTERS_MAX`], from the index alone. Nothing depends on how large the table is.

use chrono::{DateTime, Utc};
use relay_core::delivery::DeadReason;
use relay_core::ids::{DeadLetterId, EndpointId, TenantId};
use relay_core::page::Cursor;

use crate::connect::Store;
use crate::error::StoreError;
use crate::window::{Listed, TOTAL_MAX, Window};

/// Letters of one group that are counted.
pub const GROUP_LETTERS_MAX: i64 = 10_000;

/// Open letters of one tenant with the same endpoint and reason.
#[derive(Clone, Debug, PartialEq)]
pub struct LetterGroup {
    /// Whose they are; `None`: nobody's.
    pub tenant: Option<TenantId>,
    /// The endpoint that did not get them; `None`: messages that never became events.
    pub endpoint: Option<EndpointId>,
    /// Why they are here.
    pub reason: DeadReason,
    /// How many there are, up to [`GROUP_LETTERS_MAX`].
    pub count: i64,
    /// Whether there are more than `count`.
    pub more: bool,
    /// When the first came here.
    pub first_at: DateTime<Utc>,
    /// When the last came here.
    pub last_at: DateTime<Utc>,
    /// The last one.
    pub example: DeadLetterId,
}

impl Store {
    /// Groups of open letters, the one that began last first: so a walk repeats and misses nothing while letters are
    /// added. `None` as tenant: everybody's and nobody's (an operator), but not the system's own.
    pub async fn letter_groups(
        &self,
        tenant: Option<&TenantId>,
        endpoint: Option<EndpointId>,
        reason: Option<DeadReason>,
        window: &Window,
    ) -> Result<Listed<LetterGroup>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_file!(
                "src/sql/letter_groups.sql",
                tenant.map(TenantId::as_str),
                endpoint.map(|e| e.0),
                reason.map(DeadReason::as_str),
                i32::try_from(TOTAL_MAX).unwrap_or(i32::MAX),
                GROUP_LETTERS_MAX,
                window.after_at(),
                window.after_id(),
                window.offset,
                window.limit.saturating_add(1)
            ))
            .await?;
        let groups = rows.first().map_or(window.offset, |row| row.groups);
        let total = window.with_total.then_some(groups).filter(|n| *n <= TOTAL_MAX);
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            let reason = DeadReason::parse(&row.reason).ok_or_else(|| {
                StoreError::Inconsistent(format!("dead letter {} has the reason {:?}", row.first_id, row.reason))
            })?;
            let group = LetterGroup {
                tenant: (!row.owner.is_empty()).then(|| TenantId::trusted(&row.owner)),
                endpoint: (!row.endpoint_id.is_nil()).then_some(EndpointId(row.endpoint_id)),
                reason,
                count: row.letters.min(GROUP_LETTERS_MAX),
                more: row.letters > GROUP_LETTERS_MAX,
                first_at: row.first_at,
                last_at: row.last_at,
                example: DeadLetterId(row.last_id),
            };
            items.push((group, Cursor { at: row.first_at, id: row.first_id }));
        }
        let listed = Listed::cut(items, window, total, |(_, position)| *position);
        Ok(Listed {
            items: listed.items.into_iter().map(|(group, _)| group).collect(),
            total: listed.total,
            next: listed.next,
        })
    }
}
