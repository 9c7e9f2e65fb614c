//! How punctual retries are: every first attempt is refused, the second is due at a known time, and the sink measures
//! how long after that time it comes.
//!
//! The time counts from the sink's answer to the first attempt, so it includes what recording that answer took.

use std::path::Path;
use std::time::Duration;

use crate::load::{self, To};
use crate::report::{Figures, percentile};
use crate::sink::Sink;
use crate::system::System;

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Endpoints that the events go to in turn
    #[arg(long, default_value_t = 1000)]
    endpoints: usize,
    /// Events, each of which falls due once more
    #[arg(long, default_value_t = 5000)]
    count: u64,
    /// Seconds over which the events, and so the retries, are spread
    #[arg(long, default_value_t = 30)]
    over: u64,
    /// Seconds from the first attempt to the second; by default the retries begin when the last event is in
    #[arg(long)]
    delay: Option<u64>,
}

/// Measures it.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let system = System::start(binary)?;
    let sink = Sink::start().await?;
    let delay = args.delay.unwrap_or(args.over + 3);
    let rate = (args.count / args.over.max(1)).max(1);
    let mut figures = Figures::new(format!(
        "{} retries over {} s, {delay} s after a first attempt, {} endpoints",
        rate * args.over,
        args.over,
        args.endpoints
    ));
    eprintln!("registering {} endpoints", args.endpoints);
    let settings = serde_json::json!({"retry_schedule_seconds": [delay]});
    let ids = system.register(args.endpoints, |_| format!("{}/once/{}", sink.url(), delay * 1000), &settings).await?;
    let to = To::each(ids);
    let target = load::Target::new(&system, to, 500);
    eprintln!("sending {rate} events a second for {} s, then waiting for their retries", args.over);
    let quiet = Duration::from_secs(delay + 10);
    let outcome = load::open(&target, &sink, rate, Duration::from_secs(args.over), quiet).await?;
    figures.add("refused".to_owned(), outcome.refused as f64);
    figures.add("lost".to_owned(), outcome.lost as f64);
    figures.add("duplicates".to_owned(), outcome.duplicates as f64);
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("greatest", 1.0)] {
        figures.add(format!("lateness {name} ms"), percentile(&outcome.lateness_us, share));
    }
    Ok(figures)
}
