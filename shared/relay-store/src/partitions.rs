//! A partition a day, made ahead by a leader and on demand by the statements that miss one.
//! Called by the retention job, and by dispatch and record when a row falls outside all partitions.

use std::collections::BTreeSet;

use chrono::{DateTime, Duration, NaiveDate, Utc};
use relay_core::ids::{day_start, id_time};
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;

/// Days before today whose partitions are still made on demand: beyond them, retention may have dropped the day.
pub const DAYS_BACK_MAX: i64 = 31;
/// Days ahead whose partitions are made on demand: an id from further ahead comes from a wrong clock.
pub const DAYS_AHEAD_MAX: i64 = 2;
/// Days that are made ahead.
pub const DAYS_AHEAD: i64 = 7;

/// The days that ids belong to.
pub(crate) fn days_of(ids: impl IntoIterator<Item = Uuid>) -> BTreeSet<NaiveDate> {
    ids.into_iter().map(|id| day_start(id_time(id)).date_naive()).collect()
}

fn is_made_on_demand(day: NaiveDate, now: DateTime<Utc>) -> bool {
    let today = now.date_naive();
    day >= today - Duration::days(DAYS_BACK_MAX) && day <= today + Duration::days(DAYS_AHEAD_MAX)
}

impl Store {
    /// Makes the partitions of these days where they are missing. Days too far away get none.
    pub async fn ensure_partitions(&self, days: impl IntoIterator<Item = NaiveDate>) -> Result<(), StoreError> {
        let now = self.clock().await?;
        for day in days {
            if !is_made_on_demand(day, now) {
                return Err(StoreError::MissingPartition { message: format!("{day} is too old or too far ahead") });
            }
            self.make_partitions(day).await?;
        }
        Ok(())
    }

    /// Makes today's partitions and those of the days ahead. A leader does this at its start and every hour.
    pub async fn make_ahead(&self) -> Result<(), StoreError> {
        let today = self.clock().await?.date_naive();
        for ahead in -1..=DAYS_AHEAD {
            self.make_partitions(today + Duration::days(ahead)).await?;
        }
        Ok(())
    }

    async fn make_partitions(&self, day: NaiveDate) -> Result<(), StoreError> {
        self.queries
            .execute(sqlx::query!("select relay_make_partitions($1) where $1 is not null", day))
            .await
            .map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn days_come_from_ids_and_have_limits() {
        let now = Utc.timestamp_millis_opt(1_700_000_000_000).unwrap();
        let id = relay_core::ids::uuid_v7(now, [7; 10]);
        assert_eq!(days_of([id, id]).into_iter().collect::<Vec<_>>(), vec![now.date_naive()]);
        assert!(is_made_on_demand(now.date_naive() - Duration::days(31), now));
        assert!(!is_made_on_demand(now.date_naive() - Duration::days(32), now));
        assert!(is_made_on_demand(now.date_naive() + Duration::days(2), now));
        assert!(!is_made_on_demand(now.date_naive() + Duration::days(3), now));
    }
}
