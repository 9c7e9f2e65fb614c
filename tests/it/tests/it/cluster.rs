//! A cluster of three NATS servers with three copies of each stream: whichever server is killed, also the leader of a stream,
//! nothing that was accepted is lost.

use std::collections::HashSet;
use std::time::Duration;

use it::cluster::{Cluster, SIZE};
use it::process::Process;
use it::{Received, World};
use serde_json::{Value, json};

use crate::servers;

/// Events that are sent with all servers there, and as many while one is away.
const EVENTS: usize = 60;

/// A system on a cluster.
struct System {
    w: World,
    cluster: Cluster,
    _services: [Process; 3],
    streams: &'static [&'static str],
    endpoint: String,
    accepted: HashSet<String>,
}

#[tokio::test]
async fn a_killed_server_of_a_cluster_loses_nothing() -> anyhow::Result<()> {
    let mut system = System::start(&["EVENTS", "JOBS", "DLQ"], &[]).await?;
    for n in 0..SIZE {
        system.without(n).await?;
    }
    system.all_delivered().await
}

#[tokio::test]
async fn the_leader_of_one_stream_of_several_is_killed() -> anyhow::Result<()> {
    let streams = &["EVENTS", "EVENTS_1", "JOBS", "JOBS_1", "DLQ"];
    let mut system = System::start(streams, &["--event-streams", "2", "--job-streams", "2"]).await?;
    let info = system.whole(0, "EVENTS_1").await?;
    let leader = info["cluster"]["leader"].as_str().and_then(|name| name.strip_prefix("nats-")).unwrap().parse()?;
    system.without(leader).await?;
    system.all_delivered().await
}

impl System {
    async fn start(streams: &'static [&'static str], more: &[&str]) -> anyhow::Result<Self> {
        let mut w = World::servers().await?;
        let cluster = Cluster::start(&mut w)?;
        let flags = ["--stream-replicas", "3", "--events-bytes-max", "134217728", "--jobs-bytes-max", "67108864"];
        let flags: Vec<String> = flags.iter().chain(more).map(|flag| (*flag).to_owned()).collect();
        let (dispatcher, _) = w.service_with("dispatcher", "dispatcher", &flags, &[]).await?;
        let (deliverer, _) = w.service("deliverer", "deliverer").await?;
        let (ingest, address) = w.service("ingest", "ingest").await?;
        w.use_api(&address);
        let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({})).await?.text("id");
        let services = [dispatcher, deliverer, ingest];
        let system = Self { w, cluster, _services: services, streams, endpoint, accepted: HashSet::new() };
        for stream in streams {
            let info = system.whole(0, stream).await?;
            assert_eq!(info["config"]["num_replicas"], 3, "{info}");
        }
        Ok(system)
    }

    /// Sends events before and after a server is killed, waits for all of them, and starts the server again.
    async fn without(&mut self, n: usize) -> anyhow::Result<()> {
        self.send_many().await?;
        self.cluster.kill(n)?;
        self.send_many().await?;
        let is_there = |all: &[Received]| {
            let came: HashSet<&str> = all.iter().map(|received| received.header("webhook-id")).collect();
            self.accepted.iter().all(|event| came.contains(event.as_str()))
        };
        let there = self.w.sink.wait_until(is_there).await;
        there.map_err(|all| anyhow::anyhow!("{} came for {}", all.len(), self.accepted.len()))?;
        self.cluster.start_again(n)?;
        for stream in self.streams {
            self.whole(n, stream).await?;
        }
        Ok(())
    }

    async fn send_many(&mut self) -> anyhow::Result<()> {
        for i in 0..EVENTS {
            let event = self.send(json!(i)).await?;
            assert!(self.accepted.insert(event), "an id is given once");
        }
        Ok(())
    }

    /// Sends an event until it is accepted: while no stream has a leader it is refused with the advice to come again.
    async fn send(&self, payload: Value) -> anyhow::Result<String> {
        let body = json!({ "event_type": "cluster.event", "endpoint_id": self.endpoint, "payload": payload });
        let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
        loop {
            let answer = self.w.api.post("/events", &body).await?;
            if answer.status == 202 {
                return Ok(answer.text("id"));
            }
            assert_eq!(answer.status, 503, "{}", answer.body);
            assert!(answer.headers.contains_key("retry-after"), "{}", answer.body);
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "not accepted: {}", answer.body);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn all_delivered(&self) -> anyhow::Result<()> {
        for event in &self.accepted {
            self.w.api.wait_status(event, "delivered").await?;
        }
        Ok(())
    }

    /// A stream as server `n` shows it, once each of its copies is as new as its leader's.
    async fn whole(&self, n: usize, stream: &str) -> anyhow::Result<Value> {
        let nats = servers::nats_at(&self.cluster.url(n)).await?;
        let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
        loop {
            let subject = format!("$JS.API.STREAM.INFO.{stream}");
            let info: Value = match nats.request(subject, "".into()).await {
                Ok(answer) => serde_json::from_slice(&answer.payload)?,
                Err(_) => Value::Null,
            };
            let copies = info["cluster"]["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
            if copies.len() == SIZE - 1 && copies.iter().all(|copy| copy["current"] == true && copy["offline"] != true)
            {
                return Ok(info);
            }
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "{stream} is not whole: {info}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
