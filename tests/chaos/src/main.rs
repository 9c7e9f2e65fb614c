//! `make chaos`: the ledger test. Producers write down every event that was accepted, receivers write down every request,
//! a nemesis hurts the system meanwhile, and at the end the books are compared. See docs/chaos.md.
//!
//! Reading order: `plan` (what events do), `system` (what runs), `faults` and `nemesis`, `producers` and `ledger`,
//! `receivers`, `quiesce`, `check` (the judge), `report`.

mod check;
mod dice;
mod faults;
mod ledger;
mod nemesis;
mod plan;
mod producers;
mod quiesce;
mod receivers;
mod report;
mod system;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::watch;

use crate::check::{Evidence, Statuses};
use crate::faults::Fault;
use crate::ledger::Ledger;
use crate::nemesis::Nemesis;
use crate::plan::Hook;
use crate::producers::Producers;
use crate::receivers::Receivers;
use crate::system::System;

/// Questions to the interface at once, when all is over.
const QUESTIONS: usize = 16;

/// Hurts a whole system and proves that no accepted event is lost.
///
/// Examples:
///   chaos --seconds 600 --seed 1 --faults all       everything, mixed
///   chaos --seconds 60 --faults restart             orderly restarts: no loss, no duplicate
///   chaos --seconds 60 --faults kill-deliverer      one kind
///   chaos --seconds 60 --faults postgres,nats-hole  all of PostgreSQL's, and black holes before NATS
#[derive(Parser, Debug)]
#[command(verbatim_doc_comment)]
struct Args {
    /// How long faults and events go on, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Draws the faults: the same seed, the same faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Faults by name, or by a word of their names, separated by commas; `all` or `none`; an unknown one lists them
    #[arg(long, default_value = "all")]
    faults: String,
    /// Events a second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// How long everything may take to come to rest after the last fault, in seconds
    #[arg(long, default_value_t = 120)]
    quiesce_seconds: u64,
    /// Seconds at the start without faults
    #[arg(long, default_value_t = 0)]
    calm_seconds: u64,
    /// Longest time from acceptance to a healthy endpoint that is good, in seconds; 0 = any
    #[arg(long, default_value_t = 0)]
    slowest_seconds: u64,
    /// Has the services break this safety on purpose (debug builds only), to see that it is noticed
    #[arg(long = "break")]
    break_safety: Option<String>,
    /// Directory of data, logs and books; it must not exist [default: one of its own below the temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keep the directory also when all was well
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let again = format!("--seconds {} --seed {} --faults {}", args.seconds, args.seed, args.faults);
    println!("chaos {again}");
    let dir =
        args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("relay-chaos-{}", std::process::id())));
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(run(&args, &dir)));
    match done {
        Ok(true) => {
            if !args.keep {
                let _ = std::fs::remove_dir_all(&dir);
            }
            println!("good: {again}");
            return ExitCode::SUCCESS;
        }
        Ok(false) => println!("BAD: {again}"),
        Err(error) => println!("BAD: {again}: {error:#}"),
    }
    println!("data, logs and books: {}", dir.display());
    ExitCode::FAILURE
}

async fn run(args: &Args, dir: &std::path::Path) -> anyhow::Result<bool> {
    let faults = Fault::parse_list(&args.faults).map_err(anyhow::Error::msg)?;
    std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
    let start = Instant::now();
    let receivers = Receivers::start(std::fs::File::create_new(dir.join("receipts.log"))?, start).await?;
    let ledger = Ledger::create(&dir.join("accepted.log"))?;
    let system = Arc::new(System::start(dir, args.break_safety.as_deref()).await?);
    let endpoints = register(&system, &receivers).await?;
    println!("{:>6.1} ready", start.elapsed().as_secs_f64());

    let producers = Producers {
        ingests: system.ingests.clone(),
        nats: async_nats::jetstream::new(async_nats::connect(system.producer_nats()).await?),
        ledger: ledger.clone(),
        start,
        seed: args.seed,
        next: Arc::new(AtomicU64::new(0)),
        refused: Arc::default(),
    };
    let (next, refused) = (Arc::clone(&producers.next), Arc::clone(&producers.refused));
    let supervisor = Arc::clone(&system);
    let supervisor = tokio::spawn(async move { supervisor.supervise().await });
    let (stop, stopped) = watch::channel(false);
    let producing = tokio::spawn(producers.run(args.rate, stopped));
    let nemesis = Nemesis {
        system: Arc::clone(&system),
        receivers: receivers.clone(),
        start,
        until: start.elapsed() + Duration::from_secs(args.seconds),
        done: Mutex::default(),
    };
    tokio::time::sleep(Duration::from_secs(args.calm_seconds)).await;
    nemesis.run(&faults, args.seed).await?;
    tokio::time::sleep(nemesis.until.saturating_sub(start.elapsed())).await;
    stop.send_replace(true);
    println!("{:>6.1} the last fault is over", start.elapsed().as_secs_f64());
    let quiet = Instant::now();
    producing.await??;
    let accepted = ledger.read().await?;
    let limit = Duration::from_secs(args.quiesce_seconds).saturating_sub(quiet.elapsed());
    let mut quiesced = quiesce::wait(&system, &receivers, &accepted, limit).await?;
    quiesced.took = quiet.elapsed();

    let receipts = receivers.receipts();
    let statuses = ask(&system, &endpoints, &accepted, &receipts).await?;
    supervisor.abort();
    let faults = nemesis.done.into_inner().expect("nothing panics while it holds this lock");
    let counts = [
        ("accepted", accepted.len() as u64),
        ("refused or unanswered", refused.load(Ordering::Relaxed)),
        ("requests at the endpoints", receipts.len() as u64),
        ("processes that ended by themselves", system.ended_by_themselves.load(Ordering::Relaxed)),
    ];
    let sent = next.load(Ordering::Relaxed);
    let evidence = Evidence { accepted, sent, receipts, statuses, faults };
    let verdict = check::judge(&evidence);
    report::print(&verdict, &quiesced, &counts);
    let readable = system.readable_secrets(&receivers.secrets()).await?;
    println!("  {:<34} {readable:>12}", "secrets readable in the database");
    let unsound = system.fsck().await?;
    println!("  {:<34} {:>12}", "fsck", if unsound.is_some() { "violations" } else { "sound" });
    if let Some(said) = &unsound {
        println!("{said}");
    }
    let slowest = verdict.healthy.last().copied().unwrap_or_default();
    let too_slow = args.slowest_seconds > 0 && slowest > Duration::from_secs(args.slowest_seconds);
    if too_slow {
        println!("too slow: {slowest:?} from acceptance to a healthy endpoint");
    }
    Ok(verdict.is_good() && quiesced.open.is_none() && readable == 0 && unsound.is_none() && !too_slow)
}

/// Makes the endpoints; returns their ids.
async fn register(system: &System, receivers: &Receivers) -> anyhow::Result<HashMap<String, Hook>> {
    let mut endpoints = HashMap::new();
    for hook in Hook::ALL {
        // Many short retries: only what is refused for good ends as a dead letter. Circuits open, and close soon.
        let more = json!({
            "name": hook.name(), "event_types_filter": [hook.takes()], "timeout_seconds": 5,
            "retry_schedule_seconds": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5],
            "circuit_failure_threshold": 10, "circuit_window_seconds": 10, "circuit_recovery_seconds": 1,
            "custom_headers": {receivers::HEADER: {"value": hook.header(), "secret": true}},
        });
        let answer = system.ingests[0].endpoint(&receivers.url(hook), more).await?;
        receivers.secret(hook, answer.text("signing_secret"));
        endpoints.insert(answer.text("id"), hook);
    }
    Ok(endpoints)
}

/// What the interface says of each accepted event whose id is known.
async fn ask(
    system: &System,
    endpoints: &HashMap<String, Hook>,
    accepted: &[ledger::Accepted],
    receipts: &[receivers::Receipt],
) -> anyhow::Result<HashMap<String, Statuses>> {
    let seen: HashMap<u64, &str> = receipts.iter().filter_map(|r| Some((r.number?, r.id.as_str()))).collect();
    let ids = accepted.iter().filter_map(|e| e.id.as_deref().or(seen.get(&e.number).copied()));
    let asked = futures_util::stream::iter(ids.enumerate()).map(|(i, id)| async move {
        let answer = system.ingests[i % system.ingests.len()].get(&format!("/events/{id}")).await?;
        if answer.status != 200 {
            println!("GET /events/{id}: {} {}", answer.status, answer.body);
        }
        let mut statuses = Statuses::new();
        for delivery in answer.body["deliveries"].as_array().into_iter().flatten() {
            let endpoint = delivery["endpoint_id"].as_str().unwrap_or_default();
            let hook = endpoints.get(endpoint).with_context(|| format!("event {id} has endpoint {endpoint}"))?;
            statuses.insert(*hook, delivery["status"].as_str().unwrap_or_default().to_owned());
        }
        anyhow::Ok((id.to_owned(), statuses))
    });
    let answers: Vec<_> = asked.buffer_unordered(QUESTIONS).collect().await;
    answers.into_iter().collect()
}
