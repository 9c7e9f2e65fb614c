//! Whether a system stays as it is under a steady load: memory, open files, tables, indexes, dead rows and the lags of
//! the streams, sampled at intervals; and the rate while a foreign snapshot is held, as a dump does.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::load::{Target, To};
use crate::report::Figures;
use crate::sink::Sink;
use crate::system::System;
use crate::{cpu, ledger, load};

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Length, in minutes
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// The load, as a share of the rate of a closed loop of 10 seconds
    #[arg(long, default_value_t = 0.6)]
    share: f64,
    /// Seconds between two samples
    #[arg(long, default_value_t = 60)]
    every: u64,
}

/// One sample.
struct Sample {
    ours_mb: f64,
    nats_mb: f64,
    postgres_mb: f64,
    files: f64,
    open_rows: f64,
    dead_rows: f64,
    open_mb: f64,
    index_mb: f64,
    e2e_p99_ms: f64,
    delivered_per_second: f64,
}

/// Sizes of the queue's table: the others grow with what is stored.
const QUEUE: &str = "select (select count(*) from open_deliveries), coalesce(n_dead_tup, 0),
    pg_table_size('open_deliveries') / 1e6, pg_indexes_size('open_deliveries') / 1e6
    from pg_stat_user_tables where relname = 'open_deliveries'";

async fn sample(
    system: &System,
    target: &Target,
    sink: &Sink,
    rate: u64,
    time: Duration,
    database: &str,
) -> anyhow::Result<Sample> {
    let outcome = load::open(target, sink, rate, time, load::QUIET).await?;
    anyhow::ensure!(outcome.lost == 0, "{} events were lost", outcome.lost);
    let memory = cpu::Snapshot::take(system.pids()).pss_bytes;
    let mb = |role: &str| memory.get(role).copied().unwrap_or(0) as f64 / 1e6;
    let queue = ledger::sql(database, QUEUE)?;
    let queue: Vec<f64> = queue.split('|').filter_map(|n| n.parse().ok()).collect();
    let at = |i: usize| queue.get(i).copied().unwrap_or(f64::NAN);
    Ok(Sample {
        ours_mb: mb("ours"),
        nats_mb: mb("nats"),
        postgres_mb: mb("postgres"),
        files: cpu::open_files(&system.pids()) as f64,
        open_rows: at(0),
        dead_rows: at(1),
        open_mb: at(2),
        index_mb: at(3),
        e2e_p99_ms: crate::report::percentile(&outcome.e2e_us, 0.99),
        delivered_per_second: outcome.delivered_per_second(),
    })
}

/// Measures it.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let system = System::start(binary)?;
    let sink = Sink::start().await?;
    let database = system.database_url()?;
    let ids = system.register(10, |i| format!("{}/ok/{i}", sink.url()), &serde_json::json!({})).await?;
    let to = To::each(ids);
    let target = Target::new(&system, to, 500);
    load::warm_up(&target, &sink).await?;
    let most = load::closed(&target, &sink, 64, Duration::from_secs(10)).await?;
    let rate = (most.delivered_per_second() * args.share) as u64;
    let mut figures = Figures::new(format!("{rate} events a second for {} minutes", args.minutes));
    let every = Duration::from_secs(args.every.max(1));
    let until = Instant::now() + Duration::from_secs(args.minutes * 60);
    let mut samples = Vec::new();
    println!(
        "minute  ours MB  nats MB  postgres MB  files  open  dead  queue MB  its indexes MB  e2e p99 ms  per second"
    );
    while Instant::now() < until {
        let s = sample(&system, &target, &sink, rate, every, &database).await?;
        println!(
            "{:>6.1} {:>8.1} {:>8.1} {:>12.1} {:>6} {:>5} {:>5} {:>9.1} {:>15.1} {:>11.1} {:>11.0}",
            (samples.len() + 1) as f64 * every.as_secs_f64() / 60.0,
            s.ours_mb,
            s.nats_mb,
            s.postgres_mb,
            s.files,
            s.open_rows,
            s.dead_rows,
            s.open_mb,
            s.index_mb,
            s.e2e_p99_ms,
            s.delivered_per_second
        );
        samples.push(s);
    }
    // The first quarter fills caches and pools.
    let settled = &samples[samples.len() / 4..];
    let slope = |of: fn(&Sample) -> f64| -> f64 {
        let (Some(first), Some(last)) = (settled.first(), settled.last()) else { return f64::NAN };
        let hours = (settled.len().saturating_sub(1)) as f64 * every.as_secs_f64() / 3600.0;
        if hours > 0.0 { (of(last) - of(first)) / hours } else { f64::NAN }
    };
    let most = |of: fn(&Sample) -> f64| settled.iter().map(of).fold(f64::NAN, f64::max);
    figures.add("ours: MB an hour".to_owned(), slope(|s| s.ours_mb));
    figures.add("NATS: MB an hour".to_owned(), slope(|s| s.nats_mb));
    figures.add("open files: an hour".to_owned(), slope(|s| s.files));
    figures.add("open_deliveries: most dead rows".to_owned(), most(|s| s.dead_rows));
    figures.add("open_deliveries: most MB".to_owned(), most(|s| s.open_mb));
    figures.add("open_deliveries: most MB of indexes".to_owned(), most(|s| s.index_mb));
    figures.add("e2e p99: worst of a sample, ms".to_owned(), most(|s| s.e2e_p99_ms));

    // A dump's snapshot keeps every dead row since its begin.
    let before = load::closed(&target, &sink, 64, Duration::from_secs(20)).await?;
    let hold = Duration::from_secs(180);
    eprintln!("holding a snapshot for {} s", hold.as_secs());
    let statement = format!(
        "begin isolation level repeatable read; select count(*) from tenants; select pg_sleep({}); commit",
        hold.as_secs() + 25
    );
    let holder = std::thread::spawn(move || ledger::sql(&database, &statement).map(|_| ()));
    load::open(&target, &sink, rate, hold, load::QUIET).await?;
    let during = load::closed(&target, &sink, 64, Duration::from_secs(20)).await?;
    figures.add("delivered per second before a foreign snapshot".to_owned(), before.delivered_per_second());
    figures.add(format!("delivered per second with one held for {} s", hold.as_secs()), during.delivered_per_second());
    holder.join().map_err(|_| anyhow::anyhow!("the thread that held the snapshot panicked"))??;
    Ok(figures)
}
