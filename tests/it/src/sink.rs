//! Receivers: one listener, any number of paths, each with its own script of answers. Everything that comes is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::api::PATIENCE;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// When its body was there.
    pub at: Instant,
    /// Its path.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The status of its answer.
    pub answer: u16,
}

impl Received {
    /// A header's text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().expect("visible text")
    }
}

/// A scripted answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Bytes,
    delay: Duration,
}

impl Reply {
    /// With this status and an empty body.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new(), delay: Duration::ZERO }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// After a while.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

#[derive(Default)]
struct Path {
    /// Answers in order; the last one stays.
    script: Vec<Reply>,
    answered: usize,
    /// Answers 500 whatever the script says, also to what it is answering now.
    is_dead: bool,
}

#[derive(Default)]
struct Inner {
    paths: HashMap<String, Path>,
    received: Vec<Received>,
}

struct Shared {
    inner: Mutex<Inner>,
    came: Notify,
}

/// A running listener.
#[derive(Clone)]
pub struct Sink {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
}

impl Sink {
    /// Listens on a free port of loopback; every path answers 200 unless scripted.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        Self::on(listener)
    }

    /// Listens on this address, for receivers that come back.
    pub async fn start_on(address: std::net::SocketAddr) -> anyhow::Result<Self> {
        Self::on(tokio::net::TcpListener::bind(address).await?)
    }

    fn on(listener: tokio::net::TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { inner: Mutex::default(), came: Notify::new() });
        let app = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, shared })
    }

    /// Its address.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sets the answers of a path, in order; the last one stays.
    pub fn script(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let script = replies.into_iter().collect();
        self.lock().paths.insert(path.to_owned(), Path { script, answered: 0, is_dead: false });
    }

    /// From now on a path answers 500, also to the requests that it is answering now.
    pub fn die(&self, path: &str) {
        self.lock().paths.entry(path.to_owned()).or_default().is_dead = true;
    }

    /// What came on a path so far.
    pub fn received(&self, path: &str) -> Vec<Received> {
        self.lock().received.iter().filter(|r| r.path == path).cloned().collect()
    }

    /// Everything that came so far, in its order.
    pub fn all(&self) -> Vec<Received> {
        self.lock().received.clone()
    }

    /// What came on all paths so far.
    pub fn count(&self) -> usize {
        self.lock().received.len()
    }

    /// Waits until `n` requests came on a path.
    pub async fn wait(&self, path: &str, n: usize) -> anyhow::Result<Vec<Received>> {
        self.wait_until(|all| all.iter().filter(|r| r.path == path).count() >= n).await.map_err(|got| {
            anyhow::anyhow!("{path}: waited for {n} requests, {} came", got.iter().filter(|r| r.path == path).count())
        })?;
        Ok(self.received(path))
    }

    /// Waits until `done` holds of everything that came.
    pub async fn wait_until(&self, done: impl Fn(&[Received]) -> bool) -> Result<(), Vec<Received>> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let came = self.shared.came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            if done(&self.lock().received) {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, came).await.is_err() {
                return Err(self.lock().received.clone());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.shared.inner.lock().expect("no test panics while it holds this lock")
    }
}

async fn receive(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let reply = {
        let mut inner = shared.inner.lock().expect("no test panics while it holds this lock");
        let path = inner.paths.entry(uri.path().to_owned()).or_default();
        let reply = path.script.get(path.answered.min(path.script.len().saturating_sub(1))).cloned();
        path.answered += 1;
        let reply = reply.unwrap_or_else(|| Reply::status(200));
        let (at, path, answer) = (Instant::now(), uri.path().to_owned(), reply.status);
        inner.received.push(Received { at, path, headers, body, answer });
        reply
    };
    shared.came.notify_waiters();
    tokio::time::sleep(reply.delay).await;
    let is_dead = {
        let inner = shared.inner.lock().expect("no test panics while it holds this lock");
        inner.paths.get(uri.path()).is_some_and(|path| path.is_dead)
    };
    let status = if is_dead { 500 } else { reply.status };
    let mut response =
        Response::builder().status(status).body(Body::from(reply.body)).expect("a scripted status is valid");
    for (name, value) in reply.headers {
        response.headers_mut().insert(
            HeaderName::try_from(name).expect("a scripted name is valid"),
            HeaderValue::from_bytes(&value).expect("a scripted value is valid"),
        );
    }
    response
}
