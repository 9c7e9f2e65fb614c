//! The recorder with a ledger that fails and waits as a test wants it.

use std::sync::Mutex;

use relay_core::delivery::{HandBack, Outcome};
use relay_core::ids::{EndpointId, EventId, TenantId};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::*;

fn report(n: u128) -> Report {
    Report {
        result: DeliveryResult {
            event: EventId(Uuid::from_u128(n)),
            endpoint: EndpointId(Uuid::from_u128(1)),
            tenant: TenantId::default_tenant(),
            claim: 1,
            attempts: 0,
            outcome: Outcome::HandedBack { delay: Duration::ZERO, reason: HandBack::Full },
            evidence: None,
        },
        event_type: EventType::trusted("a"),
    }
}

/// A ledger that carries out one statement per permit and fails as long as `failures` says.
#[derive(Default)]
struct Ledger {
    tried: Mutex<Vec<Vec<Key>>>,
    failures: Mutex<usize>,
}

struct Bench {
    ledger: Arc<Ledger>,
    permits: Arc<Semaphore>,
    reports: mpsc::Sender<Report>,
    settled: mpsc::Receiver<Vec<(Key, Settled)>>,
    flow: Flow,
    give_up: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn bench(permits: usize, failures: usize) -> Bench {
    let ledger = Arc::new(Ledger { failures: Mutex::new(failures), ..Ledger::default() });
    let permits = Arc::new(Semaphore::new(permits));
    let (reports, inbox) = mpsc::channel(10_000);
    let (outbox, settled) = mpsc::channel(10_000);
    let (flow, give_up) = (Flow::default(), CancellationToken::new());
    let (shared, gate) = (Arc::clone(&ledger), Arc::clone(&permits));
    let write = move |batch: Arc<Batch>| {
        let (ledger, gate) = (Arc::clone(&shared), Arc::clone(&gate));
        async move {
            gate.acquire().await.unwrap().forget();
            ledger.tried.lock().unwrap().push(batch.reported.iter().map(|r| r.key).collect());
            let mut failures = ledger.failures.lock().unwrap();
            if *failures == 0 {
                return Ok(());
            }
            *failures -= 1;
            Err("the outcome is unknown")
        }
    };
    let limits = Limits { unrecorded_max: 1000 };
    let task = tokio::spawn(run(inbox, flow.clone(), limits, write, outbox, give_up.clone()));
    Bench { ledger, permits, reports, settled, flow, give_up, task }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_settled_before_its_commit() {
    let mut bench = bench(0, 0);
    bench.reports.send(report(1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bench.settled.try_recv().is_err());
    bench.permits.add_permits(1);
    assert_eq!(bench.settled.recv().await.unwrap(), [(report(1).key(), Settled::Done { claim: 1 })]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_means_the_same_batch_again() {
    let mut bench = bench(100, 3);
    for n in 0..3 {
        bench.reports.send(report(n)).await.unwrap();
    }
    let settled = bench.settled.recv().await.unwrap();
    let tried = bench.ledger.tried.lock().unwrap().clone();
    assert_eq!(tried.len(), 4);
    assert!(tried.iter().all(|keys| *keys == tried[0]), "{tried:?}");
    assert_eq!(settled.iter().map(|(key, _)| *key).collect::<Vec<_>>(), tried[0]);
}

#[tokio::test(start_paused = true)]
async fn batches_gather_while_statements_are_under_way() {
    let mut bench = bench(0, 0);
    bench.reports.send(report(0)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    for n in 1..=BATCH_FULL_ENOUGH as u128 {
        bench.reports.send(report(n)).await.unwrap();
    }
    bench.permits.add_permits(10);
    let sizes = [bench.settled.recv().await.unwrap().len(), bench.settled.recv().await.unwrap().len()];
    assert_eq!(sizes.iter().sum::<usize>(), BATCH_FULL_ENOUGH + 1);
    assert!(sizes.contains(&1));
}

#[tokio::test(start_paused = true)]
async fn the_pod_stops_pulling_while_results_wait_and_starts_again() {
    let mut bench = bench(0, 0);
    bench.reports.send(report(1)).await.unwrap();
    tokio::time::sleep(FLUSH_AGE_MAX + Duration::from_secs(2)).await;
    assert!(!bench.flow.is_open());
    bench.permits.add_permits(1);
    bench.settled.recv().await.unwrap();
    bench.flow.opened().await;
}

#[tokio::test(start_paused = true)]
async fn too_many_unrecorded_results_close_the_valve() {
    let bench = bench(0, 0);
    for n in 0..1100 {
        bench.reports.send(report(n)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(!bench.flow.is_open());
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_everything_is_written() {
    let mut bench = bench(100, 2);
    for n in 0..10 {
        bench.reports.send(report(n)).await.unwrap();
    }
    drop(bench.reports);
    bench.task.await.unwrap();
    let mut settled = 0;
    while let Ok(batch) = bench.settled.try_recv() {
        settled += batch.len();
    }
    assert_eq!(settled, 10);
}

#[tokio::test(start_paused = true)]
async fn told_to_give_up_it_settles_nothing() {
    let mut bench = bench(1000, usize::MAX);
    bench.reports.send(report(1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.give_up.cancel();
    bench.task.await.unwrap();
    assert!(bench.settled.recv().await.is_none_or(|batch| batch.iter().all(|(_, how)| *how == Settled::Unknown)));
}
