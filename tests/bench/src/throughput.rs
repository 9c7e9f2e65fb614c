//! The closed loop at full speed, the plain POSTs to compare with, and the latency at a low rate.

use std::path::Path;
use std::time::Duration;

use crate::load::{Addressee, To};
use crate::report::Figures;
use crate::sink::Sink;
use crate::system::System;
use crate::{cpu, load};

/// What to measure.
#[derive(clap::Args, Debug)]
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
    /// Endpoints that each event goes to
    #[arg(long, default_value_t = 1)]
    fan_out: usize,
    /// Repetitions; the table shows the median
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

/// Measures it.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let system = System::start(binary)?;
    let sink = Sink::start().await?;
    let endpoints = system.register(args.fan_out, |i| format!("{}/ok/{i}", sink.url()), &serde_json::json!({})).await?;
    let to = match endpoints.as_slice() {
        [only] => To::Each(vec![Addressee { id: only.clone(), counted: true }]),
        all => To::All(all.len() as u64),
    };
    let target = load::Target::new(&system, to, args.payload_bytes)?;
    let mut figures = Figures::new(format!("payload {} bytes, fan-out {}", args.payload_bytes, args.fan_out));
    eprintln!("warming up");
    load::closed(&target, &sink, 16, Duration::from_secs(3)).await?;
    for run in 1..=args.runs {
        eprintln!("run {run} of {}: plain POSTs to the sink", args.runs);
        let baseline = load::baseline(&sink, args.payload_bytes, 64, Duration::from_secs(args.seconds.min(8))).await?;
        for in_flight in &args.in_flight {
            eprintln!("run {run} of {}: closed loop, {in_flight} in flight", args.runs);
            let before = cpu::Snapshot::take(system.pid());
            let outcome = load::closed(&target, &sink, *in_flight, Duration::from_secs(args.seconds)).await?;
            let cpu = cpu::Snapshot::take(system.pid()).since(&before);
            figures.throughput(*in_flight, baseline, &outcome, &cpu);
        }
        eprintln!("run {run} of {}: open loop, {} a second", args.runs, args.rate);
        let outcome = load::open(&target, &sink, args.rate, Duration::from_secs(args.seconds), load::QUIET).await?;
        figures.latency(args.rate, &outcome);
    }
    Ok(figures)
}
