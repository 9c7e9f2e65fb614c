//! The receiver: answers 200 at once, and notes when each sequence number came first and how many came again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use tokio::sync::Notify;

/// What arrived since the last [`Sink::reset`].
#[derive(Default)]
pub struct Arrivals {
    /// Receipts per (sequence number, path).
    pub seen: HashMap<(u64, u32), u32>,
    /// From the timestamp in the payload to arrival, in microseconds, first receipts only.
    pub latencies_us: Vec<u64>,
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
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
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

async fn receive(
    State(shared): State<Arc<Shared>>,
    uri: axum::http::Uri,
    _headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let now = Instant::now();
    let path = uri.path().trim_start_matches('/').parse().unwrap_or(0);
    if let (Some(seq), Some(at)) = (number(&body, "\"seq\":"), number(&body, "\"at\":")) {
        let mut arrivals = shared.arrivals.lock().expect("not poisoned");
        let times = arrivals.seen.entry((seq, path)).or_insert(0);
        *times += 1;
        if *times == 1 {
            let at_now = u64::try_from(now.duration_since(shared.started).as_micros()).unwrap_or(u64::MAX);
            arrivals.latencies_us.push(at_now.saturating_sub(at));
            arrivals.last = Some(now);
            shared.count.fetch_add(1, Ordering::Relaxed);
        }
        drop(arrivals);
        shared.arrived.notify_waiters();
    }
    StatusCode::OK
}
