use super::*;
use sqlx::PgPool;

fn cpu(pid: i32) -> f64 {
    let Ok(s) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let f: Vec<&str> = s[s.rfind(')').unwrap() + 2..].split(' ').collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

async fn pids(pool: &PgPool) -> Vec<(i32, String)> {
    sqlx::query_as("select pid, left(query, 12) from pg_stat_activity where datname = current_database()").fetch_all(pool).await.unwrap()
}

#[sqlx::test(migrations = "../../migrations")]
async fn bench(pool: PgPool) {
    let size: usize = std::env::var("B").ok().and_then(|b| b.parse().ok()).unwrap_or(100);
    let total: usize = 40_000;
    let ledger = std::sync::Arc::new(Ledger::new(pool).await);
    let mut endpoints = Vec::new();
    for _ in 0..100 { endpoints.push(ledger.endpoint().await); }
    let endpoints = std::sync::Arc::new(endpoints);
    let version = ledger.version().await;
    let mut tasks = Vec::new();
    let started = std::time::Instant::now();
    for _ in 0..2 {
        let (ledger, endpoints) = (ledger.clone(), endpoints.clone());
        tasks.push(tokio::spawn(async move {
            let mut d = std::time::Duration::ZERO; let mut r = std::time::Duration::ZERO;
            for _ in 0..total / size / 2 {
                let mut planned = Vec::new();
                for i in 0..size {
                    let mut e = ledger.event();
                    if std::env::var("KEY").is_ok() { e = ledger.keyed(&format!("{:?}", random10()), ledger.now); }
                    e.payload = (0..500).map(|_| rand::random::<u8>()).collect::<Vec<u8>>().into();
                    let ep = &endpoints[(i * 7) % 100];
                    planned.push(PlannedEvent { event: e, aliases: vec![], directory_version: version, dead: None, deliveries: vec![PlannedDelivery { endpoint: ep.id, leased: true, lease: ep.lease(), lane: Lane::Fresh }] });
                }
                let t = std::time::Instant::now();
                ledger.dispatch(&planned).await.unwrap();
                d += t.elapsed();
                let results: Vec<_> = planned.iter().map(|p| {
                    let job = Job { event: p.event.id, endpoint: p.deliveries[0].endpoint, tenant: tenant(), event_type: p.event.event_type.clone(), claim: 1, attempts: 0, base: 0, claimed_at: ledger.now, accepted_at: ledger.now, directory_version: 1, probe: false, trace: None, payload: None };
                    let mut r = ledger.result(&job, Outcome::Delivered);
                    let e = r.decisive.evidence.as_mut().unwrap();
                    e.request_headers = vec![b'h'; 300].into(); e.response_headers = vec![b'h'; 100].into(); e.excerpt = b"ok"[..].into();
                    r
                }).collect();
                let t = std::time::Instant::now();
                let done = ledger.record(&results, "pod", &[]).await.unwrap();
                r += t.elapsed();
                assert!(done.results.iter().all(|r| *r == Recorded::Delivered));
            }
            (d, r)
        }));
    }
    let mut sums = (0.0, 0.0);
    for t in tasks { let (d, r) = t.await.unwrap(); sums.0 += d.as_secs_f64(); sums.1 += r.as_secs_f64(); }
    let el = started.elapsed().as_secs_f64();
    let mut by: std::collections::BTreeMap<String, f64> = Default::default();
    for (pid, q) in pids(&ledger.pool).await { *by.entry(q).or_default() += cpu(pid) * 1e6 / total as f64; }
    let n = (total / size) as f64;
    println!("batch {size}: {:.0}/s, dispatch {:.2} ms record {:.2} ms; cpu us/event {:?}", total as f64 / el, sums.0 / n * 1e3, sums.1 / n * 1e3, by);
}
