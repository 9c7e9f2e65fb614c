use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use relay_core::delivery::{Closed, DeadReason, Effect, HandBack, OpenState, Outcome, Stored, apply};
use relay_core::ids::{AttemptId, EndpointId, EventId, uuid_v7};
use relay_core::job::Job;
use relay_core::protocol::FoldedResult;
use sqlx::PgPool;
use uuid::Uuid;

use super::{Ledger, dead, tenant};
use crate::{CircuitEventRow, Counters, Recorded};

const RETRY: Outcome = Outcome::Retry { delay: Duration::from_secs(60) };

#[sqlx::test(migrations = "../../migrations")]
async fn a_delivery_fails_is_retried_and_delivered(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let job = ledger.job(&endpoint).await;
    assert_eq!(ledger.record_one(&job, RETRY).await, Recorded::Applied);
    assert_eq!(ledger.record_one(&job, RETRY).await, Recorded::Stale, "attempts have moved on");
    let stats = ledger.endpoint_stats(&tenant(), endpoint.id).await.unwrap();
    assert_eq!((stats.opened, stats.retrying, stats.pending(), stats.attempts_failed), (1, 1, 0, 2));
    let view = ledger.event_view(&tenant(), job.event).await.unwrap().unwrap();
    assert_eq!(view.summary.status, relay_core::delivery::Status::Failed);
    assert_eq!(view.deliveries[0].last_status, Some(500));
    assert!(view.summary.next_retry_at.is_some());
    assert_eq!(view.attempts.len(), 2);
    assert_eq!(&view.attempts[0].excerpt[..], b"\0\xff");

    let second = Job { attempts: 1, ..job.clone() };
    let result = ledger.result(&second, Outcome::Delivered);
    for expected in [Recorded::Delivered, Recorded::AlreadyDelivered] {
        assert_eq!(ledger.record(std::slice::from_ref(&result), "pod", &[]).await.unwrap().results, [expected]);
    }
    assert_eq!(ledger.count("select count(*) from attempts").await, 3);
    let stats = ledger.endpoint_stats(&tenant(), endpoint.id).await.unwrap();
    assert_eq!((stats.delivered, stats.retrying, stats.attempts_ok, stats.latency_us_sum), (1, 0, 1, 1500));
    assert_eq!((stats.success_rate(), stats.avg_latency_ms()), (Some(100.0), Some(1.5)));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_410_deactivates_and_raises_the_version(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let job = ledger.job(&endpoint).await;
    let before = ledger.version().await;
    let at = ledger.now;
    let transition =
        CircuitEventRow { endpoint: endpoint.id, at, from: "closed", to: "open", why: "5 failures".to_owned() };
    let done = ledger
        .record(&[ledger.result(&job, dead(DeadReason::Gone))], "pod", std::slice::from_ref(&transition))
        .await
        .unwrap();
    assert_eq!((done.results, done.deactivated), (vec![Recorded::Applied], vec![tenant()]));
    assert_eq!(ledger.version().await, before + 1);
    let gone = ledger.get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap();
    assert_eq!((gone.is_active, gone.version), (false, before + 1));
    // Again: nothing changes.
    let again = ledger.record(&[ledger.result(&job, dead(DeadReason::Gone))], "pod", &[transition]).await.unwrap();
    assert_eq!((again.results, again.deactivated), (vec![Recorded::Stale], vec![]));
    assert_eq!(ledger.version().await, before + 1);
    assert_eq!(ledger.count("select count(*) from circuit_events").await, 1);
    assert_eq!(
        ledger.text("select reason from dead_letters where state = 'open' and event_type = 'order.created'").await,
        "gone"
    );
}

/// A 2xx and a final failure of one delivery, by two pods in the same instant: delivered, the letter resolved.
#[sqlx::test(migrations = "../../migrations")]
async fn a_2xx_beside_a_final_failure_is_run_again(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let job = ledger.job(&endpoint).await;
    let failure = [ledger.result(&job, dead(DeadReason::Permanent))];
    let mut other = ledger.keyed.hold().await.unwrap();
    sqlx::raw_sql("begin").execute(other.conn()).await.unwrap();
    crate::record::run_uncommitted(&failure, other.conn()).await;
    let success = {
        let (store, result) = (ledger.store.clone(), ledger.result(&job, Outcome::Delivered));
        tokio::spawn(async move { store.record(&[result], "pod", &[]).await.unwrap() })
    };
    super::connections::wait_for_lock(&ledger.pool).await;
    sqlx::raw_sql("commit").execute(other.conn()).await.unwrap();
    other.give_back();
    assert_eq!(success.await.unwrap().results, [Recorded::Delivered]);
    assert_eq!(ledger.count("select count(*) from closed_deliveries where status = 1").await, 1);
    assert_eq!(ledger.text("select state from dead_letters").await, "resolved");
    assert_eq!(ledger.count("select count(*) from attempts").await, 2);
    let stats = ledger.endpoint_stats(&tenant(), endpoint.id).await.unwrap();
    assert_eq!((stats.delivered, stats.dead_lettered), (1, 0));
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_poison_answer_does_not_disturb_499_others(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as $$ begin
            if new.response_excerpt = 'poison' then raise exception 'poison' using errcode = '22021'; end if; return new; end $$;
        create trigger refuse before insert on attempts for each row execute function refuse();",
    )
    .execute(&ledger.pool)
    .await
    .unwrap();
    let template = ledger.plan(ledger.event(), &[&endpoint]).await;
    let batch: Vec<_> =
        (0..500).map(|_| relay_core::protocol::PlannedEvent { event: ledger.event(), ..template.clone() }).collect();
    ledger.dispatch(&batch).await.unwrap();
    let mut results: Vec<FoldedResult> = batch
        .iter()
        .map(|p| {
            let job = Job {
                event: p.event.id,
                endpoint: endpoint.id,
                tenant: tenant(),
                event_type: p.event.event_type.clone(),
                claim: 1,
                attempts: 0,
                base: 0,
                claimed_at: ledger.now,
                accepted_at: ledger.now,
                directory_version: 1,
                probe: false,
                trace: None,
                payload: None,
            };
            ledger.result(&job, Outcome::Delivered)
        })
        .collect();
    results[123].decisive.evidence.as_mut().unwrap().excerpt = bytes::Bytes::from_static(b"poison");
    for expected in [Recorded::Delivered, Recorded::AlreadyDelivered] {
        let done = ledger.record(&results, "pod", &[]).await.unwrap();
        assert!(done.results.iter().all(|r| *r == expected), "{:?}", done.results);
    }
    assert_eq!(ledger.count("select count(*) from closed_deliveries where status = 1").await, 500);
    assert_eq!(ledger.count("select count(*) from attempts").await, 500);
    assert_eq!(ledger.count("select count(*) from attempts where error = 'unrecordable: 22021'").await, 1);
    let stats = ledger.tenant_stats(&tenant()).await.unwrap();
    assert_eq!((stats.delivered, stats.attempts_ok, stats.attempts_failed), (500, 500, 0));
    // Of a day that retention has dropped: acked, nothing written.
    let mut old = results[0].clone();
    old.decisive.event = EventId(uuid_v7(ledger.now - chrono::Duration::days(60), [1; 10]));
    let done = ledger.record(&[old], "pod", &[]).await.unwrap();
    assert_eq!(done.results, [Recorded::Expired]);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    stored: Option<Stored>,
    lane: i16,
}

fn any_outcome(rng: &mut StdRng) -> Outcome {
    match rng.random_range(0..8) {
        0..3 => Outcome::Delivered,
        3..5 => Outcome::Retry { delay: Duration::from_secs(rng.random_range(1..100)) },
        5 => Outcome::HandedBack { delay: Duration::from_secs(5), reason: HandBack::Full },
        6 => dead(DeadReason::EndpointInactive),
        _ => dead(DeadReason::Exhausted),
    }
}

/// The statement is `apply` in SQL: random rows, random results, twice over (the second time on what the first
/// one left), then the same batch again, which may only find 2xx delivered already.
#[sqlx::test(migrations = "../../migrations")]
async fn the_statement_is_the_transition_function(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let mut rng = StdRng::seed_from_u64(20_261_125);
    let endpoints = [ledger.endpoint().await, ledger.endpoint().await, ledger.endpoint().await];
    for round in 0..6 {
        let mut cases: BTreeMap<(EventId, EndpointId), Case> = BTreeMap::new();
        for n in 0..200 {
            let event = ledger.event();
            let endpoint = endpoints[n % 3].id;
            ledger.dispatch(&[ledger.plan(event.clone(), &[]).await]).await.unwrap();
            let base = rng.random_range(0..4);
            let row = OpenState { claim: rng.random_range(1..4), attempts: base + rng.random_range(0..3), base };
            let stored = match rng.random_range(0..10) {
                0..6 => Some(Stored::Open(row)),
                6 => Some(Stored::Closed(Closed::Delivered, row)),
                7 => Some(Stored::Closed(Closed::DeadLettered, row)),
                8 => Some(Stored::Closed(Closed::Discarded, row)),
                _ => None,
            };
            let case = Case { stored, lane: if base > 0 { 2 } else { 0 } };
            store_case(&ledger, event.id, endpoint, &case).await;
            cases.insert((event.id, endpoint), case);
        }
        for _ in 0..2 {
            let results: Vec<FoldedResult> = cases
                .iter()
                .map(|((event, endpoint), case)| {
                    let row = match case.stored {
                        Some(Stored::Open(row) | Stored::Closed(_, row)) => row,
                        None => OpenState { claim: 1, attempts: 0, base: 0 },
                    };
                    let near = |rng: &mut StdRng, n: i32| (n + [0, 0, 0, -1, 1, -2][rng.random_range(0..6)]).max(0);
                    let job = Job {
                        event: *event,
                        endpoint: *endpoint,
                        tenant: tenant(),
                        event_type: relay_core::event::EventType::trusted("order.created"),
                        claim: near(&mut rng, row.claim),
                        attempts: near(&mut rng, row.attempts),
                        base: row.base,
                        claimed_at: ledger.now,
                        accepted_at: ledger.now,
                        directory_version: 1,
                        probe: false,
                        trace: None,
                        payload: None,
                    };
                    ledger.result(&job, any_outcome(&mut rng))
                })
                .collect();
            let before = (ledger.tenant_stats(&tenant()).await.unwrap(), totals(&cases));
            let done = ledger.record(&results, "pod", &[]).await.unwrap();
            for (result, recorded) in results.iter().zip(&done.results) {
                let r = &result.decisive;
                let case = cases.get_mut(&(r.event, r.endpoint)).unwrap();
                let effect = case.stored.map_or(Effect::Nothing, |s| apply(s, r.claim, r.attempts, &r.outcome));
                let expected = match &effect {
                    Effect::Nothing => Recorded::Stale,
                    Effect::AlreadyDelivered => Recorded::AlreadyDelivered,
                    Effect::Deliver { .. } => Recorded::Delivered,
                    Effect::Reschedule { .. } | Effect::Bury { .. } => Recorded::Applied,
                };
                assert_eq!(*recorded, expected, "round {round}: {case:?} {r:?}");
                case.stored = after(case.stored, &effect);
                let (stored, letter) = read_case(&ledger, r.event, r.endpoint).await;
                assert_eq!(stored, case.stored, "round {round}: {r:?}");
                match effect {
                    Effect::Bury { reason, .. } => {
                        assert_eq!(letter, Some(("open".to_owned(), reason.as_str().to_owned())))
                    }
                    Effect::Deliver { .. } => assert!(letter.is_none_or(|(state, _)| state == "resolved")),
                    _ => {}
                }
            }
            let after = (ledger.tenant_stats(&tenant()).await.unwrap(), totals(&cases));
            let delta = |stats: &Counters| [stats.delivered, stats.dead_lettered, stats.discarded, stats.retrying];
            for n in 0..4 {
                assert_eq!(
                    delta(&after.0)[n] - delta(&before.0)[n],
                    after.1[n] - before.1[n],
                    "round {round}, counter {n}"
                );
            }
            // The same batch again changes nothing but what a 2xx is told.
            let attempts = ledger.count("select count(*) from attempts").await;
            let again = ledger.record(&results, "pod", &[]).await.unwrap();
            for (result, recorded) in results.iter().zip(again.results) {
                let allowed = match result.decisive.outcome {
                    Outcome::Delivered => matches!(recorded, Recorded::AlreadyDelivered | Recorded::Stale),
                    // Handing back changes neither claim nor attempts: done twice it is the same.
                    Outcome::HandedBack { .. } => matches!(recorded, Recorded::Applied | Recorded::Stale),
                    _ => recorded == Recorded::Stale,
                };
                assert!(allowed, "{recorded:?} {result:?}");
                let (stored, _) = read_case(&ledger, result.decisive.event, result.decisive.endpoint).await;
                assert_eq!(stored, cases[&(result.decisive.event, result.decisive.endpoint)].stored);
            }
            assert_eq!(ledger.count("select count(*) from attempts").await, attempts);
            assert_eq!(delta(&ledger.tenant_stats(&tenant()).await.unwrap()), delta(&after.0));
        }
    }
}

/// Delivered, dead-lettered, discarded, retrying.
fn totals(cases: &BTreeMap<(EventId, EndpointId), Case>) -> [i64; 4] {
    let mut n = [0; 4];
    for case in cases.values() {
        match case.stored {
            Some(Stored::Closed(Closed::Delivered, _)) => n[0] += 1,
            Some(Stored::Closed(Closed::DeadLettered, _)) => n[1] += 1,
            Some(Stored::Closed(Closed::Discarded, _)) => n[2] += 1,
            Some(Stored::Open(row)) if row.attempts > row.base => n[3] += 1,
            _ => {}
        }
    }
    n
}

fn after(stored: Option<Stored>, effect: &Effect) -> Option<Stored> {
    let row = match stored? {
        Stored::Open(row) | Stored::Closed(_, row) => row,
    };
    match effect {
        Effect::Nothing | Effect::AlreadyDelivered => stored,
        Effect::Deliver { attempts } => {
            Some(Stored::Closed(Closed::Delivered, OpenState { attempts: *attempts, ..row }))
        }
        Effect::Reschedule { attempts, .. } => Some(Stored::Open(OpenState { attempts: *attempts, ..row })),
        Effect::Bury { attempts, .. } => {
            Some(Stored::Closed(Closed::DeadLettered, OpenState { attempts: *attempts, ..row }))
        }
    }
}

async fn store_case(ledger: &Ledger, event: EventId, endpoint: EndpointId, case: &Case) {
    let (sql, row, status) = match case.stored {
        None => return,
        Some(Stored::Open(row)) => (
            "insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base, lane) values ($1, $2, 'default', now(), true, $3, $4, $5, $6)",
            row,
            case.lane,
        ),
        Some(Stored::Closed(status, row)) => (
            "insert into closed_deliveries (event_id, endpoint_id, tenant, claim, attempts, base, status) values ($1, $2, 'default', $3, $4, $5, $6)",
            row,
            status as i16,
        ),
    };
    sqlx::query(sql)
        .bind(event.0)
        .bind(endpoint.0)
        .bind(row.claim)
        .bind(row.attempts)
        .bind(row.base)
        .bind(status)
        .execute(&ledger.pool)
        .await
        .unwrap();
    let has_letter = case.lane == 2 || matches!(case.stored, Some(Stored::Closed(Closed::DeadLettered, _)));
    if has_letter {
        let id = relay_core::ids::DeadLetterId::of_delivery(event, endpoint);
        sqlx::query("insert into dead_letters (event_id, endpoint_id, id, tenant, reason, state) values ($1, $2, $3, 'default', 'exhausted', 'replayed')")
            .bind(event.0)
            .bind(endpoint.0)
            .bind(id.0)
            .execute(&ledger.pool)
            .await
            .unwrap();
    }
}

async fn read_case(
    ledger: &Ledger,
    event: EventId,
    endpoint: EndpointId,
) -> (Option<Stored>, Option<(String, String)>) {
    let rows: Vec<(i16, i32, i32, i32)> = sqlx::query_as(
        "select 0::smallint, claim, attempts, base from open_deliveries where event_id = $1 and endpoint_id = $2
        union all select status, claim, attempts, base from closed_deliveries where event_id = $1 and endpoint_id = $2",
    )
    .bind(event.0)
    .bind(endpoint.0)
    .fetch_all(&ledger.pool)
    .await
    .unwrap();
    assert!(rows.len() <= 1, "open or closed, never both");
    let stored = rows.first().map(|(status, claim, attempts, base)| {
        let row = OpenState { claim: *claim, attempts: *attempts, base: *base };
        Closed::from_number(*status).map_or(Stored::Open(row), |closed| Stored::Closed(closed, row))
    });
    let letter = sqlx::query_as("select state, reason from dead_letters where event_id = $1 and endpoint_id = $2")
        .bind(event.0)
        .bind(endpoint.0)
        .fetch_optional(&ledger.pool)
        .await
        .unwrap();
    (stored, letter)
}

#[sqlx::test(migrations = "../../migrations")]
async fn every_attempt_of_a_folded_result_is_on_record(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let job = ledger.job(&endpoint).await;
    let mut result = ledger.result(&job, Outcome::Delivered);
    let mut other = ledger.result(&job, RETRY).decisive;
    other.evidence.as_mut().unwrap().id = AttemptId(Uuid::from_u128(5));
    result.others.push(other);
    assert_eq!(ledger.record(&[result], "pod", &[]).await.unwrap().results, [Recorded::Delivered]);
    assert_eq!(ledger.count("select count(*) from attempts").await, 2);
    assert_eq!(ledger.count("select count(*) from attempts where success").await, 1);
}
