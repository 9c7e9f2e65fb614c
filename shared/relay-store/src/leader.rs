//! Leadership by a lease row: one of several pods does what one is enough for. Called by the dispatcher's
//! scheduler and the retention job. Everything a leader does is safe with two leaders: this only saves work.

use std::time::Duration;

use crate::connect::Store;
use crate::dispatch::micros;
use crate::error::StoreError;

impl Store {
    /// Takes or keeps the lead for `ttl`, counted by Postgres's clock. True: `holder` leads.
    pub async fn lead(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        let row = self
            .queries
            .optional(sqlx::query_scalar!(
                r#"insert into leases as l (name, holder, until) values ($1, $2, clock_timestamp() + $3 * interval '1 microsecond')
                on conflict (name) do update set holder = excluded.holder, until = excluded.until
                where l.holder = excluded.holder or l.until < clock_timestamp()
                returning 1 as "led!""#,
                name,
                holder,
                micros(ttl) as _
            ))
            .await?;
        Ok(row.is_some())
    }

    /// Gives the lead away at once (a shutdown): others needn't wait for the lease to lapse.
    pub async fn resign(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        self.queries
            .execute(sqlx::query!("delete from leases l where l.name = $1 and l.holder = $2", name, holder))
            .await
            .map(|_| ())
    }
}
