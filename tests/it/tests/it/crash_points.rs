//! The table of crash points in docs/chaos.md: processes that stop exactly at one point of their work (see
//! `relay_runtime::failpoint`; builds with debug assertions only), start again, and books that are compared when all is
//! quiet: nothing is lost, and no more comes twice than the row says.
//!
//! Rows whose harm heals in the same way share a system. By part of the system: `accepting`, `dispatching`, `delivering`,
//! `outages`, `replaying`; by what heals them: `leases`; `mutations` breaks a safety and must find the books red; `table` keeps
//! docs/chaos.md honest.

mod accepting;
mod delivering;
mod dispatching;
mod leases;
mod mutations;
mod outages;
mod replaying;
mod table;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use it::api::PATIENCE;
use it::process::{Process, metric};
use it::{Api, Reply, World};
use serde_json::{Value, json};

use crate::fsck::fsck;

/// How long everything may take to come to rest: a lease (time-out 5 s + 30 s), and what a busy machine adds.
const QUIET: Duration = Duration::from_secs(120);
/// What a process says when it has come to its point.
const STOPPED: &str = "a test stops this process here";

/// An event of a row, and what is owed for it.
struct Owed {
    row: &'static str,
    event: String,
    status: &'static str,
    duplicates: usize,
}

/// What the books say.
#[derive(Debug, Default)]
struct Verdict {
    /// Accepted, and no endpoint took it; or shown with another status.
    lost: Vec<String>,
    /// Taken more often than the row allows.
    duplicates: Vec<String>,
    /// Came, and nobody had sent it.
    unexpected: Vec<String>,
    /// What `webhook-relay fsck` found.
    unsound: Option<String>,
}

impl Verdict {
    #[track_caller]
    fn assert_good(&self) {
        let nothing = self.lost.is_empty() && self.duplicates.is_empty() && self.unexpected.is_empty();
        assert!(nothing && self.unsound.is_none(), "{self:#?}");
    }
}

/// A system of services of their own, its books, and the safety that is broken in it.
struct Stage {
    w: World,
    ingest: Option<Process>,
    address: String,
    broken: Option<&'static str>,
    owed: Vec<Owed>,
    started: Cell<usize>,
}

impl Stage {
    /// Servers and an ingest.
    async fn start(broken: Option<&'static str>) -> anyhow::Result<Self> {
        let mut stage = Self::servers(broken).await?;
        stage.ingest_until(None).await?;
        Ok(stage)
    }

    /// Servers alone.
    async fn servers(broken: Option<&'static str>) -> anyhow::Result<Self> {
        let (w, address, started) = (World::servers().await?, String::new(), Cell::new(0));
        Ok(Self { w, ingest: None, address, broken, owed: Vec::new(), started })
    }

    fn launch(&self, role: &str, variables: &[(&str, &str)]) -> anyhow::Result<it::world::Launched> {
        self.started.set(self.started.get() + 1);
        let name = format!("{role}-{}", self.started.get());
        let broken = self.broken.map(|safety| ("RELAY_BREAK", safety));
        let variables = variables.iter().copied().chain(broken);
        let variables: Vec<_> = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let listen = (role == "ingest" && !self.address.is_empty()).then(|| self.address.clone());
        self.w.launch(&name, role, listen, &[], &variables)
    }

    /// A service, ready.
    async fn run(&self, role: &str) -> anyhow::Result<Process> {
        self.run_with(role, &[]).await
    }

    /// A service with further variables, ready.
    async fn run_with(&self, role: &str, variables: &[(&str, &str)]) -> anyhow::Result<Process> {
        Ok(self.launch(role, variables)?.ready().await?.0)
    }

    /// A deliverer that sends one request at a time to each endpoint, and where its figures are.
    async fn run_one_at_a_time(&self) -> anyhow::Result<(Process, String)> {
        let launched = self.launch("deliverer", &[("RELAY_ENDPOINT_IN_FLIGHT_MAX", "1")])?;
        let (process, address) = launched.ready().await?;
        Ok((process, format!("http://{address}/metrics")))
    }

    /// A service that something happens to at a point; it may be there before it is ready.
    fn run_until(&self, role: &str, point: &str) -> anyhow::Result<Process> {
        Ok(self.launch(role, &[("RELAY_STOP_AT", point)])?.process)
    }

    /// An ingest, in the place of the one before.
    async fn ingest_until(&mut self, point: Option<&str>) -> anyhow::Result<()> {
        // Both can't listen at one address.
        self.ingest = None;
        let variables: Vec<_> = point.map(|point| ("RELAY_STOP_AT", point)).into_iter().collect();
        let (process, address) = self.launch("ingest", &variables)?.ready().await?;
        self.w.use_api(&address);
        self.address = address;
        self.ingest = Some(process);
        Ok(())
    }

    /// A dead-letter manager, and its interface.
    async fn letters(&self) -> anyhow::Result<(Process, Api)> {
        let (process, address) = self.launch("dlq-manager", &[])?.ready().await?;
        Ok((process, Api::new(&format!("http://{address}"))))
    }

    /// The endpoint of a row: takes its events at `/<row>`, with short time-outs and so short leases.
    async fn hook(&self, row: &str, replies: impl IntoIterator<Item = Reply>) -> anyhow::Result<String> {
        self.hook_at(row, row, replies, json!({})).await
    }

    /// The same at another path, and with other settings.
    async fn hook_at(
        &self,
        row: &str,
        path: &str,
        replies: impl IntoIterator<Item = Reply>,
        more: Value,
    ) -> anyhow::Result<String> {
        self.w.sink.script(&format!("/{path}"), replies);
        let mut settings = json!({
            "event_types_filter": [format!("row.{row}")], "timeout_seconds": 5, "retry_schedule_seconds": [1, 1],
        });
        if let (Some(settings), Value::Object(more)) = (settings.as_object_mut(), more) {
            settings.extend(more);
        }
        Ok(self.w.api.endpoint(&self.w.sink.url(&format!("/{path}")), settings).await?.text("id"))
    }

    /// Sends an event of a row: it is owed, and may come twice so often.
    async fn event(&mut self, row: &'static str, duplicates: usize) -> anyhow::Result<String> {
        let body = json!({"event_type": format!("row.{row}"), "payload": {"row": row}});
        let event = self.w.api.post("/events", &body).await?.expect(202).text("id");
        self.owe(row, &event, duplicates);
        Ok(event)
    }

    /// The only request that came at a path so far is in flight, and may be repeated.
    fn allow_in_flight(&mut self, path: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.w.sink.received(&format!("/{path}")).len() == 1, "one is in flight at /{path}");
        let event = only(self, path)?;
        let owed = self.owed.iter_mut().find(|owed| owed.event == event).context("it was sent")?;
        owed.duplicates = 1;
        Ok(())
    }

    /// An event that was accepted.
    fn owe(&mut self, row: &'static str, event: &str, duplicates: usize) {
        self.owed.push(Owed { row, event: event.to_owned(), status: "delivered", duplicates });
    }

    /// How often an event was taken at the path of its row.
    fn taken(&self, path: &str, event: &str) -> usize {
        let received = self.w.sink.received(&format!("/{path}"));
        received.iter().filter(|r| r.header("webhook-id") == event && (200..300).contains(&r.answer)).count()
    }

    /// Waits until the streams are worked off and every event is at its end.
    async fn quiet(&self) -> anyhow::Result<()> {
        let nats = self.nats().await?;
        let deadline = tokio::time::Instant::now() + QUIET;
        while let Some(open) = self.still_open(&nats).await? {
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "never quiet: {open}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// NATS, as the services see it.
    async fn nats(&self) -> anyhow::Result<async_nats::Client> {
        crate::servers::nats(&self.w).await
    }

    async fn still_open(&self, nats: &async_nats::Client) -> anyhow::Result<Option<String>> {
        let lanes = ["fresh", "retry", "replay", "slow"].map(|lane| format!("JOBS.deliverer-{lane}"));
        for consumer in lanes.iter().map(String::as_str).chain(["EVENTS.dispatcher"]) {
            let answer = match nats.request(format!("$JS.API.CONSUMER.INFO.{consumer}"), "{}".into()).await {
                Ok(answer) => answer,
                Err(error) => return Ok(Some(format!("{consumer}: {error}"))),
            };
            let info: Value = serde_json::from_slice(&answer.payload)?;
            let messages = |name: &str| info[name].as_u64().unwrap_or_default();
            let (waiting, out) = (messages("num_pending"), messages("num_ack_pending"));
            if !info["error"].is_null() || waiting + out > 0 {
                return Ok(Some(format!("{consumer}: {waiting} messages wait, {out} are out {}", info["error"])));
            }
        }
        for owed in &self.owed {
            let answer = self.w.api.get(&format!("/events/{}", owed.event)).await?;
            let status = answer.body["status"].as_str().unwrap_or_default();
            if answer.status == 404 {
                // The accept log is worked off, so it will never be there.
                continue;
            }
            if !matches!(status, "delivered" | "dead_lettered") {
                return Ok(Some(format!("row {}: event {} is {}", owed.row, owed.event, answer.body)));
            }
        }
        Ok(None)
    }

    /// Waits until all is quiet, and compares the books.
    async fn verdict(&self) -> anyhow::Result<Verdict> {
        self.quiet().await?;
        let mut verdict = Verdict::default();
        let mut paths: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for owed in &self.owed {
            paths.entry(owed.row).or_default().push(&owed.event);
            let taken = self.taken(owed.row, &owed.event);
            let what = format!("row {}: event {} was taken {taken} times", owed.row, owed.event);
            let shown = self.w.api.get(&format!("/events/{}", owed.event)).await?.body;
            let shown = shown["status"].as_str().unwrap_or("unknown");
            let needed = usize::from(owed.status == "delivered");
            if taken < needed || shown != owed.status {
                verdict.lost.push(format!("{what}, and is shown as {shown}, not {}", owed.status));
            }
            if taken > needed + owed.duplicates {
                verdict.duplicates.push(what);
            }
        }
        for (row, events) in paths {
            let strangers = self.w.sink.received(&format!("/{row}"));
            let strangers = strangers.iter().map(|r| r.header("webhook-id")).filter(|id| !events.contains(id));
            verdict.unexpected.extend(strangers.map(|id| format!("row {row}: {id}")));
        }
        let (code, report) = fsck(&self.w, &[])?;
        verdict.unsound = (code != Some(0)).then(|| format!("{report:#}"));
        Ok(verdict)
    }
}

/// Waits until a process has ended at its point, and not for another reason.
async fn dies(mut process: Process) -> anyhow::Result<()> {
    let status = process.wait_end().await?;
    anyhow::ensure!(process.output().contains(STOPPED), "it ended with {status}:\n{}", process.output());
    Ok(())
}

/// Waits until a deliverer holds so many jobs.
async fn holds(figures: &str, jobs: u64) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while metric(figures, "relay_deliverer_working").await.is_none_or(|n| n < jobs) {
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "it never holds {jobs} jobs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Ends a process in good order.
async fn ends(mut process: Process) -> anyhow::Result<()> {
    anyhow::ensure!(process.terminate().await?, "{}", process.output());
    Ok(())
}

/// The id of the only event that came at a path.
fn only(stage: &Stage, path: &str) -> anyhow::Result<String> {
    let received = stage.w.sink.received(&format!("/{path}"));
    Ok(received.first().with_context(|| format!("nothing came at /{path}"))?.header("webhook-id").to_owned())
}
