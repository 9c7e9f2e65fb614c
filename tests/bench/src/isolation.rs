//! What healthy endpoints feel of broken ones: their latency at a steady rate and their throughput, before and beside
//! a slow endpoint's backlog, endpoints that hang, endpoints that refuse connections, and a tenant that sends ten times as much.
//!
//! Each case runs on a system of its own, so that none feels the one before.

use std::path::Path;
use std::time::Duration;

use crate::load::{self, Addressee, Outcome, Target, To};
use crate::report::{Figures, percentile};
use crate::sink::Sink;
use crate::system::{self, System};

/// The tenant that sends many times as much.
const FLOODER: &str = "flooder";

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Events queued for an endpoint that takes two seconds; repeatable
    #[arg(long, default_values_t = [5000u64, 100_000])]
    backlog: Vec<u64>,
    /// Healthy endpoints
    #[arg(long, default_value_t = 90)]
    healthy: usize,
    /// Endpoints that hang, or refuse, beside them
    #[arg(long, default_value_t = 10)]
    broken: usize,
    /// How many times as much a second tenant sends, while latency is measured
    #[arg(long, default_value_t = 10)]
    tenant_times: u64,
    /// Events a second while latency is measured
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// Requests in flight while throughput is measured
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Length of each measurement, in seconds
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Repetitions; the table shows the median
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

/// What stands beside the healthy endpoints.
#[derive(Clone, Copy, Debug)]
enum Beside {
    Nothing,
    /// A slow endpoint with so many events queued before the measurement.
    Backlog(u64),
    /// Endpoints that take longer than the time-out, and get their share of the events.
    Hanging,
    /// Endpoints whose port is closed, and get their share of the events.
    Refusing,
    /// Another tenant, which sends so many times as much.
    Tenant(u64),
}

impl Beside {
    fn name(self) -> String {
        match self {
            Self::Nothing => "beside nothing".to_owned(),
            Self::Backlog(n) => format!("beside {n} events for an endpoint that takes 2 s"),
            Self::Hanging => "beside hanging endpoints".to_owned(),
            Self::Refusing => "beside refusing endpoints".to_owned(),
            Self::Tenant(times) => format!("beside a tenant that sends {times} times as much"),
        }
    }
}

/// Measures it.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let mut figures = Figures::new(format!(
        "{} healthy endpoints, {} broken; latency at {}/s, throughput with {} in flight; of the healthy ones only, before and beside",
        args.healthy, args.broken, args.rate, args.in_flight
    ));
    let mut cases = vec![Beside::Nothing];
    cases.extend(args.backlog.iter().map(|n| Beside::Backlog(*n)));
    cases.extend([Beside::Hanging, Beside::Refusing, Beside::Tenant(args.tenant_times)]);
    for run in 1..=args.runs {
        for beside in &cases {
            eprintln!("run {run} of {}: {}", args.runs, beside.name());
            case(args, *beside, binary, &mut figures).await?;
        }
    }
    Ok(figures)
}

/// Measures the healthy endpoints on one system, first alone and then beside the trouble: the machine's speed changes too much
/// to compare with another system's.
async fn case(args: &Args, beside: Beside, binary: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let system = System::start(binary)?;
    let sink = Sink::start().await?;
    let plain = serde_json::json!({});
    let counted = |counted: bool| move |id: String| Addressee { id, counted };
    let healthy = system.register(args.healthy, |i| format!("{}/ok/{i}", sink.url()), &plain).await?;
    let target = Target::new(&system, To::each(healthy.clone()), 500);
    load::warm_up(&target, &sink).await?;
    // Beside a flood it would only tell who has more requests in flight.
    let with_throughput = !matches!(beside, Beside::Tenant(_));
    // In this order both latencies are those of a system that was busy before: for half a minute it writes back what it wrote.
    let fast_before = if with_throughput { Some(throughput(args, &target, &sink).await?) } else { None };
    let before = latency(args, &target, &sink, None).await?;
    let mut addressees: Vec<_> = healthy.into_iter().map(counted(true)).collect();
    let mut flooding = None;
    match beside {
        Beside::Nothing => {}
        Beside::Backlog(events) => {
            let slow = system.register(1, |_| format!("{}/slow/2000", sink.url()), &plain).await?;
            let to = To::Each(slow.into_iter().map(counted(false)).collect());
            let accepted = load::queue(&Target::new(&system, to, 500), &sink, 64, events).await;
            anyhow::ensure!(accepted == events, "{accepted} of {events} events of the backlog were accepted");
        }
        Beside::Hanging => {
            let url = format!("{}/slow/60000", sink.url());
            let ids = system.register(args.broken, |i| format!("{url}/{i}"), &plain).await?;
            addressees.extend(ids.into_iter().map(counted(false)));
        }
        Beside::Refusing => {
            let port = system::free_port()?;
            let ids = system.register(args.broken, |i| format!("http://127.0.0.1:{port}/{i}"), &plain).await?;
            addressees.extend(ids.into_iter().map(counted(false)));
        }
        Beside::Tenant(times) => {
            system.create_tenant(FLOODER).await?;
            let url = |i| format!("{}/slow/0/{i}", sink.url());
            let ids = system.register_in(Some(FLOODER), args.broken, url, &plain).await?;
            let target = Target::new_in(&system, Some(FLOODER), To::each(ids), 500);
            flooding = Some((target, times * args.rate));
        }
    }
    let share = args.healthy as f64 / addressees.len() as f64;
    let target = Target::new(&system, To::Each(addressees), 500);
    let now = latency(args, &target, &sink, flooding.as_ref()).await?;

    let mut lost = before.lost + now.lost;
    let mut add = |name: &str, value: f64| figures.add(format!("{}: {name}", beside.name()), value);
    add("e2e p50 ms, before", percentile(&before.e2e_us, 0.5));
    add("e2e p50 ms", percentile(&now.e2e_us, 0.5));
    add("e2e p99 ms, before", percentile(&before.e2e_us, 0.99));
    add("e2e p99 ms", percentile(&now.e2e_us, 0.99));
    if let Some(before) = fast_before {
        let now = throughput(args, &target, &sink).await?;
        let (rate, rate_before) = (now.delivered_per_second(), before.delivered_per_second());
        add("delivered per second, before", rate_before);
        add("delivered per second", rate);
        add("delivered of their share of what was sent, % of before", rate / (rate_before * share) * 100.0);
        lost += before.lost + now.lost;
    }
    add("lost", lost as f64);
    Ok(())
}

async fn throughput(args: &Args, target: &Target, sink: &Sink) -> anyhow::Result<Outcome> {
    load::closed(target, sink, args.in_flight, Duration::from_secs(args.seconds)).await
}

/// At the steady rate; `flood`: what another tenant sends meanwhile, and how many a second.
async fn latency(args: &Args, target: &Target, sink: &Sink, flood: Option<&(Target, u64)>) -> anyhow::Result<Outcome> {
    let measured = load::open(target, sink, args.rate, Duration::from_secs(args.seconds), load::QUIET);
    match flood {
        Some((flood, rate)) => tokio::select! {
            outcome = measured => outcome,
            () = load::pour(flood, sink, *rate) => anyhow::bail!("the flood ended"),
        },
        None => measured.await,
    }
}
