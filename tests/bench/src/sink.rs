//! The receiver: the path says how it behaves, and it notes when each sequence number came and how many came again.
//!
//! `/ok/<n>` answers 200 at once; `/once/<ms>` answers the first request of a number with 425 (which no circuit
//! counts) and with 200 from then on, and measures how late the second came, for an endpoint that repeats after so many
//! milliseconds; `/slow/<ms>/<n>` answers 200 after a while and counts nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use tokio::sync::Notify;

/// How long an event took to its receiver.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// The number in the receiver's path.
    pub number: u64,
    /// From the time in the payload to arrival, in microseconds.
    pub us: u64,
}

/// What arrived since the last [`Sink::reset`].
#[derive(Default)]
pub struct Arrivals {
    /// Receipts per (sequence number, number in the path) that were answered with 200.
    pub seen: HashMap<(u64, u64), u32>,
    /// When those that were answered with 425 were answered.
    refused: HashMap<u64, Instant>,
    /// From the time a repetition was due to its arrival, in microseconds.
    pub lateness_us: Vec<u64>,
    /// How long first receipts took, but of events that carry no time.
    pub latencies: Vec<Latency>,
    /// The last first receipt.
    pub last: Option<Instant>,
}

struct Shared {
    started: Instant,
    arrivals: Mutex<Arrivals>,
    count: AtomicU64,
    arrived: Notify,
}

/// A running receiver.
pub struct Sink {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
}

impl Sink {
    /// Listens on a free port of loopback.
    pub async fn start() -> anyhow::Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((std::net::Ipv4Addr::LOCALHOST, 0).into())?;
        // Hundreds of connections are opened at once, and one that finds no place here is late by a second.
        let listener = socket.listen(4096)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            started: Instant::now(),
            arrivals: Mutex::default(),
            count: AtomicU64::new(0),
            arrived: Notify::new(),
        });
        let app = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        tokio::spawn(async move {
            axum::serve(
                axum::serve::ListenerExt::tap_io(listener, |tcp| {
                    let _ = tcp.set_nodelay(true);
                }),
                app,
            )
            .await
        });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Microseconds on the clock that payloads carry.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Forgets what came.
    pub fn reset(&self) {
        *self.shared.arrivals.lock().expect("not poisoned") = Arrivals::default();
        self.shared.count.store(0, Ordering::Relaxed);
    }

    /// How many of the sequence numbers from `from` on came so far, by the number in the path.
    pub fn progress(&self, from: u64) -> HashMap<u64, u64> {
        let arrivals = self.shared.arrivals.lock().expect("not poisoned");
        let mut came = HashMap::new();
        for (_, number) in arrivals.seen.keys().filter(|(seq, _)| *seq >= from) {
            *came.entry(*number).or_insert(0) += 1;
        }
        came
    }

    /// Distinct receipts so far.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Waits until `n` distinct receipts are there, or nothing new has come for `quiet`; returns what came.
    pub async fn finish(&self, n: u64, quiet: Duration) -> Arrivals {
        loop {
            let arrived = self.shared.arrived.notified();
            if self.shared.count.load(Ordering::Relaxed) >= n {
                break;
            }
            if tokio::time::timeout(quiet, arrived).await.is_err() {
                break;
            }
        }
        // Anything that comes twice comes a little later.
        tokio::time::sleep(Duration::from_millis(300)).await;
        std::mem::take(&mut *self.shared.arrivals.lock().expect("not poisoned"))
    }
}

/// The number after `"name":` in a payload of ours.
fn number(body: &[u8], name: &str) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let rest = &text[text.find(name)? + name.len()..];
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// How a path behaves.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Ok(u64),
    Once(Duration),
    Slow(Duration),
}

fn behaviour(path: &str) -> Option<Behaviour> {
    let mut parts = path.trim_start_matches('/').split('/');
    let name = parts.next()?;
    let number = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    match name {
        "ok" => Some(Behaviour::Ok(number)),
        "once" => Some(Behaviour::Once(Duration::from_millis(number))),
        "slow" => Some(Behaviour::Slow(Duration::from_millis(number))),
        _ => None,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Arrivals {
    /// Notes a request and says what to answer; `true` where a delivery is seen for the first time.
    fn note(
        &mut self,
        behaviour: Behaviour,
        seq: u64,
        sent_us: u64,
        started: Instant,
        now: Instant,
    ) -> (StatusCode, bool) {
        let number = match behaviour {
            Behaviour::Slow(_) => return (StatusCode::OK, false),
            Behaviour::Ok(number) => number,
            Behaviour::Once(delay) => {
                let Some(refused) = self.refused.get(&seq) else {
                    self.refused.insert(seq, now);
                    return (StatusCode::TOO_EARLY, false);
                };
                if !self.seen.contains_key(&(seq, 0)) {
                    self.lateness_us.push(micros(now.saturating_duration_since(*refused + delay)));
                }
                0
            }
        };
        let times = self.seen.entry((seq, number)).or_insert(0);
        *times += 1;
        if *times > 1 {
            return (StatusCode::OK, false);
        }
        if sent_us > 0 {
            self.latencies.push(Latency { number, us: micros(now.duration_since(started)).saturating_sub(sent_us) });
        }
        self.last = Some(now);
        (StatusCode::OK, true)
    }
}

async fn receive(State(shared): State<Arc<Shared>>, uri: axum::http::Uri, body: Bytes) -> StatusCode {
    let now = Instant::now();
    let numbers = (number(&body, "\"seq\":"), number(&body, "\"at\":"));
    let (Some(behaviour), (Some(seq), Some(at))) = (behaviour(uri.path()), numbers) else {
        // The plain POSTs to compare with.
        return StatusCode::OK;
    };
    if let Behaviour::Slow(time) = behaviour {
        tokio::time::sleep(time).await;
        return StatusCode::OK;
    }
    let mut arrivals = shared.arrivals.lock().expect("not poisoned");
    let (status, first) = arrivals.note(behaviour, seq, at, shared.started, now);
    drop(arrivals);
    if first {
        shared.count.fetch_add(1, Ordering::Relaxed);
    }
    shared.arrived.notify_waiters();
    status
}
