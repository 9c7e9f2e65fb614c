//! Everything in one go: the other measurements one after the other, so that their figures can be held against each
//! other. `throughput` and `isolation` run several times, `retries` and `growth`, which take long, once.

use std::path::Path;

use clap::Parser;

use crate::report::{self, Figures};
use crate::{growth, isolation, retries, throughput};

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Length of each throughput and latency run, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Repetitions of `throughput` and `isolation`; the tables show medians
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Leave out `growth`, which stores millions of events first
    #[arg(long)]
    without_growth: bool,
}

/// The throughput runs beside the plain one, by the flags that they have besides.
const VARIANTS: [&[&str]; 7] = [
    &["--fan-out", "10"],
    &["--endpoints", "1000"],
    &["--payload-bytes", "65536"],
    &["--nats"],
    &["--separate", "1"],
    &["--separate", "2"],
    &["--separate", "4"],
];

/// A measurement's own flags, with their defaults.
#[derive(Parser, Debug)]
struct Of<A: clap::Args> {
    #[command(flatten)]
    args: A,
}

fn of<A: clap::Args>(flags: &[&str]) -> anyhow::Result<A> {
    Ok(Of::try_parse_from(["bench"].iter().chain(flags))?.args)
}

/// Measures it all; each part is printed when it is there.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Vec<Figures>> {
    let (seconds, runs) = (args.seconds.to_string(), args.runs.to_string());
    let length = ["--seconds", &seconds, "--runs", &runs];
    let mut all = Vec::new();
    let mut there = |figures: Figures| {
        report::print(&figures);
        println!();
        all.push(figures);
    };
    let plain = ["--in-flight", "64", "--in-flight", "256", "--share", "0.5", "--share", "0.8"];
    there(throughput::measure(&of(&[&plain[..], &length].concat())?, binary).await?);
    for variant in VARIANTS {
        let flags = [&["--in-flight", "256"], variant, &length].concat();
        there(throughput::measure(&of(&flags)?, binary).await?);
    }
    there(isolation::measure(&of(&length)?, binary).await?);
    there(retries::measure(&of(&["--endpoints", "1000", "--count", "100000", "--over", "60"])?, binary).await?);
    there(retries::measure(&of(&["--endpoints", "1000", "--count", "5000", "--over", "30"])?, binary).await?);
    if !args.without_growth {
        there(growth::measure(&of(&[])?, binary).await?);
    }
    Ok(all)
}
