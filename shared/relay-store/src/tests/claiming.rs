use std::time::Duration;

use relay_core::delivery::{HandBack, Outcome};
use relay_core::job::PAYLOAD_BYTES_MAX;
use relay_core::subject::Lane;
use sqlx::PgPool;

use super::Ledger;
use crate::{ClaimBudget, Due, Recorded, TakeKey};

const LEASE: Duration = Duration::from_secs(60);

fn budget(endpoint: &relay_core::endpoint::Endpoint, limit: i32) -> ClaimBudget {
    ClaimBudget { endpoint: endpoint.id, limit, lease: LEASE, version: 7, probe: limit == 1 }
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_is_due_is_claimed_once_within_budgets(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (a, b) = (ledger.endpoint().await, ledger.endpoint().await);
    for _ in 0..3 {
        ledger.job(&a).await;
    }
    let job = ledger.job(&b).await;
    assert!(ledger.due(Due::Lapsed).await.unwrap().is_empty(), "all are leased");
    ledger.make_due().await;
    assert!(ledger.due(Due::Waiting).await.unwrap().is_empty(), "none waits");
    let due = ledger.due(Due::Lapsed).await.unwrap();
    assert_eq!(due.len(), 2);
    assert!(due.iter().all(|d| d.oldest < ledger.now && d.tenant == super::tenant()));

    let budgets = [budget(&a, 2), budget(&b, 1)];
    assert!(ledger.claim(&budgets, Due::Waiting, 2000).await.unwrap().is_empty(), "lapsed leases only when asked for");
    let claimed = ledger.claim(&budgets, Due::Lapsed, 2000).await.unwrap();
    assert_eq!(claimed.len(), 3);
    assert!(
        claimed
            .iter()
            .all(|(lane, j)| *lane == Lane::Fresh && j.claim == 2 && j.directory_version == 7 && j.payload.is_some())
    );
    assert_eq!(claimed[2].1.event, job.event);
    assert!(claimed[2].1.probe);
    assert_eq!(claimed[2].1.trace.as_deref(), Some("00-aa-bb-01"));
    assert_eq!(claimed[2].1.event_type.as_str(), "order.created");
    assert_eq!(ledger.claim(&budgets, Due::Lapsed, 2000).await.unwrap().len(), 1, "the third of a");

    // A retry is claimed into its own lane.
    let retried = &claimed[2].1;
    assert_eq!(ledger.record_one(retried, Outcome::Retry { delay: Duration::ZERO }).await, Recorded::Applied);
    let due = ledger.due(Due::Waiting).await.unwrap();
    assert_eq!(due.iter().map(|d| d.endpoint).collect::<Vec<_>>(), [b.id]);
    let again = ledger.claim(&[budget(&b, 5)], Due::Waiting, 2000).await.unwrap();
    assert_eq!((again[0].0, again[0].1.claim, again[0].1.attempts), (Lane::Retry, 3, 1));
    // Handed back with a delay: due then.
    let back = Outcome::HandedBack { delay: Duration::from_millis(800), reason: HandBack::Waiting };
    assert_eq!(ledger.record_one(&again[0].1, back).await, Recorded::Applied);
    assert_eq!(ledger.count("select count(*) from open_deliveries where hand_back = 5 and attempts = 1").await, 1);
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_statement_claims_no_more_than_it_is_told_and_keeps_the_order_of_the_budgets(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoints = [ledger.endpoint().await, ledger.endpoint().await, ledger.endpoint().await];
    for endpoint in &endpoints {
        ledger.job(endpoint).await;
        ledger.job(endpoint).await;
    }
    ledger.make_due().await;
    let budgets: Vec<_> = endpoints.iter().map(|e| budget(e, 5)).collect();
    let claimed = ledger.claim(&budgets, Due::Lapsed, 3).await.unwrap();
    let of: Vec<_> = claimed.iter().map(|(_, job)| job.endpoint).collect();
    assert_eq!(of, [endpoints[0].id, endpoints[0].id, endpoints[1].id]);
    assert_eq!(
        ledger.claim(&budgets[2..], Due::Lapsed, 3).await.unwrap().len(),
        2,
        "rows that weren't claimed aren't locked"
    );
    assert_eq!(ledger.claim(&budgets, Due::Lapsed, 3).await.unwrap().len(), 1);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_check_takes_the_row_for_one_of_all_copies(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let (one, two) = (ledger.job(&endpoint).await, ledger.job(&endpoint).await);
    let key = |j: &relay_core::job::Job| TakeKey {
        event: j.event,
        endpoint: j.endpoint,
        claim: j.claim,
        attempts: j.attempts,
        lease: LEASE,
    };
    let stale = TakeKey { attempts: 1, ..key(&two) };
    let taken = ledger.take(&[key(&two), key(&one), stale]).await.unwrap();
    assert_eq!(taken[0].map(|t| t.claim), Some(2));
    assert_eq!(taken[1].map(|t| t.claim), Some(2));
    assert_eq!(taken[2], None);
    assert_eq!(ledger.take(&[key(&two), key(&one)]).await.unwrap(), [None, None]);
    assert!(ledger.take(&[]).await.unwrap().is_empty());
}

#[sqlx::test(migrations = "../../migrations")]
async fn large_payloads_are_read_apart_and_locked_rows_left_alone(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let mut large = ledger.plan(ledger.event(), &[&endpoint]).await;
    large.event.payload = vec![b'1'; PAYLOAD_BYTES_MAX + 1].into();
    ledger.dispatch(std::slice::from_ref(&large)).await.unwrap();
    ledger.make_due().await;
    let mut other = ledger.keyed.hold().await.unwrap();
    sqlx::raw_sql("begin; select 1 from open_deliveries for update").execute(other.conn()).await.unwrap();
    assert!(ledger.claim(&[budget(&endpoint, 5)], Due::Lapsed, 2000).await.unwrap().is_empty());
    sqlx::raw_sql("commit").execute(other.conn()).await.unwrap();
    other.give_back();
    let claimed = ledger.claim(&[budget(&endpoint, 5)], Due::Lapsed, 2000).await.unwrap();
    assert_eq!(claimed[0].1.payload, None);
    let payloads = ledger.payloads(&[large.event.id, ledger.event().id]).await.unwrap();
    assert_eq!(payloads.get(&large.event.id), Some(&large.event.payload));
    assert_eq!(payloads.len(), 1);
}
