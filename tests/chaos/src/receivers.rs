//! The endpoints: one listener, a path for each. They verify the signature, write every request down, and answer by plan.
//! A request whose client goes away before the answer is written down without one.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::plan::{self, Hook};

/// The secret header that each endpoint has.
pub const HEADER: &str = "x-chaos-key";

/// A request that an endpoint got.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// When it came, counted from the start of the run.
    pub came: Duration,
    /// When it was answered; `None` when its client went away first.
    pub answered: Option<Duration>,
    /// The answer.
    pub status: u16,
    /// The endpoint.
    pub hook: Option<Hook>,
    /// The number in the payload.
    pub number: Option<u64>,
    /// Header `webhook-id`.
    pub id: String,
    /// Whether it was signed with the endpoint's secret, and carried its secret header.
    pub signed: bool,
    /// The port that it was sent from, which tells the deliverers apart.
    pub port: u16,
}

impl Receipt {
    /// When the endpoint took the event: a 2xx that was sent.
    pub fn taken(&self) -> Option<Duration> {
        self.answered.filter(|_| (200..300).contains(&self.status))
    }
}

struct Shared {
    start: Instant,
    receipts: Mutex<Vec<Receipt>>,
    seen: Mutex<HashMap<(u64, Hook), u32>>,
    secrets: Mutex<HashMap<Hook, String>>,
    /// Requests without an answer yet, by the port that they were sent from.
    open: Mutex<HashMap<u16, u64>>,
    file: Mutex<std::fs::File>,
}

/// The running receivers.
#[derive(Clone)]
pub struct Receivers {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Receivers {
    /// Listens on a free port of loopback; receipts go to a file too.
    pub async fn start(file: std::fs::File, start: Instant) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            start,
            receipts: Mutex::default(),
            seen: Mutex::default(),
            secrets: Mutex::default(),
            open: Mutex::default(),
            file: Mutex::new(file),
        });
        let app = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, shared })
    }

    /// The URL of an endpoint.
    pub fn url(&self, hook: Hook) -> String {
        format!("http://{}/{}", self.address, hook.name())
    }

    /// Tells the secret that an endpoint's requests are signed with.
    pub fn secret(&self, hook: Hook, secret: String) {
        lock(&self.shared.secrets).insert(hook, secret);
    }

    /// Every secret of every endpoint.
    pub fn secrets(&self) -> Vec<String> {
        lock(&self.shared.secrets).iter().flat_map(|(hook, secret)| [secret.clone(), hook.header()]).collect()
    }

    /// Everything that came.
    pub fn receipts(&self) -> Vec<Receipt> {
        lock(&self.shared.receipts).clone()
    }

    /// Requests in flight as the words of the ledger have it: open now, or answered in the second before; of these
    /// ports, or of all.
    pub fn in_flight(&self, ports: Option<&HashSet<u16>>) -> u64 {
        let counts = |port: u16| ports.is_none_or(|ports| ports.contains(&port));
        let since = self.shared.start.elapsed().saturating_sub(Duration::from_secs(1));
        let receipts = lock(&self.shared.receipts);
        // They are in the order of their answers.
        let lately = receipts.iter().rev().take_while(|r| r.answered.unwrap_or(r.came) >= since);
        let answered = lately.filter(|r| counts(r.port)).count();
        let open: u64 = lock(&self.shared.open).iter().filter(|(port, _)| counts(**port)).map(|(_, n)| n).sum();
        open + answered as u64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

/// Writes the receipt, also when the client goes away and the handler is dropped.
struct Open {
    shared: Arc<Shared>,
    receipt: Receipt,
}

impl Drop for Open {
    fn drop(&mut self) {
        let r = &self.receipt;
        if let Some(open) = lock(&self.shared.open).get_mut(&r.port) {
            *open -= 1;
        }
        let line = format!(
            "{} {} {} {} {} {} {}\n",
            r.came.as_millis(),
            r.answered.map_or("-".to_owned(), |at| at.as_millis().to_string()),
            r.status,
            r.hook.map_or("-", Hook::name),
            r.number.map_or("-".to_owned(), |n| n.to_string()),
            r.id,
            if r.signed { "signed" } else { "unsigned" },
        );
        if let Err(error) = lock(&self.shared.file).write_all(line.as_bytes()) {
            eprintln!("a receipt can't be written: {error}");
        }
        lock(&self.shared.receipts).push(r.clone());
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let came = shared.start.elapsed();
    let hook = Hook::named(uri.path().trim_start_matches('/'));
    let number = serde_json::from_slice::<serde_json::Value>(&body).ok().and_then(|v| v["number"].as_u64());
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let signed = hook
        .and_then(|hook| lock(&shared.secrets).get(&hook).cloned())
        .is_some_and(|secret| verify(&secret, &text("x-webhook-signature"), &body))
        && hook.is_some_and(|hook| text(HEADER) == hook.header());
    let port = from.port();
    *lock(&shared.open).entry(port).or_default() += 1;
    let receipt = Receipt { came, answered: None, status: 0, hook, number, id: text("webhook-id"), signed, port };
    let mut open = Open { shared: Arc::clone(&shared), receipt };
    let (Some(hook), Some(number)) = (hook, number) else { return StatusCode::NOT_FOUND };
    let nth = {
        let mut seen = lock(&shared.seen);
        let nth = seen.entry((number, hook)).or_insert(0);
        *nth += 1;
        *nth
    };
    let act = plan::act(hook, number, nth, came);
    if !act.after.is_zero() {
        tokio::time::sleep(act.after).await;
    }
    open.receipt.answered = Some(shared.start.elapsed());
    open.receipt.status = act.status;
    StatusCode::from_u16(act.status).expect("the plan has valid statuses")
}

/// `t=<unix seconds>,v1=<hex HMAC-SHA256(secret, t "." body)>`.
fn verify(secret: &str, header: &str, body: &[u8]) -> bool {
    let Some((time, rest)) = header.strip_prefix("t=").and_then(|h| h.split_once(',')) else { return false };
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length will do");
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(body);
    let expected = hex::encode(mac.finalize().into_bytes());
    rest.split(',').any(|part| part.strip_prefix("v1=") == Some(expected.as_str()))
}
