//! What becomes of a system that is offered several times what it can take: memory of its processes, what it refuses and
//! how, how long the accepted requests took, and whether each of them is delivered in the end.
//!
//! The generator is an open loop over many connections, without an HTTP library, since it shares the machine: what it
//! could not offer in time, for want of a free connection or of the processor, is counted and left out.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cpu;
use crate::load::{self, Target, To};
use crate::report::{self, Figures, percentile};
use crate::sink::Sink;
use crate::system::{Layout, System};
use crate::wire::{self, Answer, Connection};

/// How late a request may be sent and still be one of those that were to be offered.
const LATE_MAX: Duration = Duration::from_millis(100);
/// Nothing more comes when nothing has come for so long.
const QUIET: Duration = Duration::from_secs(20);

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Length of the flood, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many times its capacity the system is offered; the capacity is measured first, by a closed loop
    #[arg(long, default_value_t = 5.0)]
    times: f64,
    /// Requests a second to offer, instead of a multiple of the capacity
    #[arg(long, conflicts_with = "times")]
    rate: Option<u64>,
    /// Connections that the requests come on
    #[arg(long, default_value_t = 512)]
    connections: usize,
    /// Bytes of each payload
    #[arg(long, default_value_t = 500)]
    payload_bytes: usize,
    /// Endpoints that the events go to in turn
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Deliverers, each a process of its own as all services are
    #[arg(long, default_value_t = 2)]
    deliverers: usize,
}

/// What one connection saw, or all.
#[derive(Default)]
struct Seen {
    /// Sequence numbers that were answered 202.
    accepted: Vec<u64>,
    /// From the first byte sent to the answer, of those, in microseconds.
    accepted_us: Vec<u64>,
    /// The same of the refused ones.
    refused_us: Vec<u64>,
    /// Other answers by status, and those among them that say when to come again.
    refused: BTreeMap<u16, (u64, u64)>,
    /// Requests without an answer.
    failed: u64,
    /// Requests that were not sent in time.
    left_out: u64,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.accepted_us.extend(other.accepted_us);
        self.refused_us.extend(other.refused_us);
        for (status, (n, with_wait)) in other.refused {
            let sum = self.refused.entry(status).or_default();
            *sum = (sum.0 + n, sum.1 + with_wait);
        }
        self.failed += other.failed;
        self.left_out += other.left_out;
    }
}

/// Offers `rate` requests a second for `time`.
async fn flood(args: &Args, target: &Target, sink: &Sink, address: SocketAddr, rate: f64, time: Duration) -> Seen {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let work = (0..args.connections).map(|_| async {
        let mut seen = Seen::default();
        let mut connection = Connection::new(address);
        loop {
            let planned = Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 / rate);
            if planned >= time {
                return seen;
            }
            let now = started.elapsed();
            if now > planned + LATE_MAX {
                seen.left_out += 1;
                continue;
            }
            tokio::time::sleep_until((started + planned).into()).await;
            let (seq, body) = target.next_body(sink.now_us());
            let request = wire::post_event(None, &body);
            let begun = Instant::now();
            let answer = connection.ask(&request).await;
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            match answer {
                Ok(Answer { status: 202, .. }) => {
                    seen.accepted.push(seq);
                    seen.accepted_us.push(took);
                }
                Ok(Answer { status, has_wait }) => {
                    let sum = seen.refused.entry(status).or_default();
                    *sum = (sum.0 + 1, sum.1 + u64::from(has_wait));
                    seen.refused_us.push(took);
                }
                Err(_) => seen.failed += 1,
            }
        }
    });
    let mut all = Seen::default();
    for seen in futures_util::future::join_all(work).await {
        all.add(seen);
    }
    all.accepted_us.sort_unstable();
    all.refused_us.sort_unstable();
    all
}

/// Measures it.
///
/// # Errors
/// Something that was accepted is lost; the figures are printed before.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let system = System::start_as(binary, Layout::Separate(args.deliverers))?;
    let sink = Sink::start().await?;
    let ids = system.register(args.endpoints, |i| format!("{}/ok/{i}", sink.url()), &serde_json::json!({})).await?;
    let target = Target::new(&system, To::each(ids), args.payload_bytes);
    load::warm_up(&target, &sink).await?;
    eprintln!("measuring the capacity");
    let closed = load::closed(&target, &sink, 64, Duration::from_secs(8)).await?;
    let capacity = closed.delivered_per_second();
    let rate = args.rate.map_or(capacity * args.times, |rate| rate as f64).max(1.0);

    let mut figures = Figures::new(format!(
        "flood: {rate:.0} requests a second for {} s on {} connections, payload {} bytes, {} deliverers",
        args.seconds, args.connections, args.payload_bytes, args.deliverers
    ));
    eprintln!("offering {rate:.0} a second for {} s", args.seconds);
    sink.reset();
    let before = cpu::Snapshot::take(system.pids());
    let time = Duration::from_secs(args.seconds);
    let started = Instant::now();
    let seen = flood(args, &target, &sink, system.interface(), rate, time).await;
    let took = started.elapsed().as_secs_f64();
    let cpu = cpu::Snapshot::take(system.pids()).since(&before);
    eprintln!("waiting for what was accepted");
    // Nobody knows how much comes: a request without an answer may have been accepted.
    let arrivals = sink.finish(u64::MAX, QUIET).await;

    let arrived: HashSet<u64> = arrivals.seen.keys().map(|(seq, _)| *seq).collect();
    let lost = seen.accepted.iter().filter(|seq| !arrived.contains(*seq)).count();
    let accepted = seen.accepted.len() as f64;
    let refused: u64 = seen.refused.values().map(|(n, _)| n).sum();
    figures.add("capacity: delivered per second, closed loop of 64".to_owned(), capacity);
    figures.add("offered per second".to_owned(), (accepted + refused as f64 + seen.failed as f64) / took);
    figures.add("could not be offered in time, per second".to_owned(), seen.left_out as f64 / took);
    figures.add("accepted per second".to_owned(), accepted / took);
    figures.add("accepted".to_owned(), accepted);
    figures.add("lost".to_owned(), lost as f64);
    figures.add("duplicates".to_owned(), arrivals.seen.values().map(|n| f64::from(*n) - 1.0).sum());
    figures.add("delivered though not answered 202".to_owned(), (arrived.len() + lost) as f64 - accepted);
    figures.add("without an answer".to_owned(), seen.failed as f64);
    for (status, (n, with_wait)) in &seen.refused {
        figures.add(format!("refused with {status}"), *n as f64);
        figures.add(format!("refused with {status}, with Retry-After"), *with_wait as f64);
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("greatest", 1.0)] {
        figures.add(format!("accepted: {name} ms"), percentile(&seen.accepted_us, share));
        figures.add(format!("refused: {name} ms"), percentile(&seen.refused_us, share));
    }
    let last = arrivals.last.map_or(f64::NAN, |at| at.duration_since(started).as_secs_f64());
    figures.add("from the flood's end to the last delivery, s".to_owned(), (last - took).max(0.0));
    for (role, us) in &cpu.cpu_us {
        figures.add(format!("processors busy, {role}"), *us as f64 / 1e6 / took);
    }
    for (name, bytes) in cpu::peaks(&system.pids()) {
        figures.add(format!("memory MB (RSS, greatest), {name}"), bytes as f64 / 1e6);
    }
    if lost > 0 {
        report::print(&figures);
        anyhow::bail!("{lost} events that were accepted are lost");
    }
    Ok(figures)
}
