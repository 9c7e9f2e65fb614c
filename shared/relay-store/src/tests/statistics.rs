//! Statistics against what the tables say.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use relay_core::delivery::{DeadReason, HandBack, Outcome};
use relay_core::endpoint::Endpoint;
use relay_core::histogram::{Bucket, Histogram, Latencies};
use relay_core::ids::DeadLetterId;
use relay_core::job::Job;
use relay_core::series::{SeriesRange, Step};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Ledger, dead, tenant};
use crate::{CircuitEventRow, Counters, SeriesPoint};

#[sqlx::test(migrations = "../../migrations")]
async fn the_database_and_the_core_have_the_same_buckets(pool: PgPool) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut times: Vec<i64> =
        (0..20_000).map(|_| rng.random::<i64>().unsigned_abs() as i64 >> rng.random_range(1..62)).collect();
    for bits in 0..42 {
        for part in 8..=16 {
            times.extend([-1, 0, 1].map(|d| ((1i64 << bits) * part / 8 + d).max(0)));
        }
    }
    let there: Vec<i16> =
        sqlx::query_scalar("select relay_bucket(t) from unnest($1::bigint[]) with ordinality as x (t, n) order by n")
            .bind(&times)
            .fetch_all(&pool)
            .await
            .unwrap();
    let here: Vec<i16> = times.iter().map(|t| Bucket::of(t.unsigned_abs()).number() as i16).collect();
    assert_eq!(there, here);
}

/// What the tables say of an endpoint, or of all; they are counted here so that nobody else has to.
async fn counted(ledger: &Ledger, endpoint: Option<Uuid>, late: &BTreeSet<Uuid>) -> (Counters, Latencies) {
    let row: (i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from events where $1 is null), (select count(*) from events where $1 is null and fanout = 0),
            (select count(*) from open_deliveries o where $1 is null or o.endpoint_id = $1) + count(*),
            count(*) filter (where c.status = 1), count(*) filter (where c.status = 2), count(*) filter (where c.status = 3),
            (select count(*) from open_deliveries o where ($1 is null or o.endpoint_id = $1) and o.attempts > o.base),
            (select count(*) from attempts a where ($1 is null or a.endpoint_id = $1) and a.success),
            (select count(*) from attempts a where ($1 is null or a.endpoint_id = $1) and not a.success),
            (select coalesce(sum(a.total_us), 0) from attempts a where ($1 is null or a.endpoint_id = $1) and a.success)
        from closed_deliveries c where $1::uuid is null or c.endpoint_id = $1",
    )
    .bind(endpoint)
    .fetch_one(&ledger.pool)
    .await
    .unwrap();
    let (
        events,
        unmatched,
        opened,
        delivered,
        dead_lettered,
        discarded,
        retrying,
        attempts_ok,
        attempts_failed,
        latency_us_sum,
    ) = row;
    let counters = Counters {
        events,
        unmatched,
        opened,
        delivered,
        dead_lettered,
        discarded,
        retrying,
        attempts_ok,
        attempts_failed,
        latency_us_sum,
    };
    let answered: Vec<i64> = sqlx::query_scalar(
        "select a.total_us::bigint from attempts a where ($1::uuid is null or a.endpoint_id = $1) and a.http_status is not null",
    )
    .bind(endpoint)
    .fetch_all(&ledger.pool)
    .await
    .unwrap();
    let delivered: Vec<i64> = sqlx::query_scalar(
        "select (extract(epoch from c.finished_at - coalesce(d.replayed_at, e.accepted_at)) * 1000000)::bigint
        from closed_deliveries c join events e on e.id = c.event_id
        left join dead_letters d on d.event_id = c.event_id and d.endpoint_id = c.endpoint_id
        where ($1::uuid is null or c.endpoint_id = $1) and c.status = 1 and c.event_id <> all($2)",
    )
    .bind(endpoint)
    .bind(late.iter().copied().collect::<Vec<_>>())
    .fetch_all(&ledger.pool)
    .await
    .unwrap();
    let histogram = |times: Vec<i64>| {
        let mut all = Histogram::default();
        times.iter().for_each(|t| all.add(Bucket::of(t.unsigned_abs()).number(), 1));
        all
    };
    (counters, Latencies { answered: histogram(answered), delivered: histogram(delivered) })
}

fn sum(points: &[SeriesPoint]) -> (Counters, Latencies) {
    let mut latencies = Latencies::default();
    points.iter().for_each(|p| latencies.merge(&p.latencies));
    let total = |of: fn(&Counters) -> i64| points.iter().map(|p| of(&p.counters)).sum();
    let counters = Counters {
        events: total(|c| c.events),
        unmatched: total(|c| c.unmatched),
        opened: total(|c| c.opened),
        delivered: total(|c| c.delivered),
        dead_lettered: total(|c| c.dead_lettered),
        discarded: total(|c| c.discarded),
        retrying: total(|c| c.retrying),
        attempts_ok: total(|c| c.attempts_ok),
        attempts_failed: total(|c| c.attempts_failed),
        latency_us_sum: total(|c| c.latency_us_sum),
    };
    (counters, latencies)
}

/// Everything that is shown is what the tables say.
async fn compare(ledger: &Ledger, endpoints: &[Endpoint], late: &BTreeSet<Uuid>, when: &str) {
    let now = ledger.clock().await.unwrap();
    for endpoint in endpoints.iter().map(Some).chain([None]) {
        let id = endpoint.map(|e| e.id);
        let expected = counted(ledger, id.map(|i| i.0), late).await;
        let totals = match id {
            Some(id) => ledger.endpoint_stats(&tenant(), id).await.unwrap(),
            None => ledger.tenant_stats(&tenant()).await.unwrap(),
        };
        assert_eq!(totals, expected.0, "{when}: totals of {id:?}");
        for step in [Step::Minute, Step::Hour] {
            let range = SeriesRange::new(step, Some(now - TimeDelta::hours(2)), None, now).unwrap();
            let points = ledger.series(&tenant(), id, range).await.unwrap();
            assert_eq!(points.len(), range.points().count());
            assert_eq!(sum(&points), expected, "{when}: {step:?}s of {id:?}");
        }
    }
}

async fn closed(ledger: &Ledger, statuses: &[i16]) -> BTreeSet<Uuid> {
    let events: Vec<Uuid> = sqlx::query_scalar("select event_id from closed_deliveries where status = any($1)")
        .bind(statuses)
        .fetch_all(&ledger.pool)
        .await
        .unwrap();
    events.into_iter().collect()
}

/// As if what isn't folded yet had come over an hour.
async fn age(ledger: &Ledger) {
    for sql in [
        "update stats_delta set at = at - interval '61 minutes' * random()",
        "update stats_batches set at = at - interval '61 minutes' * random()",
    ] {
        sqlx::query(sql).execute(&ledger.pool).await.unwrap();
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn statistics_are_what_the_tables_say(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoints = [ledger.endpoint().await, ledger.endpoint().await, ledger.endpoint().await];
    let mut rng = StdRng::seed_from_u64(7);
    let mut jobs: Vec<Job> = Vec::new();
    // Delivered by a 2xx that came after the delivery was given up: their time isn't measured.
    let mut late = BTreeSet::new();
    ledger.dispatch(&[ledger.plan(ledger.event(), &[]).await]).await.unwrap();
    for round in 0..6 {
        for _ in 0..20 {
            jobs.push(ledger.job(&endpoints[rng.random_range(0..2)]).await);
        }
        for _ in 0..3 {
            let results: Vec<_> = jobs
                .iter()
                .map(|job| {
                    let outcome = match rng.random_range(0..5) {
                        0 | 1 => Outcome::Delivered,
                        2 => Outcome::Retry { delay: Duration::from_secs(1) },
                        3 => dead(DeadReason::Exhausted),
                        _ => Outcome::HandedBack { delay: Duration::ZERO, reason: HandBack::Full },
                    };
                    let mut result = ledger.result(job, outcome.clone());
                    if let Some(evidence) = &mut result.decisive.evidence {
                        evidence.total_us = 1 << rng.random_range(0..30);
                        if outcome != Outcome::Delivered && rng.random_bool(0.3) {
                            evidence.http_status = None;
                        }
                    }
                    result
                })
                .collect();
            let given_up = closed(&ledger, &[2, 3]).await;
            ledger.record(&results, "pod", &[]).await.unwrap();
            ledger.record(&results, "other", &[]).await.unwrap();
            late.extend(closed(&ledger, &[1]).await.intersection(&given_up));
        }
        for job in &jobs {
            let letter = DeadLetterId::of_delivery(job.event, job.endpoint);
            match rng.random_range(0..4) {
                0 => drop(ledger.replay_one(None, letter, true).await.unwrap()),
                1 => drop(ledger.discard(None, letter).await.unwrap()),
                _ => {}
            }
        }
        // What was sent again goes on with its new claim.
        let open: Vec<(Uuid, i32, i32, i32)> =
            sqlx::query_as("select event_id, claim, attempts, base from open_deliveries")
                .fetch_all(&ledger.pool)
                .await
                .unwrap();
        late.retain(|event| open.iter().all(|r| r.0 != *event));
        jobs.retain_mut(|job| {
            let row = open.iter().find(|r| r.0 == job.event.0);
            row.inspect(|r| (job.claim, job.attempts, job.base) = (r.1, r.2, r.3)).is_some()
        });
        compare(&ledger, &endpoints, &late, &format!("round {round}, not folded")).await;
        age(&ledger).await;
        compare(&ledger, &endpoints, &late, &format!("round {round}, spread over an hour")).await;
        // Two leaders at once.
        let (a, b) = tokio::join!(ledger.fold(), ledger.fold());
        assert!(a.unwrap().deltas + b.unwrap().deltas > 0);
        compare(&ledger, &endpoints, &late, &format!("round {round}, folded")).await;
    }
    assert!(counted(&ledger, None, &late).await.1.delivered.samples() > 20, "there is something to compare");
}

/// Nobody folded for a long time, and each batch was of many endpoints: a folding takes what it can do in time.
#[sqlx::test(migrations = "../../migrations")]
async fn a_folding_is_bounded_however_much_has_piled_up(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    for (batches, endpoints) in [(60, 500), (2, 20_000)] {
        sqlx::query(
            r"insert into stats_batches (at, deltas)
              select now() - make_interval(mins => b), (
                  select array_agg(row('t', gen_random_uuid(), 1, 0, 1, 1, 0, 0, 0, 1, 0, 1000, '{1,2}')::relay_stats)
                  from generate_series(1, $2) where b > 0
              )
              from generate_series(1, $1) b",
        )
        .bind(batches)
        .bind(endpoints)
        .execute(&ledger.pool)
        .await
        .unwrap();
        let (mut folded, mut foldings) = (0, 0);
        loop {
            let fold = ledger.fold().await.unwrap();
            assert!(fold.deltas <= 20_000, "{fold:?}");
            (folded, foldings) = (folded + fold.deltas, foldings + 1);
            assert_eq!(fold.more, folded < batches as u64 * endpoints as u64, "{folded}");
            if !fold.more {
                break;
            }
        }
        assert_eq!((folded, foldings), (batches as u64 * endpoints as u64, 2));
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_head_of_the_queue_is_shown(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (a, b) = (ledger.endpoint().await, ledger.endpoint().await);
    let nothing = ledger.backlog(&tenant(), None).await.unwrap();
    assert_eq!((nothing.due, nothing.oldest_due_at, nothing.oldest_pending_at), (Some(0), None, None));
    let (first, second) = (ledger.job(&a).await, ledger.job(&b).await);
    let waiting = ledger.backlog(&tenant(), None).await.unwrap();
    assert_eq!((waiting.due, waiting.oldest_due_at), (Some(0), None), "their jobs are out");
    assert_eq!(waiting.oldest_pending_at, Some(first.accepted_at));
    ledger.record_one(&first, Outcome::Retry { delay: Duration::ZERO }).await;
    ledger.make_due().await;
    let of = async |endpoint| ledger.backlog(&tenant(), endpoint).await.unwrap();
    assert_eq!(of(None).await.due, Some(2));
    let retried = of(Some(a.id)).await;
    assert_eq!((retried.due, retried.oldest_pending_at), (Some(1), None), "it has had its first attempt");
    assert!(retried.oldest_due_at.unwrap() < ledger.clock().await.unwrap());
    assert_eq!(of(Some(b.id)).await.oldest_pending_at, Some(second.accepted_at));
}

#[sqlx::test(migrations = "../../migrations")]
async fn circuits_have_a_history(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let at = |n: i64| -> DateTime<Utc> { DateTime::from_timestamp(1_700_000_000 + n, 0).unwrap() };
    let change = |n, from, to| CircuitEventRow { endpoint: endpoint.id, at: at(n), from, to, why: n.to_string() };
    let changes = [change(0, "closed", "open"), change(1, "open", "half_open"), change(2, "half_open", "closed")];
    for _ in 0..2 {
        ledger.record_transitions("pod", &changes).await.unwrap();
    }
    let whys = async |before, limit| -> Vec<String> {
        let history = ledger.circuit_history(endpoint.id, before, limit).await.unwrap();
        history.into_iter().map(|c| c.why).collect()
    };
    assert_eq!(whys(None, 10).await, ["2", "1", "0"]);
    assert_eq!(whys(Some(at(2)), 1).await, ["1"]);
}
