//! `webhook-relay fsck`: checks on live servers that nothing is lost, and repairs what can be repaired. Reads only, unless
//! told to repair. The checks are in `checks`, their judgements in `relay_core::audit`.

mod checks;
mod report;

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use relay_bus::Bus;
use relay_core::ids::day_floor;
use relay_runtime::clock::Clock;
use relay_runtime::flags::NatsFlags;
use relay_store::Store;
use uuid::Uuid;

use self::report::{Check, Report};
use super::access::{AccessFlags, exit_code};

/// Exit codes of this command, besides 0.
const VIOLATIONS: u8 = 1;
const NOT_CHECKED: u8 = 2;

/// Checks that nothing is lost in what the running servers hold.
///
/// Reads only; services may go on meanwhile. Each check says what it looked at, what violates and how to repair it.
/// With --repair it repairs what the stored rows themselves tell how to: nothing that is delivered is sent again.
/// Exit code: 0 all is sound (or repaired), 1 something violates, 2 something could not be checked.
///
/// Examples:
///   webhook-relay fsck                                   the servers of the running `webhook-relay up`
///   webhook-relay fsck --since 7d --json
///   webhook-relay fsck --repair
///   webhook-relay fsck --database-url postgres://… --nats-url nats://relay:…@nats:4222
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    access: AccessFlags,
    #[command(flatten)]
    nats: NatsFlags,
    /// How far back events, letters and attempts are looked at: 90m, 24h, 7d. Events by whole UTC days
    #[arg(long, value_parser = super::keys::span, default_value = "24h", value_name = "TIME")]
    since: chrono::TimeDelta,
    /// Repair what can be repaired safely
    #[arg(long)]
    repair: bool,
    /// Largest payload of an event published straight to NATS, in bytes, as the dispatchers have it
    #[arg(long, env = "RELAY_PAYLOAD_BYTES_MAX", default_value_t = relay_core::event::PAYLOAD_BYTES_MAX)]
    payload_bytes_max: usize,
}

/// What the checks work with.
struct Links<'a> {
    store: &'a Store,
    bus: &'a Bus,
    repair: bool,
    payload_bytes_max: usize,
    /// Letters and attempts before this are not looked at.
    since: DateTime<Utc>,
    /// The same as an event id: the start of that day, which keyed events have in their ids.
    floor: Uuid,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let outcome = check(args).and_then(|report| args.access.print(&report).map(|()| report.exit_code()));
    exit_code("fsck", outcome, NOT_CHECKED)
}

fn check(args: &Args) -> anyhow::Result<Report> {
    let nats = args.access.nats_url(&args.nats)?;
    args.access.with_store(async |store| {
        let bus = super::access::bus(&nats, "webhook-relay fsck").await?;
        let since = Clock::system().now() - args.since;
        let floor = day_floor(since);
        let (repair, payload_bytes_max) = (args.repair, args.payload_bytes_max);
        let links = Links { store, bus: &bus, repair, payload_bytes_max, since, floor };
        Ok(Report::new(all(&links).await))
    })
}

/// Every check; one that can't be made doesn't keep the others from being made. Statistics come after what they count.
async fn all(links: &Links<'_>) -> Vec<Check> {
    let mut checks = vec![checks::accepted(links).await];
    let (deliveries, attempts) = checks::deliveries(links).await;
    checks.push(deliveries);
    checks.push(checks::open(links).await);
    checks.push(checks::letters(links).await);
    checks.push(checks::claims(links).await);
    checks.push(checks::jobs(links).await);
    checks.push(checks::figures(links).await);
    checks.push(attempts);
    checks
}
