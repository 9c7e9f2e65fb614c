//! A backlog that falls due all at once: how fast it drains, how evenly over tenants and endpoints, and what new events feel
//! of it, at endpoints of the burst and at others. Needs psql.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::load::{Target, To};
use crate::report::{Figures, percentile};
use crate::sink::{Latency, Sink};
use crate::system::System;
use crate::{cpu, ledger};

/// Sequence numbers of the burst's events begin here, those of new events at 1.
const BURST_FROM: u64 = 1 << 40;
/// New events go to so many endpoints of the burst, and to so many others.
const WATCHED: usize = 10;
/// Nothing more comes when nothing has come for so long.
const QUIET: Duration = Duration::from_secs(20);

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Deliveries that are due at once, each after one failed attempt
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// Endpoints that they are for, evenly
    #[arg(long, default_value_t = 1000)]
    endpoints: usize,
    /// Tenants that the endpoints belong to, evenly
    #[arg(long, default_value_t = 4)]
    tenants: usize,
    /// New events a second meanwhile, half of them to endpoints of the burst
    #[arg(long, default_value_t = 50)]
    rate: u64,
}

/// Measures it.
///
/// # Errors
/// Something is lost; the figures are printed before.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let system = System::start(binary)?;
    let sink = Sink::start().await?;
    let tenants: Vec<String> = (0..args.tenants.max(1)).map(|n| format!("burst-{n}")).collect();
    eprintln!("registering {} endpoints of {} tenants", args.endpoints, tenants.len());
    let of = |i: usize| &tenants[i % tenants.len()];
    let mut ids = vec![String::new(); args.endpoints];
    for (n, tenant) in tenants.iter().enumerate() {
        system.create_tenant(tenant).await?;
        let numbers: Vec<usize> = (n..args.endpoints).step_by(tenants.len()).collect();
        let url = |i: usize| format!("{}/ok/{}", sink.url(), numbers[i]);
        let made = system.register_in(Some(tenant), numbers.len(), url, &serde_json::json!({})).await?;
        for (number, id) in numbers.iter().zip(made) {
            ids[*number] = id;
        }
    }
    // New events come from the tenant of the first endpoints, and beside them from the default one.
    let same: Vec<String> = ids.iter().step_by(tenants.len()).take(WATCHED).cloned().collect();
    let url = |i: usize| format!("{}/ok/{}", sink.url(), args.endpoints + i);
    let others = system.register(WATCHED, url, &serde_json::json!({})).await?;
    let targets =
        [Target::new_in(&system, Some(of(0)), To::each(same), 500), Target::new(&system, To::each(others), 500)];
    let database = system.database_url()?;

    let mut figures = Figures::new(format!(
        "{} deliveries due at once, {} endpoints of {} tenants; {} new events a second",
        args.count,
        args.endpoints,
        tenants.len(),
        args.rate
    ));
    eprintln!("new events alone");
    let (first, refused_before) =
        new_events(&targets, &sink, args.rate, |since| since >= Duration::from_secs(10)).await;
    let arrivals = sink.finish(first, Duration::from_secs(10)).await;
    latencies(&mut figures, "before", args.endpoints, &arrivals.latencies);
    anyhow::ensure!(arrivals.seen.len() as u64 == first && refused_before == 0, "new events are lost before the burst");

    sink.reset();
    eprintln!("filling the ledger");
    let filled = Instant::now();
    let fill = {
        let (statement, database) = (burst(&ids, &tenants, args.count), database.clone());
        tokio::task::spawn_blocking(move || ledger::sql(&database, &statement))
    };
    fill.await??;
    eprintln!("filled in {:.0} s; draining, with new events meanwhile", filled.elapsed().as_secs_f64());
    let started = Instant::now();
    let mut halfway = None;
    let mut stalled = (0, Instant::now());
    let (sent, refused) = new_events(&targets, &sink, args.rate, |_| {
        let count = sink.count();
        if halfway.is_none() && count >= args.count / 2 {
            halfway = Some((started.elapsed(), sink.progress(BURST_FROM)));
        }
        if count > stalled.0 + args.rate * 2 {
            stalled = (count, Instant::now());
        }
        count >= args.count || stalled.1.elapsed() > QUIET
    })
    .await;
    let arrivals = sink.finish(args.count + sent, QUIET).await;
    let drained = arrivals.last.map_or(f64::NAN, |at| at.duration_since(started).as_secs_f64());

    let came = arrivals.seen.keys().filter(|(seq, _)| *seq >= BURST_FROM).count() as u64;
    let new = arrivals.seen.len() as u64 - came;
    let lost = args.count - came.min(args.count) + (sent - new.min(sent));
    figures.add("drained per second".to_owned(), came as f64 / drained);
    figures.add("drained after s".to_owned(), drained);
    figures.add("new events accepted".to_owned(), sent as f64);
    figures.add("new events refused".to_owned(), refused as f64);
    figures.add("lost".to_owned(), lost as f64);
    figures.add("duplicates".to_owned(), arrivals.seen.values().map(|n| f64::from(*n) - 1.0).sum());
    latencies(&mut figures, "meanwhile", args.endpoints, &arrivals.latencies);
    if let Some((at, came)) = halfway {
        figures.add("half of it drained after s".to_owned(), at.as_secs_f64());
        spread(&mut figures, args, &came);
    }
    for (name, bytes) in cpu::peaks(&system.pids()) {
        figures.add(format!("memory MB (RSS, greatest), {name}"), bytes as f64 / 1e6);
    }
    if lost > 0 {
        crate::report::print(&figures);
        anyhow::bail!("{lost} are lost");
    }
    Ok(figures)
}

/// Sends new events to the targets in turn until `done` says so of the time since the first; how many were accepted, and
/// how many weren't.
async fn new_events(
    targets: &[Target; 2],
    sink: &Sink,
    rate: u64,
    mut done: impl FnMut(Duration) -> bool,
) -> (u64, u64) {
    let started = Instant::now();
    let mut running = futures_util::stream::FuturesUnordered::new();
    let (mut accepted, mut refused) = (0, 0);
    let mut count = |accepted_one: bool| if accepted_one { accepted += 1 } else { refused += 1 };
    for i in 0u64.. {
        let planned = Duration::from_micros(i * 1_000_000 / rate.max(1));
        let mut sleep = std::pin::pin!(tokio::time::sleep_until((started + planned).into()));
        loop {
            tokio::select! {
                () = &mut sleep => break,
                Some((_, one)) = futures_util::StreamExt::next(&mut running), if !running.is_empty() => count(one),
            }
        }
        if done(started.elapsed()) {
            break;
        }
        running.push(targets[usize::from(i % 2 == 0)].send_next(sink.now_us()));
    }
    while let Some((_, one)) = futures_util::StreamExt::next(&mut running).await {
        count(one);
    }
    (accepted, refused)
}

/// End-to-end latencies of new events, at endpoints of the burst and at others.
fn latencies(figures: &mut Figures, when: &str, endpoints: usize, all: &[Latency]) {
    for (name, is_same) in [("an endpoint of the burst", true), ("another endpoint", false)] {
        let mut us: Vec<u64> = all.iter().filter(|l| (l.number < endpoints as u64) == is_same).map(|l| l.us).collect();
        us.sort_unstable();
        for (share_name, share) in [("p50", 0.5), ("p99", 0.99)] {
            figures.add(format!("new events {when}, to {name}: e2e {share_name} ms"), percentile(&us, share));
        }
    }
}

/// How evenly half of it drained: the shares of their own work that the endpoints and the tenants had behind them.
fn spread(figures: &mut Figures, args: &Args, came: &HashMap<u64, u64>) {
    let of_endpoint = |i: usize| {
        let all = (args.count / args.endpoints as u64) + u64::from((i as u64) < args.count % args.endpoints as u64);
        (came.get(&(i as u64)).copied().unwrap_or(0), all)
    };
    let mut tenants: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    let mut shares = Vec::new();
    for i in 0..args.endpoints {
        let (drained, all) = of_endpoint(i);
        shares.push(drained as f64 / all.max(1) as f64);
        let tenant = tenants.entry(i % args.tenants.max(1)).or_default();
        *tenant = (tenant.0 + drained, tenant.1 + all);
    }
    let tenants = tenants.values().map(|(drained, all)| *drained as f64 / (*all).max(1) as f64).collect();
    for (what, mut shares) in [("an endpoint", shares), ("a tenant", tenants)] {
        shares.sort_by(f64::total_cmp);
        for (name, share) in [("smallest", shares.first()), ("greatest", shares.last())] {
            figures.add(format!("at half time, {name} share of {what}, %"), share.map_or(f64::NAN, |s| s * 100.0));
        }
    }
}

/// Fills the ledger with events of yesterday whose first attempt failed and whose second is due now. Event `n` is for
/// endpoint `n % endpoints`. One statement of SQL, so that all of it is there at once.
fn burst(endpoints: &[String], tenants: &[String], count: u64) -> String {
    let list = |all: &[String]| all.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(",");
    let (ids, names) = (list(endpoints), list(tenants));
    let (endpoints, tenants) = (endpoints.len(), tenants.len());
    format!(
        "begin;
        create temporary table burst on commit drop as
            select n, (left(replace(relay_day_floor((now() at time zone 'utc')::date - 1)::text, '-', ''), 12) || '7' || right(md5('b' || n), 19))::uuid as id,
                (array[{ids}]::uuid[])[n % {endpoints} + 1] as endpoint_id, (array[{names}]::text[])[n % {endpoints} % {tenants} + 1] as tenant
            from generate_series(0, {count} - 1) n;
        select relay_make_partitions((now() at time zone 'utc')::date - 1);
        insert into events (id, tenant, type, accepted_at, fanout, payload)
            select id, tenant, 'bench.burst', now(), 1, convert_to('{{\"seq\":' || ({BURST_FROM} + n) || ',\"at\":0,\"filler\":\"' || repeat('x', 440) || '\"}}', 'UTF8') from burst;
        insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base)
            select id, endpoint_id, tenant, now(), false, 1, 1, 0 from burst;
        commit;
        analyze events, open_deliveries"
    )
}
