use std::time::Duration;

use sqlx::PgPool;

use super::Ledger;
use crate::{ErrorKind, Store, StoreOptions};

/// Waits until a statement waits for a lock.
pub(super) async fn wait_for_lock(pool: &PgPool) {
    let waiting = async {
        loop {
            let n: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
            )
            .fetch_one(pool)
            .await
            .unwrap();
            if n > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("no statement waits for a lock");
}

async fn backend(store: &Store) -> i32 {
    store.queries.one(sqlx::query_scalar::<_, i32>("select pg_backend_pid()")).await.unwrap()
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_deadline_closes_the_connection_and_so_does_a_dropped_future(pool: PgPool) {
    let mut store = Store::open(
        (*pool.connect_options()).clone(),
        &StoreOptions { application_name: "t".to_owned(), max_connections: 1, query_connections: 1, secrets: None },
    );
    let first = backend(&store).await;
    assert_eq!(backend(&store).await, first, "a connection that has answered is used again");

    store.queries.deadline = Duration::from_millis(50);
    let late = store.queries.one(sqlx::query_scalar::<_, i32>("select 1 from pg_sleep(1)")).await;
    assert_eq!(late.as_ref().unwrap_err().kind(), ErrorKind::Timeout);
    assert!(late.unwrap_err().outcome_unknown());
    store.queries.deadline = Duration::from_secs(5);
    let second = backend(&store).await;
    assert_ne!(second, first);

    let dropped = store.queries.one(sqlx::query_scalar::<_, i32>("select 1 from pg_sleep(1)"));
    assert!(tokio::time::timeout(Duration::from_millis(50), dropped).await.is_err());
    let third = backend(&store).await;
    assert_ne!(third, second);

    // An error of the statement itself leaves the connection as it is.
    let failed = store.queries.one(sqlx::query_scalar::<_, i32>("select 1 / 0")).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Data);
    assert_eq!(backend(&store).await, third);

    // A lock that is dropped lets go.
    let lock = store.lock_versions(&[super::tenant()]).await.unwrap();
    drop(lock);
    store.create_tenant(&relay_core::ids::TenantId::trusted("x")).await.unwrap();
    sqlx::query("update tenants set directory_version = 7 where id = 'default'").execute(&pool).await.unwrap();
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_closed_server_connection_is_an_unknown_outcome(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let sleeping = ledger.queries.one(sqlx::query_scalar::<_, i32>("select 1 from pg_sleep(20)"));
    let kill = async {
        loop {
            let ended: Option<bool> = sqlx::query_scalar(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '%pg_sleep(20)%' and pid <> pg_backend_pid()",
            )
            .fetch_optional(&ledger.pool)
            .await
            .unwrap();
            if ended.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (answer, ()) = tokio::join!(sleeping, kill);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    ledger.ping().await.unwrap();
}

#[sqlx::test(migrations = "../../migrations")]
async fn migrations_clock_durability_and_leases(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    assert_eq!(ledger.pending_migrations().await.unwrap(), 0);
    ledger.migrate().await.unwrap();
    let durability = ledger.durability().await.unwrap();
    assert!(durability.synchronous_commit && durability.server_version.len() > 1);
    let ttl = Duration::from_secs(10);
    assert!(ledger.lead("scheduler", "a", ttl).await.unwrap());
    assert!(ledger.lead("scheduler", "a", ttl).await.unwrap());
    assert!(!ledger.lead("scheduler", "b", ttl).await.unwrap());
    ledger.resign("scheduler", "a").await.unwrap();
    assert!(ledger.lead("scheduler", "b", Duration::ZERO).await.unwrap());
    assert!(ledger.lead("scheduler", "a", ttl).await.unwrap(), "a lease that has lapsed is anybody's");
    let missing = Store::connect("postgres://nobody@127.0.0.1:1/none", StoreOptions::new("t")).await;
    let missing = missing.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unavailable);
    assert!(missing.to_string().contains("onnection refused"), "it says why: {missing}");
    assert!(Store::lazy("not a url", StoreOptions::new("t")).is_err());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_connection_that_the_server_ended_while_it_rested_is_not_used(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    for runner in [&ledger.dispatch, &ledger.keyed, &ledger.queries] {
        let ask = || runner.one(sqlx::query_scalar::<_, i32>("select pg_backend_pid()"));
        let backend = ask().await.unwrap();
        sqlx::query("select pg_terminate_backend($1, 5000)").bind(backend).execute(&ledger.pool).await.unwrap();
        tokio::time::sleep(crate::connect::FRESH).await;
        assert_ne!(ask().await.unwrap(), backend);
    }
}
