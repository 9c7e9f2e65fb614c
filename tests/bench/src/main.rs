//! `make bench`: how fast the system is on the machine at hand, end to end and durable.
//!
//! Starts `webhook-relay up` with its own data directory and free ports, a sink, and a load generator, all on this
//! machine. No figure here is a test: they are ratios and numbers for people. `throughput` (the default) is the
//! closed loop beside plain POSTs to the same sink, and the latency at a low rate; `retries` is how punctually due
//! retries start; `isolation` is what healthy endpoints feel of broken ones; `growth` is whether an event costs the same
//! however much there is already; `soak` is whether all stays as it is; `lists` is how long lists take on a large ledger; `flood` is
//! what a system does that is offered several times what it can take; `burst` is how a million retries drain that are due at
//! once; `all` is most of them in one run.

mod all;
mod burst;
mod cpu;
mod flood;
mod growth;
mod isolation;
mod ledger;
mod lists;
mod load;
mod report;
mod retries;
mod sink;
mod soak;
mod system;
mod throughput;
mod wire;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// As in the programs it measures beside: what generator and receiver take is missing to them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures WebhookRelay on this machine.
///
/// Examples:
///   bench all --json figures.json
///   bench --seconds 20 --runs 3
///   bench throughput --in-flight 64 --in-flight 256
///   bench throughput --fan-out 10
///   bench throughput --separate 4 --share 0.5 --share 0.8
///   bench throughput --nats --endpoints 1000 --payload-bytes 65536
///   bench retries --endpoints 1000 --count 5000 --over 30
///   bench isolation --backlog 5000
///   bench growth --events 0 --events 1000000
///   bench soak --minutes 20
///   bench lists --events 1000000
///   bench flood --times 5 --seconds 60
///   bench burst --count 1000000 --endpoints 1000
#[derive(Parser, Debug)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    throughput: throughput::Args,
    /// The release binary to measure
    #[arg(long, global = true, default_value = "target/release/webhook-relay")]
    binary: PathBuf,
    /// Write the figures as JSON to this file as well: a list with one object for each setting
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Closed loop at full speed beside plain POSTs, then latency at a low rate (what runs without a subcommand)
    Throughput(throughput::Args),
    /// Most of them, with medians of three where a run is short: takes an hour
    All(all::Args),
    /// How long after their time due retries arrive
    Retries(retries::Args),
    /// What healthy endpoints feel of slow, hanging and refusing ones
    Isolation(isolation::Args),
    /// Whether an event costs the same however much there is already (needs psql)
    Growth(growth::Args),
    /// Whether memory, tables and latency stay as they are under a steady load (needs psql)
    Soak(soak::Args),
    /// How long lists take on a large ledger (needs psql)
    Lists(lists::Args),
    /// Memory, refusals, latency and losses at several times the capacity
    Flood(flood::Args),
    /// How a backlog that is due at once drains, and what new events feel of it (needs psql)
    Burst(burst::Args),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let binary = args.binary;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let figures = runtime.block_on(async {
        let one = match args.what.unwrap_or(What::Throughput(args.throughput)) {
            // Prints each part as soon as it is there.
            What::All(args) => return all::measure(&args, &binary).await,
            What::Throughput(args) => throughput::measure(&args, &binary).await,
            What::Retries(args) => retries::measure(&args, &binary).await,
            What::Isolation(args) => isolation::measure(&args, &binary).await,
            What::Growth(args) => growth::measure(&args, &binary).await,
            What::Soak(args) => soak::measure(&args, &binary).await,
            What::Lists(args) => lists::measure(&args, &binary).await,
            What::Flood(args) => flood::measure(&args, &binary).await,
            What::Burst(args) => burst::measure(&args, &binary).await,
        }?;
        report::print(&one);
        Ok(vec![one])
    })?;
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
