//! The load generator: a closed loop (a fixed number of requests in flight) and an open loop (fixed start times,
//! latency counted from the planned start).

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::sink::Sink;
use crate::system::System;
use crate::wire::{self, Connection};

/// How long to wait for stragglers where nothing comes any more.
pub const QUIET: Duration = Duration::from_secs(10);

/// A pod that has just connected checks every job against the table for 10 s; the figures are of those after.
const WARM_UP: Duration = Duration::from_secs(12);

/// An endpoint that events are sent to by its id.
#[derive(Clone, Debug)]
pub struct Addressee {
    /// Its id.
    pub id: String,
    /// Its deliveries are counted: it answers, and at once.
    pub counted: bool,
}

/// Which endpoints an event goes to.
pub enum To {
    /// To every endpoint there is: so many.
    All(u64),
    /// To these in turn.
    Each(Vec<Addressee>),
}

/// How events go in.
enum Way {
    /// POSTs to the interface.
    Rest(Rest),
    /// Messages to JetStream, each of which waits for its acknowledgement.
    Nats(async_nats::jetstream::Context),
}

impl To {
    /// These endpoints in turn, all of which are counted.
    pub fn each(ids: Vec<String>) -> Self {
        Self::Each(ids.into_iter().map(|id| Addressee { id, counted: true }).collect())
    }
}

/// Where events go in.
pub struct Target {
    way: Way,
    to: To,
    filler: String,
    next_seq: AtomicU64,
}

/// What one run saw.
#[derive(Debug, Default)]
pub struct Outcome {
    /// 202s.
    pub accepted: u64,
    /// Deliveries that they make at endpoints that are counted.
    pub expected: u64,
    /// Other answers, and failures.
    pub refused: u64,
    /// First post to last answer.
    pub accept_seconds: f64,
    /// First post to last arrival.
    pub deliver_seconds: f64,
    /// Distinct deliveries.
    pub delivered: u64,
    /// Accepted and not delivered.
    pub lost: u64,
    /// Receipts beyond the first.
    pub duplicates: u64,
    /// Accept latencies, sorted, in microseconds.
    pub accept_us: Vec<u64>,
    /// End-to-end latencies, sorted, in microseconds.
    pub e2e_us: Vec<u64>,
    /// How long after their time the repetitions came, sorted, in microseconds.
    pub lateness_us: Vec<u64>,
}

impl Outcome {
    /// Distinct deliveries a second, from the first post to the last arrival.
    pub fn delivered_per_second(&self) -> f64 {
        self.delivered as f64 / self.deliver_seconds.max(0.001)
    }
}

/// A producer: connections to the interface, as many as it has requests in flight.
struct Rest {
    address: SocketAddr,
    tenant: Option<String>,
    idle: Mutex<Vec<Connection>>,
}

impl Rest {
    /// Whether the answer is a 202.
    async fn post(&self, body: &str) -> bool {
        let idle = self.idle.lock().expect("not poisoned").pop();
        let mut connection = idle.unwrap_or_else(|| Connection::new(self.address));
        let answer = connection.ask(&wire::post_event(self.tenant.as_deref(), body)).await;
        self.idle.lock().expect("not poisoned").push(connection);
        answer.is_ok_and(|answer| answer.status == 202)
    }
}

impl Target {
    /// Events of `payload_bytes`.
    pub fn new(system: &System, to: To, payload_bytes: usize) -> Self {
        Self::new_in(system, None, to, payload_bytes)
    }

    /// The same of a tenant; `None`: the default one.
    pub fn new_in(system: &System, tenant: Option<&str>, to: To, payload_bytes: usize) -> Self {
        let tenant = tenant.map(str::to_owned);
        Self::by(Way::Rest(Rest { address: system.interface(), tenant, idle: Mutex::default() }), to, payload_bytes)
    }

    /// The same, published to NATS by a producer.
    pub async fn by_nats(system: &System, to: To, payload_bytes: usize) -> anyhow::Result<Self> {
        let nats = async_nats::connect(system.producer_nats_url()?).await?;
        Ok(Self::by(Way::Nats(async_nats::jetstream::new(nats)), to, payload_bytes))
    }

    fn by(way: Way, to: To, payload_bytes: usize) -> Self {
        // 60 bytes stand for the numbers around it.
        Self { way, to, filler: filler(payload_bytes.saturating_sub(60)), next_seq: AtomicU64::new(1) }
    }

    /// The endpoint of event number `seq`, where it is sent to one.
    fn addressee(&self, seq: u64) -> Option<&Addressee> {
        match &self.to {
            To::All(_) => None,
            To::Each(endpoints) => endpoints.get(usize::try_from(seq).unwrap_or(0) % endpoints.len()),
        }
    }

    /// Deliveries that event number `seq` makes and that are counted.
    fn expected(&self, seq: u64) -> u64 {
        match &self.to {
            To::All(endpoints) => *endpoints,
            To::Each(_) => u64::from(self.addressee(seq).is_some_and(|e| e.counted)),
        }
    }

    fn payload(&self, seq: u64, at_us: u64) -> String {
        format!("{{\"seq\":{seq},\"at\":{at_us},\"filler\":\"{}\"}}", self.filler)
    }

    /// The body of the request of event number `seq`.
    fn body(&self, seq: u64, at_us: u64) -> String {
        let endpoint = self.addressee(seq).map_or(String::new(), |e| format!("\"endpoint_id\":\"{}\",", e.id));
        let payload = self.payload(seq, at_us);
        format!("{{{endpoint}\"event_type\":\"bench.event\",\"payload\":{payload}}}")
    }

    /// The number of the next event, and the body of its request.
    pub fn next_body(&self, at_us: u64) -> (u64, String) {
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        (seq, self.body(seq, at_us))
    }

    /// Sends the next event at this time of the sink's clock; its number, and whether it was accepted.
    pub async fn send_next(&self, at_us: u64) -> (u64, bool) {
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        (seq, self.send(seq, at_us).await)
    }

    async fn send(&self, seq: u64, at_us: u64) -> bool {
        match &self.way {
            Way::Rest(rest) => rest.post(&self.body(seq, at_us)).await,
            Way::Nats(nats) => {
                let (endpoint, payload) = (self.addressee(seq), self.payload(seq, at_us));
                let mut headers = async_nats::HeaderMap::new();
                if let Some(endpoint) = endpoint {
                    headers.insert("Relay-Endpoint-Id", endpoint.id.as_str());
                }
                let subject = "relay.events.default.bench.event";
                match nats.publish_with_headers(subject, headers, payload.into()).await {
                    Ok(ack) => ack.await.is_ok(),
                    Err(_) => false,
                }
            }
        }
    }
}

/// Text of so many bytes that compresses about as well as JSON of customers does: names that repeat, values that don't.
fn filler(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 64);
    for number in 0u64.. {
        if text.len() >= bytes {
            break;
        }
        // Knuth's multiplicative hash: the same text in each run.
        let value = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let _ = write!(text, "item {value:016x} amount {} paid; ", value >> 48);
    }
    text.truncate(bytes);
    text
}

#[derive(Default)]
struct Counted {
    accepted: u64,
    expected: u64,
    refused: u64,
    accept_us: Vec<u64>,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.expected += other.expected;
        self.refused += other.refused;
        self.accept_us.extend(other.accept_us);
    }

    /// Sends the next event at this time of the sink's clock, and counts what becomes of it.
    async fn send(&mut self, target: &Target, at_us: u64) {
        let begun = Instant::now();
        match target.send_next(at_us).await {
            (seq, true) => {
                self.accepted += 1;
                self.expected += target.expected(seq);
                self.accept_us.push(begun.elapsed().as_micros() as u64);
            }
            (_, false) => self.refused += 1,
        }
    }
}

/// Plain POSTs to the sink: requests a second.
pub async fn baseline(sink: &Sink, payload_bytes: usize, in_flight: usize, time: Duration) -> anyhow::Result<f64> {
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1024).tcp_nodelay(true).build()?;
    let url = sink.url();
    let body = bytes::Bytes::from("x".repeat(payload_bytes));
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let workers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (client, url, body, stop) = (client.clone(), url.clone(), body.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut done = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(answer) = client.post(&url).body(body.clone()).send().await {
                        let _ = answer.bytes().await;
                        done += 1;
                    }
                }
                done
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for worker in workers {
        total += worker.await?;
    }
    Ok(total as f64 / started.elapsed().as_secs_f64())
}

/// A fixed number of requests in flight for `time`.
pub async fn closed(target: &Target, sink: &Sink, in_flight: usize, time: Duration) -> anyhow::Result<Outcome> {
    sink.reset();
    let started = Instant::now();
    let work = (0..in_flight).map(|_| async {
        let mut counted = Counted::default();
        while started.elapsed() < time {
            counted.send(target, sink.now_us()).await;
        }
        counted
    });
    let counted = futures_util::future::join_all(work).await;
    let accept_seconds = started.elapsed().as_secs_f64();
    let mut total = Counted::default();
    counted.into_iter().for_each(|part| total.add(part));
    finish(total, accept_seconds, started, sink, QUIET).await
}

/// Lets connections, plans and pods come to their steady state.
pub async fn warm_up(target: &Target, sink: &Sink) -> anyhow::Result<()> {
    eprintln!("warming up");
    closed(target, sink, 16, WARM_UP).await?;
    Ok(())
}

/// A fixed rate for `time`; then waits for what is missing until nothing has come for `quiet`.
pub async fn open(target: &Target, sink: &Sink, rate: u64, time: Duration, quiet: Duration) -> anyhow::Result<Outcome> {
    sink.reset();
    let started = Instant::now();
    let first_us = sink.now_us();
    let mut due = pace(rate, rate * time.as_secs(), started);
    let mut running = FuturesUnordered::new();
    let mut total = Counted::default();
    loop {
        tokio::select! {
            Some(planned) = due.recv() => running.push(async move {
                let mut counted = Counted::default();
                counted.send(target, first_us + planned.as_micros() as u64).await;
                counted
            }),
            Some(counted) = running.next(), if !running.is_empty() => total.add(counted),
            else => break,
        }
    }
    let accept_seconds = started.elapsed().as_secs_f64();
    finish(total, accept_seconds, started, sink, quiet).await
}

/// Says when each of `count` requests is to begin, after `started`. By the clock of a thread of its own, as the timers of
/// the runtime are a millisecond late, which is a third of what is measured; at high rates it wakes every millisecond only.
fn pace(rate: u64, count: u64, started: Instant) -> mpsc::UnboundedReceiver<Duration> {
    let (begin, due) = mpsc::unbounded_channel();
    let grain = Duration::from_millis(if rate > 1000 { 1 } else { 0 });
    std::thread::spawn(move || {
        for i in 0..count {
            let planned = Duration::from_micros(i * 1_000_000 / rate);
            let wait = (started + planned).saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait.max(grain));
            }
            if begin.send(planned).is_err() {
                return;
            }
        }
    });
    due
}

/// Posts `count` events with `in_flight` requests at a time and waits for nothing else: makes a backlog. Returns how
/// many were accepted.
pub async fn queue(target: &Target, sink: &Sink, in_flight: usize, count: u64) -> u64 {
    let left = AtomicU64::new(count);
    let work = (0..in_flight).map(|_| async {
        let mut accepted = 0;
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            accepted += u64::from(target.send_next(sink.now_us()).await.1);
        }
        accepted
    });
    futures_util::future::join_all(work).await.into_iter().sum()
}

/// Posts `rate` events a second and counts nothing, until it is dropped.
pub async fn pour(target: &Target, sink: &Sink, rate: u64) {
    let mut due = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX));
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = due.tick() => running.push(target.send_next(sink.now_us())),
            Some(_) = running.next(), if !running.is_empty() => {}
        }
    }
}

async fn finish(
    counted: Counted,
    accept_seconds: f64,
    started: Instant,
    sink: &Sink,
    quiet: Duration,
) -> anyhow::Result<Outcome> {
    let Counted { accepted, expected, refused, accept_us } = counted;
    let mut outcome = Outcome { accepted, expected, refused, accept_us, accept_seconds, ..Outcome::default() };
    let arrivals = sink.finish(outcome.expected, quiet).await;
    outcome.delivered = arrivals.seen.len() as u64;
    outcome.lost = outcome.expected.saturating_sub(outcome.delivered);
    outcome.duplicates = arrivals.seen.values().map(|n| u64::from(*n) - 1).sum();
    outcome.deliver_seconds = arrivals.last.map_or(0.0, |at| at.duration_since(started).as_secs_f64());
    outcome.e2e_us = arrivals.latencies.iter().map(|l| l.us).collect();
    outcome.e2e_us.sort_unstable();
    outcome.lateness_us = arrivals.lateness_us;
    outcome.lateness_us.sort_unstable();
    outcome.accept_us.sort_unstable();
    Ok(outcome)
}
