//! Opening the ledger: three groups of connections, each with the settings of the statements that run on it.
//! Called by the mains through `relay_runtime::reconnect`.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Connection;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::error::StoreError;
use crate::run::{ACQUIRE_DEADLINE, DEADLINE, Runner, SERVER_DEADLINE};
use crate::sealer::Sealer;

/// The migrations, embedded.
pub(crate) static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// A connection that nobody used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// A connection is replaced after this time: its cached plans and memory don't grow for ever.
const LIFETIME_MAX: Duration = Duration::from_secs(3600);

/// A connection that rested for so long is tried before it is used: the server may have been restarted meanwhile, and
/// whoever asks first would hear that the database doesn't answer. Under load nobody pays that round trip.
pub(crate) const FRESH: Duration = Duration::from_secs(1);

/// How to connect.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Connections for dispatch, and as many again for record, check and claim.
    pub max_connections: u32,
    /// Connections for the interface's reads and writes.
    pub query_connections: u32,
    /// Seals and opens the secrets of endpoints. `None`: they are neither read nor written.
    pub secrets: Option<Sealer>,
}

impl StoreOptions {
    /// The usual sizes: batches need few connections.
    pub fn new(application_name: impl Into<String>) -> Self {
        Self { application_name: application_name.into(), max_connections: 6, query_connections: 8, secrets: None }
    }

    /// With access to the secrets of endpoints.
    pub fn with_secrets(self, sealer: Sealer) -> Self {
        Self { secrets: Some(sealer), ..self }
    }
}

/// What the server promises about power cuts, as it is set now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durability {
    /// `fsync` is on.
    pub fsync: bool,
    /// `full_page_writes` is on.
    pub full_page_writes: bool,
    /// `synchronous_commit` of our ledger connections waits for the local disk at least.
    pub synchronous_commit: bool,
    /// The server's version.
    pub server_version: String,
}

/// The ledger. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// Dispatch: joins arrays with arrays, so hash joins stay on.
    pub(crate) dispatch: Runner,
    /// Record, check, claim: look-ups by key; nested loops over indexes only, so that partitions are pruned
    /// while the statement runs and small tables aren't scanned.
    pub(crate) keyed: Runner,
    /// Everything else.
    pub(crate) queries: Runner,
    /// For the secrets of endpoints.
    pub(crate) secrets: Option<Sealer>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

fn runner<V: Display + Clone>(options: &PgConnectOptions, settings: &[(&str, V)], connections: u32) -> Runner {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_DEADLINE)
        .idle_timeout(IDLE_MAX)
        .max_lifetime(LIFETIME_MAX)
        .test_before_acquire(false)
        .before_acquire(|connection, used| {
            Box::pin(async move {
                if used.idle_for >= FRESH {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options.clone().options(settings.iter().cloned()));
    Runner { pool, deadline: DEADLINE }
}

impl Store {
    /// Opens the ledger and proves that it can be reached.
    pub async fn connect(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        let store = Self::lazy(url, options)?;
        store.probe().await?;
        Ok(store)
    }

    /// Opens the ledger with its first statement: for an ingest that starts while Postgres is away.
    pub fn lazy(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        // The driver's words may hold the URL, and that a password.
        let parsed =
            PgConnectOptions::from_str(url).map_err(|_| StoreError::unavailable("the database URL can't be read"))?;
        Ok(Self::open(parsed, &options))
    }

    pub(crate) fn open(parsed: PgConnectOptions, options: &StoreOptions) -> Self {
        let base = parsed.application_name(&options.application_name).options([
            ("jit", "off".to_owned()),
            ("statement_timeout", SERVER_DEADLINE.as_millis().to_string()),
            ("idle_in_transaction_session_timeout", DEADLINE.as_millis().to_string()),
            ("synchronous_commit", "on".to_owned()),
        ]);
        // A batch of 8 MiB passes through tuple stores: below this they stay in memory.
        let roomy = ("work_mem", "32MB");
        // Planning over all partitions costs more than a batch of 30 takes.
        let generic = ("plan_cache_mode", "force_generic_plan");
        Self {
            dispatch: runner(&base, &[roomy, generic, ("enable_seqscan", "off")], options.max_connections),
            keyed: runner(
                &base,
                &[
                    roomy,
                    generic,
                    ("enable_seqscan", "off"),
                    ("enable_hashjoin", "off"),
                    ("enable_mergejoin", "off"),
                    ("enable_bitmapscan", "off"),
                ],
                options.max_connections,
            ),
            queries: runner::<&str>(&base, &[], options.query_connections),
            secrets: options.secrets.clone(),
        }
    }

    /// A store over a pool's database, with other deadlines: for tests.
    #[cfg(test)]
    pub(crate) fn of_pool(pool: &sqlx::PgPool) -> Self {
        Self::open(
            (*pool.connect_options()).clone(),
            &StoreOptions {
                application_name: "relay-test".to_owned(),
                max_connections: 4,
                query_connections: 4,
                secrets: Some(crate::tests::sealer(&[1])),
            },
        )
    }

    /// Closes all connections, waiting for the statements that run.
    pub async fn close(&self) {
        self.dispatch.pool.close().await;
        self.keyed.pool.close().await;
        self.queries.pool.close().await;
    }

    /// Proves that the ledger can be reached, by a connection beside the pools: a pool would only say that it got none
    /// in time, this says why.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let options = self.queries.pool.connect_options();
        let connect = async { sqlx::PgConnection::connect_with(&options).await?.close().await };
        match tokio::time::timeout(DEADLINE, connect).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(StoreError::unavailable(error.to_string())),
            Err(_) => Err(StoreError::unavailable(format!("no answer within {} s", DEADLINE.as_secs()))),
        }
    }

    /// Proves that the ledger answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.queries.one(sqlx::query_scalar!(r#"select 1 as "one!""#)).await.map(|_| ())
    }

    /// The server's clock: the one that all pods correct theirs by.
    pub async fn clock(&self) -> Result<DateTime<Utc>, StoreError> {
        self.queries.one(sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#)).await
    }

    /// What the server promises about power cuts, as the ledger's own connections see it.
    pub async fn durability(&self) -> Result<Durability, StoreError> {
        let row = self
            .keyed
            .one(sqlx::query!(
                r#"select current_setting('fsync') as "fsync!", current_setting('full_page_writes') as "pages!",
                    current_setting('synchronous_commit') as "commit!", current_setting('server_version') as "version!""#
            ))
            .await?;
        Ok(Durability {
            fsync: row.fsync == "on",
            full_page_writes: row.pages == "on",
            synchronous_commit: matches!(row.commit.as_str(), "on" | "local" | "remote_write" | "remote_apply"),
            server_version: row.version,
        })
    }

    /// Brings the schema up to date. Runs to its end even if the caller goes away.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let options = (*self.queries.pool.connect_options()).clone().options([("statement_timeout", "0")]);
        let runtime = tokio::runtime::Handle::current();
        // The migrator's future is not `Send` as far as the compiler can see: it gets a thread of its own.
        let work = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                let mut connection = sqlx::PgConnection::connect_with(&options).await?;
                MIGRATOR.run(&mut connection).await.map_err(|e| match e {
                    sqlx::migrate::MigrateError::Execute(e) => e.into(),
                    e => StoreError::Inconsistent(format!("migrations: {e}")),
                })
            })
        });
        work.await.map_err(|e| StoreError::Inconsistent(format!("migrations: {e}")))?
    }

    /// How many migrations of this binary the database doesn't have yet.
    pub async fn pending_migrations(&self) -> Result<usize, StoreError> {
        let known = self
            .queries
            .one(sqlx::query_scalar!(r#"select to_regclass('_sqlx_migrations') is not null as "known!""#))
            .await?;
        if !known {
            return Ok(MIGRATOR.iter().count());
        }
        // The migrator's own table: it is there only where the migrator ran, so the macros can't check this.
        let mut held = self.queries.hold().await?;
        let done = tokio::time::timeout(
            DEADLINE,
            sqlx::query_scalar::<_, i64>("select version from _sqlx_migrations where success").fetch_all(held.conn()),
        )
        .await
        .map_err(|_| StoreError::Timeout)??;
        held.give_back();
        Ok(MIGRATOR.iter().filter(|m| !done.contains(&m.version)).count())
    }
}
