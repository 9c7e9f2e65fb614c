//! How every statement reaches Postgres. Called by each file that has SQL in it.
//!
//! Invariant: a connection goes back to its pool only after its statement was answered. On a deadline, on a
//! lost connection, and when the caller's future is dropped half-way, the connection is closed instead: the
//! driver would hand out a connection that is still busy with the old statement, and a statement that was
//! sent may be carried out whatever we do.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow};
use sqlx::query::{Map, Query, QueryScalar};
use sqlx::{FromRow, Postgres};

use crate::error::StoreError;

/// How long a client waits for one statement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// How long the server works on one statement: less, so that it ends what its client has given up.
pub(crate) const SERVER_DEADLINE: Duration = Duration::from_secs(8);
/// How long a statement waits for a free connection, or for a new one.
pub(crate) const ACQUIRE_DEADLINE: Duration = Duration::from_secs(5);
/// Repetitions after a deadlock or a serialisation failure.
pub(crate) const CONFLICT_RETRIES: usize = 5;

/// What `sqlx::query!` and `sqlx::query_scalar!` make: a statement with its arguments, and how to read its rows.
pub(crate) trait Fetch: Send {
    type Row: Send + Unpin;
    fn all(self, connection: &mut PgConnection) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
    fn one(self, connection: &mut PgConnection) -> impl Future<Output = Result<Self::Row, sqlx::Error>> + Send;
    fn optional(
        self,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<Option<Self::Row>, sqlx::Error>> + Send;
}

impl<F, T> Fetch for Map<'_, Postgres, F, PgArguments>
where
    F: FnMut(PgRow) -> Result<T, sqlx::Error> + Send + 'static,
    T: Send + Unpin + 'static,
{
    type Row = T;
    async fn all(self, connection: &mut PgConnection) -> Result<Vec<T>, sqlx::Error> {
        self.fetch_all(connection).await
    }
    async fn one(self, connection: &mut PgConnection) -> Result<T, sqlx::Error> {
        self.fetch_one(connection).await
    }
    async fn optional(self, connection: &mut PgConnection) -> Result<Option<T>, sqlx::Error> {
        self.fetch_optional(connection).await
    }
}

impl<T> Fetch for QueryScalar<'_, Postgres, T, PgArguments>
where
    T: Send + Unpin + 'static,
    (T,): for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    type Row = T;
    async fn all(self, connection: &mut PgConnection) -> Result<Vec<T>, sqlx::Error> {
        self.fetch_all(connection).await
    }
    async fn one(self, connection: &mut PgConnection) -> Result<T, sqlx::Error> {
        self.fetch_one(connection).await
    }
    async fn optional(self, connection: &mut PgConnection) -> Result<Option<T>, sqlx::Error> {
        self.fetch_optional(connection).await
    }
}

/// A pool, and how long its statements may take.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) pool: PgPool,
    pub(crate) deadline: Duration,
}

/// A connection that is closed unless it is given back.
pub(crate) struct Held(Option<PoolConnection<Postgres>>);

impl Held {
    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("held until it is given back")
    }

    pub(crate) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            // Dropping the bare connection closes its socket at once, without a word to the server.
            drop(connection.detach());
        }
    }
}

/// Whether the server answered in full, so that the connection is idle again.
fn is_answered(error: &sqlx::Error) -> bool {
    match error {
        // 57P: the server shuts down or ended this session.
        sqlx::Error::Database(e) => !e.code().is_some_and(|c| c.starts_with("57P")),
        sqlx::Error::RowNotFound | sqlx::Error::Encode(_) => true,
        _ => false,
    }
}

impl Runner {
    pub(crate) async fn hold(&self) -> Result<Held, StoreError> {
        match self.pool.acquire().await {
            Ok(connection) => Ok(Held(Some(connection))),
            Err(sqlx::Error::PoolClosed) => Err(StoreError::Closed),
            // Nothing was sent yet: the outcome is known.
            Err(e) => Err(StoreError::unavailable(e.to_string())),
        }
    }

    /// What a statement's answer means for its connection.
    pub(crate) fn settle<T>(
        held: Held,
        answer: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, StoreError> {
        match answer {
            Err(_) => Err(StoreError::Timeout),
            Ok(Ok(value)) => {
                held.give_back();
                Ok(value)
            }
            Ok(Err(e)) => {
                if is_answered(&e) {
                    held.give_back();
                }
                Err(e.into())
            }
        }
    }

    /// All rows.
    pub(crate) async fn all<Q: Fetch>(&self, query: Q) -> Result<Vec<Q::Row>, StoreError> {
        let mut held = self.hold().await?;
        let answer = tokio::time::timeout(self.deadline, query.all(held.conn())).await;
        Self::settle(held, answer)
    }

    /// The one row.
    pub(crate) async fn one<Q: Fetch>(&self, query: Q) -> Result<Q::Row, StoreError> {
        let mut held = self.hold().await?;
        let answer = tokio::time::timeout(self.deadline, query.one(held.conn())).await;
        Self::settle(held, answer)
    }

    /// The row, where there is one.
    pub(crate) async fn optional<Q: Fetch>(&self, query: Q) -> Result<Option<Q::Row>, StoreError> {
        let mut held = self.hold().await?;
        let answer = tokio::time::timeout(self.deadline, query.optional(held.conn())).await;
        Self::settle(held, answer)
    }

    /// No rows: how many were affected.
    pub(crate) async fn execute(&self, query: Query<'_, Postgres, PgArguments>) -> Result<u64, StoreError> {
        let mut held = self.hold().await?;
        let answer = tokio::time::timeout(self.deadline, query.execute(held.conn())).await;
        Self::settle(held, answer).map(|done| done.rows_affected())
    }
}
