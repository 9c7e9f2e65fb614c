//! Whether an event costs the same however much there is already: the closed loop beside stored events, many endpoints
//! and deliveries that wait for a retry. Each case runs on a system of its own.

use std::path::Path;
use std::time::Duration;

use crate::load::{Target, To};
use crate::report::Figures;
use crate::sink::Sink;
use crate::system::System;
use crate::{cpu, ledger, load};

/// Days that stored events are spread over.
const DAYS: u64 = 10;
/// Endpoints of the stored events.
const STORED_ENDPOINTS: u64 = 100;

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Events stored before; repeatable; some 1.2 KB of disk each
    #[arg(long, default_values_t = [0u64, 1_000_000, 10_000_000])]
    events: Vec<u64>,
    /// Endpoints that the events go to in turn; repeatable
    #[arg(long, default_values_t = [1usize, 100, 10_000])]
    endpoints: Vec<usize>,
    /// Deliveries of other endpoints that wait for a retry; repeatable
    #[arg(long, default_values_t = [0u64, 1_000_000])]
    retries: Vec<u64>,
    /// Requests in flight
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Length of each measurement, in seconds
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Repetitions; the table shows the median
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

/// What there is already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    events: u64,
    endpoints: usize,
    retries: u64,
}

impl Case {
    fn name(self) -> String {
        format!("{} stored events, {} endpoints, {} waiting retries", self.events, self.endpoints, self.retries)
    }
}

/// The first of each list together, and beside that each further one alone.
fn cases(args: &Args) -> Vec<Case> {
    let first = Case {
        events: args.events.first().copied().unwrap_or(0),
        endpoints: args.endpoints.first().copied().unwrap_or(1),
        retries: args.retries.first().copied().unwrap_or(0),
    };
    let mut cases = vec![first];
    cases.extend(args.events.iter().skip(1).map(|events| Case { events: *events, ..first }));
    cases.extend(args.endpoints.iter().skip(1).map(|endpoints| Case { endpoints: *endpoints, ..first }));
    cases.extend(args.retries.iter().skip(1).map(|retries| Case { retries: *retries, ..first }));
    cases
}

/// Measures it.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let mut figures = Figures::new(format!("closed loop, {} in flight, beside what is there already", args.in_flight));
    for run in 1..=args.runs {
        for case in cases(args) {
            eprintln!("run {run} of {}: {}", args.runs, case.name());
            measure_case(args, case, binary, &mut figures).await?;
        }
    }
    Ok(figures)
}

async fn measure_case(args: &Args, case: Case, binary: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let system = System::start(binary)?;
    let database = system.database_url()?;
    if case.events > 0 || case.retries > 0 {
        ledger::fill(&database, case.events.max(DAYS), DAYS, STORED_ENDPOINTS)?;
    }
    if case.retries > 0 {
        // Not paused, or nobody would look at them; due in half an hour and later.
        ledger::sql(&database, &waiting(case.retries))?;
    }
    let sink = Sink::start().await?;
    let ids = system.register(case.endpoints, |i| format!("{}/ok/{i}", sink.url()), &serde_json::json!({})).await?;
    let to = To::each(ids);
    let target = Target::new(&system, to, 500);
    load::warm_up(&target, &sink).await?;
    let before = cpu::Snapshot::take(system.pids());
    let outcome = load::closed(&target, &sink, args.in_flight, Duration::from_secs(args.seconds)).await?;
    let cpu = cpu::Snapshot::take(system.pids()).since(&before);
    let of = |name: &str| format!("{}: {name}", case.name());
    let delivered = outcome.delivered.max(1) as f64;
    figures.add(of("delivered per second"), outcome.delivered_per_second());
    figures.add(of("lost"), outcome.lost as f64);
    figures.add(of("duplicates"), outcome.duplicates as f64);
    for role in ["ours", "postgres", "nats", "harness"] {
        let us = cpu.cpu_us.get(role).copied().unwrap_or(0);
        figures.add(of(&format!("CPU us per delivery, {role}")), us as f64 / delivered);
    }
    Ok(())
}

/// Deliveries of stored endpoints whose first attempt failed.
fn waiting(retries: u64) -> String {
    format!(
        "update tenants set directory_version = directory_version + 1 where id = 'default';
        update endpoints set paused = false, version = (select directory_version from tenants where id = 'default')
            where tenant = 'default' and name like 'bench %';
        create temporary table waiting as
            select (left(replace(relay_day_floor((now() at time zone 'utc')::date - 1)::text, '-', ''), 12) || '7' || right(md5('w' || n), 19))::uuid as id,
                ('00000000-0000-7000-8000-' || lpad((n % {STORED_ENDPOINTS})::text, 12, '0'))::uuid as endpoint_id, n
            from generate_series(1, {retries}) n;
        insert into events (id, tenant, type, accepted_at, fanout, payload)
            select id, 'default', 'bench.waiting', now(), 1, '{{}}' from waiting;
        insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base)
            select id, endpoint_id, 'default', now() + interval '30 minutes' + n * interval '1 millisecond', false, 1, 1, 0 from waiting;"
    )
}
