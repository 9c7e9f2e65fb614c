//! `make bench`: how fast the system is on the machine at hand, end to end and durable.
//!
//! Starts `webhook-relay up` with its own data directory and free ports, a sink, and a load generator, all on this
//! machine. In one run it measures plain POSTs to the sink (the limit to compare with), the closed-loop
//! throughput, and the latency at a low rate; it counts what was lost and what came twice, and the CPU time of
//! each process. No figure here is a test: they are ratios and numbers for people.

mod cpu;
mod load;
mod report;
mod sink;
mod system;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

/// Measures WebhookRelay on this machine.
///
/// Example: bench --binary target/release/webhook-relay --seconds 20
#[derive(Parser, Debug)]
struct Args {
    /// The release binary to measure
    #[arg(long, default_value = "target/release/webhook-relay")]
    binary: PathBuf,
    /// Length of each throughput run, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Requests in flight in the closed loop; repeatable
    #[arg(long, default_values_t = [64usize])]
    in_flight: Vec<usize>,
    /// Bytes of each payload
    #[arg(long, default_value_t = 500)]
    payload_bytes: usize,
    /// Events per second of the latency run
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// Endpoints that each event goes to
    #[arg(long, default_value_t = 1)]
    fan_out: usize,
    /// Repetitions; the table shows the median
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Write the figures as JSON to this file as well
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let system = system::System::start(&args.binary).context("starting the system under test")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let figures = runtime.block_on(measure(&args, &system))?;
    report::print(&figures);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    drop(system);
    Ok(())
}

async fn measure(args: &Args, system: &system::System) -> anyhow::Result<report::Figures> {
    let sink = sink::Sink::start().await?;
    let endpoints = system.register(&sink.url(), args.fan_out).await?;
    let target = load::Target::new(system, &endpoints, args.payload_bytes)?;
    let mut figures = report::Figures::new(args.payload_bytes, args.fan_out);
    eprintln!("warming up");
    load::closed(&target, &sink, 16, Duration::from_secs(3), args.fan_out).await?;
    for run in 1..=args.runs {
        eprintln!("run {run} of {}: plain POSTs to the sink", args.runs);
        let baseline = load::baseline(&sink, args.payload_bytes, 64, Duration::from_secs(args.seconds.min(8))).await?;
        for in_flight in &args.in_flight {
            eprintln!("run {run} of {}: closed loop, {in_flight} in flight", args.runs);
            let before = cpu::Snapshot::take(system.pid());
            let outcome =
                load::closed(&target, &sink, *in_flight, Duration::from_secs(args.seconds), args.fan_out).await?;
            let cpu = cpu::Snapshot::take(system.pid()).since(&before);
            figures.throughput(*in_flight, baseline, &outcome, &cpu);
        }
        eprintln!("run {run} of {}: open loop, {} a second", args.runs, args.rate);
        let outcome = load::open(&target, &sink, args.rate, Duration::from_secs(args.seconds), args.fan_out).await?;
        figures.latency(args.rate, &outcome);
    }
    Ok(figures)
}
