//! The disk of a server is full: producers get a clear answer or are accepted, nothing accepted is lost, nothing becomes a
//! dead letter, and all goes on by itself when there is room again. No service is restarted by hand.

use anyhow::ensure;
use it::api::PATIENCE;
use it::disk::Disk;
use it::process::Process;
use it::{Answer, Api, World};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::fsck::fsck;
use crate::servers::sql;

/// Payload bytes of an event.
const BYTES: usize = 20_000;
/// More events than fit on any disk here, of which a MiB at most is left.
const EVENTS_MAX: usize = 400;

/// Services of their own, an endpoint, and what was accepted for it.
struct Full {
    w: World,
    disk: Disk,
    ingest: Process,
    ingest_health: Api,
    dispatcher: Process,
    dispatcher_health: Api,
    deliverer: Process,
    endpoint: String,
    accepted: Vec<String>,
}

impl Full {
    /// All of it, with one event delivered.
    async fn start(server: &str) -> anyhow::Result<Self> {
        let (mut w, disk) = World::on_a_small_disk(server).await?;
        let launched = w.launch("ingest", "ingest", None, &[], &[])?;
        let ingest_health = Api::new(&format!("http://{}", launched.health));
        let (ingest, address) = launched.ready().await?;
        let (dispatcher, health) = w.service("dispatcher", "dispatcher").await?;
        let (deliverer, _) = w.service("deliverer", "deliverer").await?;
        w.use_api(&address);
        let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({"timeout_seconds": 5})).await?.text("id");
        let dispatcher_health = Api::new(&format!("http://{health}"));
        let accepted = Vec::new();
        let mut full =
            Self { w, disk, ingest, ingest_health, dispatcher, dispatcher_health, deliverer, endpoint, accepted };
        full.send().await?.expect(202);
        full.all_delivered().await?;
        Ok(full)
    }

    /// Sends an event that no server can store in less than it is long.
    async fn send(&mut self) -> anyhow::Result<Answer> {
        let random: String = (0..BYTES / 32).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
        let event = json!({"endpoint_id": self.endpoint, "event_type": "a.b", "payload": random});
        let answer = self.w.api.post("/events", &event).await?;
        if answer.status == 202 {
            self.accepted.push(answer.text("id"));
        }
        Ok(answer)
    }

    /// Sends events until the answer is another one than 202.
    async fn send_until_refused(&mut self) -> anyhow::Result<Answer> {
        for _ in 0..EVENTS_MAX {
            let answer = self.send().await?;
            if answer.status != 202 {
                return Ok(answer);
            }
        }
        anyhow::bail!("{EVENTS_MAX} events fit")
    }

    /// Sends events until the dispatcher says that there is no room; each is accepted.
    async fn send_until_dispatcher_says(&mut self, words: &str) -> anyhow::Result<()> {
        let before = self.dispatcher.output().len();
        for _ in 0..EVENTS_MAX {
            if self.dispatcher.output()[before..].contains(words) {
                return Ok(());
            }
            self.send().await?.expect(202);
        }
        self.dispatcher.wait_said(words).await
    }

    /// Sends events until one is accepted.
    async fn send_until_accepted(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.send().await?;
            if answer.status == 202 {
                return Ok(());
            }
            ensure!(answer.status == 503 && Instant::now() < deadline, "nothing is accepted: {}", answer.body);
            sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    /// Waits until each accepted event is delivered.
    async fn all_delivered(&self) -> anyhow::Result<()> {
        for event in &self.accepted {
            // While it can't be looked up it is 503, which is asked again.
            self.w.api.wait_status(event, "delivered").await?;
        }
        Ok(())
    }

    /// How often an event came.
    fn came(&self, event: &str) -> usize {
        self.w.sink.received("/hook").iter().filter(|r| r.header("webhook-id") == event).count()
    }

    /// The books at the end: all there, no dead letter, sound, and nobody had to be started again.
    async fn assert_good(mut self) -> anyhow::Result<()> {
        self.all_delivered().await?;
        for event in &self.accepted {
            assert!(self.came(event) > 0, "{event} is said to be delivered, and never came");
        }
        assert_eq!(sql(&self.w, "select count(*) from dead_letters")?, "0");
        let (code, report) = fsck(&self.w, &[])?;
        assert_eq!(code, Some(0), "{report:#}");
        for process in [&mut self.ingest, &mut self.dispatcher, &mut self.deliverer] {
            assert!(process.ended().is_none(), "{}", process.output());
        }
        Ok(())
    }
}

async fn wait_ready(health: &Api, status: u16) -> anyhow::Result<Answer> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = health.request("GET", "/health/ready", &[], None).await?;
        if answer.status == status {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "never {status}: {}", answer.body);
        sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// NATS has no room. Producers over HTTP are refused and told why and when to come again, those on NATS get no PubAck; the
/// ingest says that it isn't ready. nats-server is left alone until there is room: what it has can be read. Then it is
/// started again, since it writes nothing before.
#[tokio::test]
async fn nats_has_no_room() -> anyhow::Result<()> {
    let mut f = Full::start("nats").await?;
    let server = std::fs::read_to_string(f.w.data("run/nats.pid"))?;
    f.disk.leave(300)?;
    let refused = f.send_until_refused().await?.expect_problem(503, "service-unavailable");
    assert_eq!(refused.body["detail"], "the accept log did not acknowledge in time");
    assert!(refused.headers.contains_key("retry-after"));
    let nats = async_nats::connect(&f.w.nats_url).await?;
    let publish = nats.request("relay.events.default.a.b", json!("x".repeat(BYTES)).to_string().into());
    let answer = tokio::time::timeout(std::time::Duration::from_secs(1), publish).await;
    assert!(answer.is_err(), "a message that can't be stored has no PubAck: {answer:?}");
    let unready = wait_ready(&f.ingest_health, 503).await?;
    assert!(
        unready.body["checks"]["nats"].as_str().is_some_and(|why| why.contains("disk is full")),
        "{}",
        unready.body
    );
    f.w.up.wait_said("its disk has no room").await?;
    // It stays so, and the server stays.
    f.send().await?.expect_problem(503, "service-unavailable");
    wait_ready(&f.ingest_health, 503).await?;
    assert_eq!(std::fs::read_to_string(f.w.data("run/nats.pid"))?, server);

    f.disk.grow()?;
    wait_ready(&f.ingest_health, 200).await?;
    f.send_until_accepted().await?;
    f.assert_good().await
}

/// PostgreSQL has no room for a row. Events are accepted, and wait where they are; each is delivered once when there is
/// room again. Then it has no room for its log: it ends, and can't be started before there is room again.
#[tokio::test]
async fn postgres_has_no_room() -> anyhow::Result<()> {
    let mut f = Full::start("postgres").await?;
    f.disk.leave(500)?;
    f.send_until_dispatcher_says("53100").await?;
    for _ in 0..5 {
        f.send().await?.expect(202);
    }
    wait_ready(&f.ingest_health, 200).await?;
    f.disk.grow()?;
    f.all_delivered().await?;
    for event in &f.accepted {
        assert_eq!(f.came(event), 1, "nobody was ended, so none comes twice");
    }

    f.disk.leave(500)?;
    f.send_until_dispatcher_says("53100").await?;
    // Log and nothing else, until the server gives up.
    let log = "select count(pg_logical_emit_message(false, 'test', repeat(md5(random()::text), 32768))) from generate_series(1, 40)";
    ensure!(sql(&f.w, log).is_err(), "40 MB of log fit");
    f.w.up.wait_said("it can't be started").await?;
    wait_ready(&f.dispatcher_health, 503).await?;
    for _ in 0..5 {
        f.send().await?.expect(202);
    }
    wait_ready(&f.ingest_health, 200).await?;
    f.disk.grow()?;
    wait_ready(&f.dispatcher_health, 200).await?;
    f.send().await?.expect(202);
    f.assert_good().await
}
