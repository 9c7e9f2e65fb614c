//! Producers, over both ways in, with and without idempotency keys. What has a key is sent again until it is accepted;
//! what has none is sent once, and counts only if somebody said that it was accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::ledger::{Accepted, Ledger};
use crate::plan;

/// How long a producer waits for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a producer with a key goes on trying after the run, when all faults have ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a refused producer waits.
const PAUSE: Duration = Duration::from_millis(200);

/// What all producers share.
#[derive(Clone)]
pub struct Producers {
    /// Interfaces of the ingests.
    pub ingests: Vec<it::Api>,
    /// JetStream, as a producer's user.
    pub nats: async_nats::jetstream::Context,
    /// Where accepted events are written down.
    pub ledger: Ledger,
    /// The start of the run.
    pub start: std::time::Instant,
    /// Goes into the keys.
    pub seed: u64,
    /// Number of the next event.
    pub next: Arc<AtomicU64>,
    /// Requests that were refused or got no answer.
    pub refused: Arc<AtomicU64>,
}

/// How a producer sends.
#[derive(Clone, Copy, Debug)]
struct Way {
    rest: bool,
    keyed: bool,
}

impl Producers {
    /// Runs eight producers, `rate` events a second together, until told to stop. Those who wait for an answer to a
    /// key go on until they have it.
    pub async fn run(self, rate: u32, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let ways = [(true, true), (true, false), (false, true), (false, false)];
        let every = Duration::from_secs(8) / rate.max(1);
        let mut tasks = Vec::new();
        for (i, (rest, keyed)) in ways.into_iter().cycle().take(8).enumerate() {
            let (me, stop) = (self.clone(), stop.clone());
            tasks.push(tokio::spawn(async move { me.produce(i, Way { rest, keyed }, every, stop).await }));
        }
        for task in tasks {
            task.await??;
        }
        Ok(())
    }

    async fn produce(
        &self,
        which: usize,
        way: Way,
        every: Duration,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped_at = None;
        while !*stop.borrow() {
            ticks.tick().await;
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            // A producer that gets no answer asks the next ingest.
            let mut turn = which / 2;
            loop {
                match self.send(way, number, turn).await {
                    Some(id) => {
                        self.ledger.accepted(&Accepted { number, id, at: self.start.elapsed() })?;
                        break;
                    }
                    None => {
                        self.refused.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(PAUSE).await;
                        if !way.keyed {
                            break;
                        }
                    }
                }
                if *stop.borrow() && stopped_at.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    anyhow::bail!("event {number} ({way:?}) is not accepted a minute after the last fault");
                }
                turn += 1;
            }
        }
        Ok(())
    }

    /// `Some` = accepted, with the id where the answer has one.
    async fn send(&self, way: Way, number: u64, turn: usize) -> Option<Option<String>> {
        let payload = json!({"number": number});
        let key = way.keyed.then(|| format!("chaos-{}-{number}", self.seed));
        if way.rest {
            let mut body = json!({"event_type": plan::event_type(number), "payload": payload});
            if let Some(key) = key {
                body["idempotency_key"] = key.into();
            }
            let api = &self.ingests[turn % self.ingests.len()];
            let answer = timeout(ANSWER, api.post("/events", &body)).await.ok()?.ok()?;
            return (answer.status == 202).then(|| Some(answer.text("id")));
        }
        let mut headers = async_nats::HeaderMap::new();
        if let Some(key) = key {
            headers.insert("Nats-Msg-Id", key);
        }
        let subject = format!("relay.events.default.{}", plan::event_type(number));
        let ack = self.nats.publish_with_headers(subject, headers, payload.to_string().into());
        let ack = timeout(ANSWER, async { ack.await.ok()?.await.ok() }).await.ok()??;
        Some(None).filter(|_: &Option<String>| ack.stream == "EVENTS")
    }
}
