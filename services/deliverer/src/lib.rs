//! The deliverer: steps 8 to 11 of an event's way. It takes jobs from JOBS, queues them fairly, signs and sends
//! them, judges the answers, and writes what became of them; only then does it acknowledge the jobs.
//!
//! Any number of deliverers share the durable consumers of the lanes. In the order of a job's way: `intake`,
//! `drive` with `pool` (queues: [`relay_core::lanes`]; messages: `bundles`), `gate`, `attempt` (with `prepared`,
//! `client`, `direct`, `egress`, `connect`, `resolver`, `own`), `judge`, `recorder`.

mod attempt;
mod bundles;
mod cli;
mod client;
mod config;
mod connect;
mod direct;
mod drive;
mod egress;
#[cfg(test)]
mod fixtures;
mod flow;
mod gate;
mod gather;
mod intake;
mod judge;
mod ledger;
mod meters;
mod own;
mod pool;
mod prepared;
mod recorder;
mod resolver;
mod room;
mod stall;
mod work;

use std::sync::Arc;
use std::time::Duration;

pub use cli::{Cli, main_with};
pub use config::Config;
pub use egress::{EgressError, EgressProxy};
use relay_core::address::AddressPolicy;
use relay_core::subject::Lane;
pub use relay_links::Links;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempts;
use crate::drive::{Inbox, Outbox};
use crate::flow::Flow;
use crate::intake::Intake;
use crate::meters::Meters;
use crate::pool::Pool;
use crate::room::Room;
use crate::stall::Disruptions;

/// After the end of all patience results get this long to be recorded.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// Messages of JOBS that wait to be acked at most.
const WORDS_MAX: usize = 16 * 1024;

/// A deliverer that is ready to run.
pub struct Deliverer {
    config: Config,
    links: Links,
    pod: String,
    sender: client::Sender,
}

/// Why a deliverer can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The streams can't be declared.
    #[error("declaring the streams: {0}")]
    Bus(#[from] relay_bus::BusError),
    /// The HTTP client can't be built.
    #[error(transparent)]
    Client(#[from] client::ClientError),
}

impl Deliverer {
    /// Declares the streams where they are missing and builds the HTTP client, which goes through `egress` where there is
    /// such a proxy. `pod` names this process in the attempt log.
    pub async fn start(
        config: Config,
        egress: Option<EgressProxy>,
        links: Links,
        pod: String,
    ) -> Result<Self, StartError> {
        links.bus.declare_missing().await?;
        if let Some(proxy) = &egress {
            tracing::info!(proxy = proxy.shown(), "deliveries leave through a proxy, which resolves their names");
        }
        let sender = client::Sender::new(AddressPolicy::new(config.allow_networks.clone()), egress)?;
        Ok(Self { config, links, pod, sender })
    }

    /// Works until `soft` fires, then hands back what is not sent, waits for what is in flight within its grace,
    /// and records everything. `hard` ends the patience: what is in flight is cut short.
    pub async fn run(self, soft: CancellationToken, hard: CancellationToken) {
        let Self { config, links, pod, sender } = self;
        let room = Arc::new(Room::new(config.jobs_held_max, config.jobs_held_bytes_max));
        let flow = Flow::default();
        let (abort, give_up) = (CancellationToken::new(), CancellationToken::new());
        // Every job is once in each of these channels at most, and there is no more than the room's worth of jobs.
        let held = room.jobs_max();
        let (report_sender, reports) = mpsc::channel(held);
        let (over_sender, over) = mpsc::channel(held);
        let (settled_sender, settled) = mpsc::channel(held);
        let (arrival_sender, arrivals) = mpsc::channel(held);
        let (leased_sender, leased) = mpsc::channel(held);
        let (word_sender, words) = mpsc::channel(WORDS_MAX);
        let questions = TaskTracker::new();
        let attempts = Arc::new(Attempts {
            sender,
            checks: ledger::checks(&links.store, &questions, held, give_up.clone()),
            payloads: ledger::payloads(&links.store, &questions, held, give_up.clone()),
            meters: Meters::new(),
            disruptions: Disruptions::new(links.bus.disruption()),
            stopping: soft.clone(),
            abort: abort.clone(),
            links: links.clone(),
        });
        let limits = recorder::Limits { unrecorded_max: held / 2 };
        let writer = ledger::Writer::new(&links, pod);
        let ended = CancellationToken::new();
        let transitions = tokio::spawn(Arc::clone(&writer).write_transitions(ended.clone()));
        let write = ledger::write(writer);
        let recorder =
            tokio::spawn(recorder::run(reports, flow.clone(), limits, write, settled_sender, give_up.clone()));
        let speaker = tokio::spawn(drive::speak(words, links.bus.clone()));
        let patience = tokio::spawn(patience(config.in_flight_grace(), soft.clone(), hard, abort, give_up));
        let intake = Arc::new(Intake { links, room: Arc::clone(&room), flow, arrivals: arrival_sender });
        let pullers = TaskTracker::new();
        for lane in Lane::ALL {
            pullers.spawn(intake::run(Arc::clone(&intake), lane, soft.clone()));
        }
        drop(intake);

        let pool = Pool::new(config.lane_limits(), room, Instant::now());
        let inbox = Inbox { arrivals, over, settled, leased };
        let outbox = Outbox { reports: report_sender, words: word_sender, over: over_sender, leased: leased_sender };
        drive::run(pool, attempts, inbox, outbox).await;

        // The pool's end closes the channels of the others, which end when they have done what is in them.
        // What the last results did to circuits is written by then.
        ended.cancel();
        for (what, task) in [("recorder", recorder), ("speaker", speaker), ("transitions", transitions)] {
            if let Err(error) = task.await {
                tracing::error!(%error, what, "a task of the deliverer failed");
            }
        }
        patience.abort();
        pullers.close();
        pullers.wait().await;
        questions.close();
        questions.wait().await;
    }
}

/// Ends what lasts too long: requests in flight after their grace, or at the hard stop; and some time after that,
/// the recorder.
async fn patience(
    grace: Duration,
    soft: CancellationToken,
    hard: CancellationToken,
    abort: CancellationToken,
    give_up: CancellationToken,
) {
    soft.cancelled().await;
    hard.run_until_cancelled(tokio::time::sleep(grace)).await;
    abort.cancel();
    hard.cancelled().await;
    tokio::time::sleep(LAST_WRITES).await;
    give_up.cancel();
}
