//! `webhook-relay recover`: refills a PostgreSQL that was restored from an older dump with the events that NATS still holds,
//! and says what it can't fill. What is compared and restored is in `history`.

use std::collections::HashSet;
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chrono::{DateTime, TimeDelta, Utc};
use relay_bus::Retained;
use relay_core::ids::EventId;
use relay_core::shard::Shard;
use relay_runtime::clock::Clock;
use relay_runtime::flags::NatsFlags;
use serde::Serialize;

use super::access::{AccessFlags, exit_code, time};
use super::history::History;

/// Exit codes of this command, besides 0.
const GAP: u8 = 1;
const NOT_DONE: u8 = 2;
/// Between two lines about progress.
const PROGRESS: Duration = Duration::from_secs(2);

/// Refills a PostgreSQL that was restored from an older dump.
///
/// NATS keeps accepted events for a while after they are stored (dispatchers' --history-hours and --history-percent:
/// 1 hour and a quarter of the accept log by default). This walks what it holds and publishes again, under the same
/// ids, what PostgreSQL doesn't have; dispatchers store and deliver it. It can be repeated, and services may run
/// meanwhile; best is before they are started again. Run `webhook-relay migrate` before it.
///
/// --since is a time before the dump was begun, by as much as dispatchers may have lagged behind: an earlier one only
/// takes longer.
///
/// What becomes of deliveries: events that were delivered since the dump are delivered again, under the same event id, to
/// the endpoints that the restored database has. Replays, discards, and everything else that was done over the
/// interface since the dump (endpoints, keys, tenants) are lost.
///
/// Exit code: 0 PostgreSQL has or gets all since then, 1 NATS doesn't hold all of it any more (it is printed from when to
/// when), 2 it could not be done or not to its end: run it again.
///
/// Examples:
///   webhook-relay recover --since 2026-01-31T03:00:00Z --dry-run     the servers of the running `webhook-relay up`
///   webhook-relay recover --since 90m
///   webhook-relay recover --since 24h --json --database-url postgres://… --nats-url nats://relay:…@nats:4222
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    access: AccessFlags,
    #[command(flatten)]
    nats: NatsFlags,
    /// From when on: a time (2026-01-31T03:00:00Z) or how long ago (90m, 24h, 7d)
    #[arg(long, value_parser = since, value_name = "TIME")]
    since: Since,
    /// Change nothing, say what would be recovered
    #[arg(long)]
    dry_run: bool,
    /// Largest payload of an event published straight to NATS, in bytes, as the dispatchers have it
    #[arg(long, env = "RELAY_PAYLOAD_BYTES_MAX", default_value_t = relay_core::event::PAYLOAD_BYTES_MAX)]
    payload_bytes_max: usize,
}

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Time(DateTime<Utc>),
    Ago(TimeDelta),
}

fn since(text: &str) -> Result<Since, String> {
    let time = DateTime::parse_from_rfc3339(text).map(|at| Since::Time(at.to_utc()));
    time.or_else(|_| super::keys::span(text).map(Since::Ago))
        .map_err(|_| "must be a time like 2026-01-31T03:00:00Z, or a span like 90m, 24h or 7d".to_owned())
}

impl Since {
    fn at(self, now: DateTime<Utc>) -> anyhow::Result<DateTime<Utc>> {
        let at = match self {
            Self::Time(at) => Some(at),
            Self::Ago(span) => now.checked_sub_signed(span),
        };
        match at {
            Some(at) if at <= now => Ok(at),
            _ => bail!("--since is not in the past"),
        }
    }
}

/// A time of which nothing is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Gap {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

/// What was found and done.
#[derive(Debug, Serialize)]
struct Report {
    since: DateTime<Utc>,
    dry_run: bool,
    /// Messages of the accept log that were looked at.
    messages: u64,
    /// The events (and unusable messages) in them.
    events: u64,
    /// Of these: in PostgreSQL.
    present: u64,
    /// Of these: thrown away by retention before. They stay away.
    dropped: u64,
    /// Not in PostgreSQL, but on their way to the dispatchers already.
    waiting: u64,
    /// Published again; with `dry_run` only counted.
    recovered: u64,
    /// Dead letters written again, of messages that can't be events; with `dry_run` only counted.
    recovered_letters: u64,
    /// Messages that no dispatcher has had yet: they are taken up without this command.
    undelivered_messages: u64,
    /// What can't be filled.
    gap: Option<Gap>,
    /// Messages that were removed since the first one that was held, for example while this ran.
    removed_messages: u64,
    /// Messages that a newer program wrote: run that one's `recover`.
    newer_messages: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let outcome = recover(args).and_then(|report| args.access.print(&report).map(|()| report.exit_code()));
    exit_code("recover", outcome, NOT_DONE)
}

fn recover(args: &Args) -> anyhow::Result<Report> {
    let now = Clock::system().now();
    let since = args.since.at(now)?;
    let nats = args.access.nats_url(&args.nats)?;
    args.access.with_store(async |store| {
        let bus = super::access::bus(&nats, "webhook-relay recover").await?;
        let history = History::open(store, &bus, args.payload_bytes_max).await?;
        let held = bus.retained().await.context("reading what NATS holds")?;
        let days = history.thrown_away.days;
        walk(&history, &held, Report::new(since, now, days, &held, args.dry_run)).await
    })
}

async fn walk(history: &History<'_>, held: &[Retained], mut report: Report) -> anyhow::Result<Report> {
    let mut parts = Vec::new();
    for of in held {
        let begin = history.bus.first_since(of.shard, report.since, of.first.max(1), of.delivered).await?;
        parts.push((of.shard, begin, of.delivered));
    }
    let all: u64 = parts.iter().map(|(_, begin, to)| (to + 1).saturating_sub(*begin)).sum();
    let mut progress = Progress { all, done: 0, said: Instant::now() };
    let mut waiting = None;
    for (shard, begin, to) in parts {
        walk_stream(history, held, (shard, begin, to), &mut waiting, &mut progress, &mut report).await?;
    }
    Ok(report)
}

/// How far the walk is, in messages.
struct Progress {
    all: u64,
    done: u64,
    said: Instant,
}

impl Progress {
    fn step(&mut self, messages: u64, recovered: u64) {
        self.done += messages;
        if self.said.elapsed() >= PROGRESS {
            self.said = Instant::now();
            eprintln!("{} of {} messages looked at, {recovered} events recovered", self.done, self.all);
        }
    }
}

/// `waiting`: what lies in any stream behind what dispatchers have had, and what this run has published.
async fn walk_stream(
    history: &History<'_>,
    held: &[Retained],
    (shard, mut next, to): (Shard, u64, u64),
    waiting: &mut Option<HashSet<EventId>>,
    progress: &mut Progress,
    report: &mut Report,
) -> anyhow::Result<()> {
    while next <= to {
        let mut part = history.part(shard, next, to).await?;
        let looked_at = part.next - next;
        next = part.next;
        report.messages += part.messages;
        report.removed_messages += part.absent;
        report.newer_messages += part.newer;
        report.events += part.events;
        report.dropped += part.dropped;
        report.present += part.events - part.dropped - part.lost.len() as u64;
        if !part.lost.is_empty() {
            // Asked for only once something is missing: an earlier run's copies may lie behind what dispatchers have had.
            let known = match &mut *waiting {
                Some(known) => known,
                None => waiting.insert(undelivered(history, held).await?),
            };
            let all = part.lost.len();
            // And each once, however often it was published.
            part.lost.retain(|lost| known.insert(lost.id()));
            report.waiting += (all - part.lost.len()) as u64;
            if !report.dry_run {
                history.restore(&part.lost).await?;
            }
            let letters = part.lost.iter().filter(|lost| lost.is_letter()).count() as u64;
            report.recovered_letters += letters;
            report.recovered += part.lost.len() as u64 - letters;
        }
        progress.step(looked_at, report.recovered);
    }
    Ok(())
}

/// The events that lie behind what dispatchers have had.
async fn undelivered(history: &History<'_>, held: &[Retained]) -> anyhow::Result<HashSet<EventId>> {
    let mut ids = HashSet::new();
    for of in held {
        ids.extend(history.ids(of.shard, of.delivered + 1, of.last).await?);
    }
    Ok(ids)
}

/// What isn't held of the time from `since` to `now`.
fn gap(since: DateTime<Utc>, now: DateTime<Utc>, whole_since: Option<DateTime<Utc>>) -> Option<Gap> {
    let to = whole_since.unwrap_or(now);
    (to > since).then_some(Gap { from: since, to })
}

impl Report {
    /// `dropped_before`: nothing is missed from before that, since retention has thrown it away.
    fn new(
        since: DateTime<Utc>,
        now: DateTime<Utc>,
        dropped_before: Option<DateTime<Utc>>,
        held: &[Retained],
        dry_run: bool,
    ) -> Self {
        // What one stream doesn't hold can't be found in another one.
        let whole_since = held.iter().map(|of| of.whole_since).collect::<Option<Vec<_>>>();
        let whole_since = whole_since.and_then(|all| all.into_iter().max());
        let undelivered = |of: &Retained| of.last.saturating_sub(of.delivered.max(of.first.saturating_sub(1)));
        Self {
            since,
            dry_run,
            messages: 0,
            events: 0,
            present: 0,
            dropped: 0,
            waiting: 0,
            recovered: 0,
            recovered_letters: 0,
            undelivered_messages: held.iter().map(undelivered).sum(),
            gap: gap(since.max(dropped_before.unwrap_or(since)), now, whole_since),
            removed_messages: 0,
            newer_messages: 0,
        }
    }

    fn exit_code(&self) -> ExitCode {
        let whole = self.gap.is_none() && self.removed_messages == 0 && self.newer_messages == 0;
        if whole { ExitCode::SUCCESS } else { ExitCode::from(GAP) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, events, present, waiting, recovered, recovered_letters, .. } = self;
        let done = if self.dry_run { "would be" } else { "were" };
        writeln!(f, "looked at   {events} events in {messages} messages since {}", time(self.since))?;
        writeln!(f, "present     {present} were in PostgreSQL")?;
        writeln!(
            f,
            "recovered   {recovered} events {done} published again, {recovered_letters} dead letters {done} written"
        )?;
        if self.dropped > 0 {
            writeln!(f, "dropped     {} were thrown away by retention, and stay away", self.dropped)?;
        }
        if *waiting > 0 {
            writeln!(f, "waiting     {waiting} are on their way to the dispatchers already")?;
        }
        if self.undelivered_messages > 0 {
            writeln!(f, "backlog     {} messages that dispatchers take up anyway", self.undelivered_messages)?;
        }
        if let Some(Gap { from, to }) = self.gap {
            let (from, to) = (time(from), time(to));
            writeln!(f, "gap         NATS holds nothing of {from} to {to}: events accepted then can't be recovered")?;
        }
        if self.removed_messages > 0 {
            writeln!(f, "gap         {} messages were removed before they could be read", self.removed_messages)?;
        }
        if self.newer_messages > 0 {
            let newer = self.newer_messages;
            writeln!(f, "not read    {newer} messages of a newer webhook-relay: run its `recover` as well")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("it is a time")
    }

    #[test]
    fn times_and_spans_are_read() {
        assert_eq!(since("90m"), Ok(Since::Ago(TimeDelta::minutes(90))));
        assert_eq!(since("2027-01-15T09:00:00+01:00"), Ok(Since::Time(at(0))));
        assert!(since("yesterday").is_err() && since("2027-01-15").is_err());
        assert_eq!(Since::Ago(TimeDelta::seconds(5)).at(at(5)).ok(), Some(at(0)));
        assert!(Since::Time(at(6)).at(at(5)).is_err());
    }

    #[test]
    fn a_gap_decides_the_exit_code() {
        assert_eq!(gap(at(0), at(9), Some(at(0))), None);
        assert_eq!(gap(at(0), at(9), Some(at(3))), Some(Gap { from: at(0), to: at(3) }));
        assert_eq!(gap(at(0), at(9), None), Some(Gap { from: at(0), to: at(9) }));
        let of = |number: usize, since| Retained {
            shard: Shard::all().nth(number).expect("there are as many"),
            first: 5,
            acknowledged: 7,
            delivered: 8,
            last: 9,
            whole_since: since,
        };
        let held = [of(0, Some(at(3)))];
        let code = |report: &Report| format!("{:?}", report.exit_code());
        let mut report = Report::new(at(0), at(9), None, &held, true);
        assert_eq!((report.undelivered_messages, code(&report)), (1, format!("{:?}", ExitCode::from(GAP))));
        let shown = report.to_string();
        assert!(shown.contains("nothing of 2027-01-15 08:00:00Z to 2027-01-15 08:00:03Z"), "{shown}");
        assert!(shown.contains("0 events would be published again") && shown.contains("backlog"), "{shown}");
        let several = [of(0, Some(at(2))), of(1, Some(at(4))), of(2, Some(DateTime::UNIX_EPOCH))];
        let of_several = Report::new(at(0), at(9), None, &several, true);
        assert_eq!((of_several.undelivered_messages, of_several.gap), (3, Some(Gap { from: at(0), to: at(4) })));
        let untold = [of(0, Some(at(0))), of(1, None)];
        assert_eq!(Report::new(at(0), at(9), None, &untold, true).gap, Some(Gap { from: at(0), to: at(9) }));
        // What retention has thrown away isn't missed.
        assert_eq!(Report::new(at(0), at(9), Some(at(2)), &held, true).gap, Some(Gap { from: at(2), to: at(3) }));
        report.gap = Report::new(at(0), at(9), Some(at(3)), &held, true).gap;
        assert_eq!(code(&report), format!("{:?}", ExitCode::SUCCESS));
        report.removed_messages = 1;
        assert_eq!(code(&report), format!("{:?}", ExitCode::from(GAP)));
    }
}
