//! Retention: what a leader throws away, and what must happen before. Called by the DLQ manager's retention
//! job, once an hour; everything is safe to repeat and safe with two leaders.
//!
//! Invariant: before a day's partitions go, its open deliveries are dead letters, and its dead letters that
//! wait for somebody have their payloads copied. What goes is marked before it goes.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use relay_core::audit::ThrownAway;
use relay_core::ids::day_floor;
use sqlx::{AssertSqlSafe, Connection};
use tracing::{info, warn};
use uuid::Uuid;

use crate::close::CLOSE_ROWS_MAX;
use crate::connect::Store;
use crate::error::StoreError;

/// Dead letters whose payloads one statement copies: payloads can have a megabyte each.
const COPY_ROWS_MAX: i64 = 100;
/// Rows that one statement deletes.
const DELETE_ROWS_MAX: i64 = 5000;
/// Detaching waits for the statements that run on the table: it may take long, and nobody waits behind it.
const DETACH_DEADLINE: Duration = Duration::from_secs(300);

impl Store {
    /// Drops the partitions of all days before `day`. Returns their names. What is open there becomes dead
    /// letters with the reason `expired` first. Deliveries under a running lease keep their day for this time.
    pub async fn drop_before(&self, day: NaiveDate) -> Result<Vec<String>, StoreError> {
        let floor = day_floor(day.and_time(NaiveTime::MIN).and_utc());
        while self.expire_below(floor, CLOSE_ROWS_MAX).await? > 0 {}
        let still_open = self
            .keyed
            .one(sqlx::query_scalar!(
                r#"select exists (select from open_deliveries o where o.event_id < $1) as "open!""#,
                floor
            ))
            .await?;
        if still_open {
            warn!(%day, "deliveries of an expired day are being sent: it is dropped next time");
            return Ok(Vec::new());
        }
        while self.copy_payloads_below(floor).await? > 0 {}
        self.mark_thrown_away("days", day.and_time(NaiveTime::MIN).and_utc()).await?;
        let names = self.partitions_before(day).await?;
        for (parent, name) in &names {
            self.drop_partition(parent.clone(), name.clone()).await?;
            info!(partition = %name, "dropped");
        }
        Ok(names.into_iter().map(|(_, name)| name).collect())
    }

    /// Deletes letters that came here before `before`, whatever their state. Returns how many.
    pub async fn forget_letters(&self, before: DateTime<Utc>) -> Result<u64, StoreError> {
        self.mark_thrown_away("letters", before).await?;
        self.queries
            .execute(sqlx::query!(
                "delete from dead_letters d where d.ctid = any(array(select x.ctid from dead_letters x where x.dead_lettered_at < $1 limit $2))",
                before,
                DELETE_ROWS_MAX
            ))
            .await
    }

    /// Deletes folded minutes, hours and circuit changes before `before`. Returns how many.
    pub async fn forget_history(&self, before: DateTime<Utc>) -> Result<u64, StoreError> {
        let minutes = self
            .queries
            .execute(sqlx::query!(
                "delete from stats_minutes m where m.ctid = any(array(select x.ctid from stats_minutes x where x.minute < $1 limit $2))",
                before,
                DELETE_ROWS_MAX
            ))
            .await?;
        let hours = self
            .queries
            .execute(sqlx::query!(
                "delete from stats_hours h where h.ctid = any(array(select x.ctid from stats_hours x where x.hour < $1 limit $2))",
                before,
                DELETE_ROWS_MAX
            ))
            .await?;
        let circuits = self
            .queries
            .execute(sqlx::query!(
                "delete from circuit_events c where c.ctid = any(array(select x.ctid from circuit_events x where x.at < $1 limit $2))",
                before,
                DELETE_ROWS_MAX
            ))
            .await?;
        Ok(minutes + hours + circuits)
    }

    /// Up to when what was stored is gone on purpose.
    pub async fn thrown_away(&self) -> Result<ThrownAway, StoreError> {
        let rows = self.queries.all(sqlx::query!("select m.what, m.before from retention_marks m")).await?;
        let mark = |what: &str| rows.iter().find(|row| row.what == what).map(|row| row.before);
        Ok(ThrownAway { days: mark("days"), letters: mark("letters") })
    }

    async fn mark_thrown_away(&self, what: &str, before: DateTime<Utc>) -> Result<(), StoreError> {
        self.queries
            .execute(sqlx::query!(
                "insert into retention_marks as m (what, before) values ($1, $2)
                on conflict (what) do update set before = greatest(m.before, excluded.before)",
                what,
                before
            ))
            .await
            .map(drop)
    }

    async fn copy_payloads_below(&self, floor: Uuid) -> Result<u64, StoreError> {
        self.keyed
            .execute(sqlx::query!(
                "update dead_letters d set payload = x.payload
                from (
                    select l.event_id, l.endpoint_id, e.payload
                    from dead_letters l join events e on e.id = l.event_id
                    where l.event_id < $1 and l.payload is null and l.state in ('open', 'replayed')
                    order by l.event_id, l.endpoint_id limit $2
                ) x
                where d.event_id = x.event_id and d.endpoint_id = x.endpoint_id",
                floor,
                COPY_ROWS_MAX
            ))
            .await
    }

    async fn partitions_before(&self, day: NaiveDate) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self
            .queries
            .all(sqlx::query!(
                r#"select p.relname::text as "parent!", c.relname::text as "name!"
                from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_class c on c.oid = i.inhrelid
                where p.oid in ('events'::regclass, 'closed_deliveries'::regclass, 'attempts'::regclass, 'event_aliases'::regclass)
                    and c.relname ~ '_[0-9]{8}$' and right(c.relname::text, 8) < to_char($1::date, 'YYYYMMDD')
                order by 2"#,
                day
            ))
            .await?;
        Ok(rows.into_iter().map(|r| (r.parent, r.name)).collect())
    }

    /// On a connection of its own, in a task that nobody can cancel half-way.
    async fn drop_partition(&self, parent: String, name: String) -> Result<(), StoreError> {
        let options = (*self.queries.pool.connect_options())
            .clone()
            .options([("statement_timeout", "0"), ("lock_timeout", "10s")]);
        let work = tokio::spawn(async move {
            let mut connection = sqlx::PgConnection::connect_with(&options).await?;
            let pending: Option<bool> =
                sqlx::query_scalar("select i.inhdetachpending from pg_inherits i where i.inhrelid = to_regclass($1)")
                    .bind(&name)
                    .fetch_optional(&mut connection)
                    .await?;
            // Names come from the catalogue and end in eight digits. Two leaders: the second finds nothing to do.
            let how = match pending {
                Some(true) => Some("finalize"),
                Some(false) => Some("concurrently"),
                None => None,
            };
            if let Some(how) = how {
                let detach = format!(r#"alter table "{parent}" detach partition "{name}" {how}"#);
                sqlx::raw_sql(AssertSqlSafe(detach)).execute(&mut connection).await?;
            }
            sqlx::raw_sql(AssertSqlSafe(format!(r#"drop table if exists "{name}""#))).execute(&mut connection).await?;
            Ok::<_, sqlx::Error>(())
        });
        match tokio::time::timeout(DETACH_DEADLINE, work).await {
            Err(_) => Err(StoreError::Timeout),
            Ok(Err(e)) => Err(StoreError::Inconsistent(format!("dropping a partition: {e}"))),
            Ok(Ok(done)) => done.map_err(StoreError::from),
        }
    }
}
