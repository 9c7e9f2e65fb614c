//! The closed loop at full speed, the plain POSTs to compare with, and the latency at a low rate and at shares of the
//! greatest rate that was seen.

use std::path::Path;
use std::time::Duration;

use crate::load::{Target, To};
use crate::report::Figures;
use crate::sink::Sink;
use crate::system::{Layout, System};
use crate::{cpu, load};

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Args {
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
    /// Latency is measured at this share of the greatest rate as well; repeatable
    #[arg(long, value_name = "0.0-1.0")]
    share: Vec<f64>,
    /// Endpoints that each event goes to
    #[arg(long, default_value_t = 1)]
    fan_out: usize,
    /// Endpoints that the events go to in turn, one each; not with --fan-out
    #[arg(long, conflicts_with = "fan_out")]
    endpoints: Option<usize>,
    /// Publish to NATS instead of the REST interface
    #[arg(long)]
    nats: bool,
    /// Run each service as a process of its own, with so many deliverers
    #[arg(long, value_name = "DELIVERERS")]
    separate: Option<usize>,
    /// Repetitions; the table shows the median
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

/// Measures it.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let layout = args.separate.map_or(Layout::AllInOne, Layout::Separate);
    let system = System::start_as(binary, layout)?;
    let sink = Sink::start().await?;
    let count = args.endpoints.unwrap_or(args.fan_out);
    let endpoints = system.register(count, |i| format!("{}/ok/{i}", sink.url()), &serde_json::json!({})).await?;
    let to = if args.endpoints.is_some() || count == 1 { To::each(endpoints) } else { To::All(endpoints.len() as u64) };
    let mut figures = Figures::new(setting(args));
    let target = match args.nats {
        true => Target::by_nats(&system, to, args.payload_bytes).await?,
        false => Target::new(&system, to, args.payload_bytes),
    };
    load::warm_up(&target, &sink).await?;
    for run in 1..=args.runs {
        eprintln!("run {run} of {}: plain POSTs to the sink", args.runs);
        let baseline = load::baseline(&sink, args.payload_bytes, 64, Duration::from_secs(args.seconds.min(8))).await?;
        let mut greatest = 0.0f64;
        for in_flight in &args.in_flight {
            eprintln!("run {run} of {}: closed loop, {in_flight} in flight", args.runs);
            let before = cpu::Snapshot::take(system.pids());
            let outcome = load::closed(&target, &sink, *in_flight, Duration::from_secs(args.seconds)).await?;
            let cpu = cpu::Snapshot::take(system.pids()).since(&before);
            figures.throughput(*in_flight, baseline, &outcome, &cpu);
            greatest = greatest.max(outcome.accepted as f64 / outcome.deliver_seconds.max(0.001));
        }
        let rates = args.share.iter().map(|share| (format!("{:.0} % of the maximum", share * 100.0), greatest * share));
        let fixed = (format!("{} per second", args.rate), args.rate as f64);
        for (name, rate) in std::iter::once(fixed).chain(rates) {
            eprintln!("run {run} of {}: open loop, {name}", args.runs);
            let time = Duration::from_secs(args.seconds);
            let outcome = load::open(&target, &sink, (rate as u64).max(1), time, load::QUIET).await?;
            figures.latency(&name, &outcome);
        }
    }
    Ok(figures)
}

fn setting(args: &Args) -> String {
    let mut words = vec![format!("payload {} bytes", args.payload_bytes)];
    words.push(match args.endpoints {
        Some(n) => format!("{n} endpoints in turn"),
        None => format!("fan-out {}", args.fan_out),
    });
    words.push(if args.nats { "published to NATS" } else { "posted to REST" }.to_owned());
    words.push(match args.separate {
        Some(n) => format!("separate processes, {n} deliverers"),
        None => "all in one process".to_owned(),
    });
    words.join(", ")
}
