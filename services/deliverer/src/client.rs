//! Step 9 of an event's way, the wire: the only HTTP client of the deliverer. Sends one POST and reads a bounded
//! part of the answer. Called by `attempt`.
//!
//! Invariants: redirects are not followed, no proxy of the environment is used, only permitted addresses are connected to
//! ([`crate::resolver`]) or the operator's proxy alone ([`crate::egress`]), and neither size nor slowness of an answer holds more than [`EXCERPT_BYTES_MAX`] bytes
//! or time beyond the attempt's time-out. A request goes out a second time only when a *reused* connection
//! turned out stale: HTTP has no way to close an idle connection without that race.

use std::cell::Cell;
use std::error::Error as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay_core::address::{AddressPolicy, RefusedAddress};
use relay_core::answer::TransportError;
use relay_core::delivery::EXCERPT_BYTES_MAX;
use reqwest::header::HeaderMap;
use reqwest::{Client, Request, Response};
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};
use url::{Host, Url};

use crate::egress::EgressProxy;
use crate::resolver::{Guard, GuardedResolver, Lookup, LookupFailed, system};

/// DNS, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are closed before common servers close them (5 s), which keeps stale ones rare.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections kept per host: as many as one endpoint may have requests in flight.
const IDLE_PER_HOST: usize = 256;
/// How long an answer's body is read; the status counts whatever becomes of the body.
const BODY_TIME_MAX: Duration = Duration::from_secs(2);
/// A body up to this size is read to its end, so that its connection can be used again.
const DRAIN_BYTES_MAX: usize = 64 * 1024;
/// What a proxy answers that wants to be asked otherwise, or (Smokescreen) not at all.
const PROXY_AUTHENTICATION_REQUIRED: u16 = 407;
/// A reused connection that fails within this time was stale; later, the endpoint may have been working on it.
const STALE_WITHIN: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// When the connection of this attempt stood, in microseconds since its start; `None` while it didn't connect.
    static CONNECTED: ConnectClock;
}

struct ConnectClock {
    started: Instant,
    connect_us: Cell<Option<u32>>,
}

/// One POST that was made, with or without an answer.
#[derive(Debug)]
pub struct Sent {
    /// The answer, or what prevented it.
    pub answer: Result<Reply, Failed>,
    /// Total time in microseconds.
    pub total_us: u32,
    /// Time until connected, where a new connection was made.
    pub connect_us: Option<u32>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The start of the body.
    pub excerpt: Bytes,
    /// Time until the headers were there, in microseconds.
    pub first_byte_us: u32,
}

/// No answer.
#[derive(Debug)]
pub struct Failed {
    /// What kind of failure.
    pub class: TransportError,
    /// In words, for people.
    pub text: String,
    /// The connection was lost before an answer, in a way that a stale connection shows.
    lost: bool,
}

impl Failed {
    fn timed_out(timeout: Duration) -> Self {
        Self { class: TransportError::Timeout, text: format!("no answer within {timeout:?}"), lost: false }
    }
}

/// The client could not be built.
#[derive(Debug, thiserror::Error)]
#[error("building the HTTP client: {0}")]
pub struct ClientError(#[from] reqwest::Error);

/// Sends POSTs. Cheap to clone.
#[derive(Clone)]
pub struct Sender {
    pooled: Client,
    /// Never reuses a connection: for the second try after a stale one.
    fresh: Client,
    guard: Arc<Guard>,
    egress: Option<EgressProxy>,
}

impl Sender {
    /// Builds the client. Names are looked up by the system.
    pub fn new(policy: AddressPolicy, egress: Option<EgressProxy>) -> Result<Self, ClientError> {
        Self::with_lookup(policy, egress, system())
    }

    fn with_lookup(policy: AddressPolicy, egress: Option<EgressProxy>, lookup: Lookup) -> Result<Self, ClientError> {
        let guard = Arc::new(Guard::new(policy));
        let proxy_host = egress.as_ref().map(|proxy| proxy.host().to_owned());
        let proxy = egress.as_ref().map(EgressProxy::client_proxy).transpose()?;
        #[expect(clippy::disallowed_methods, reason = "this is the one client that the rule points to")]
        let builder = || {
            let client = Client::builder()
                .http1_only()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .no_proxy()
                .referer(false)
                .tcp_nodelay(true)
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .dns_resolver(GuardedResolver::new(Arc::clone(&guard), Arc::clone(&lookup), proxy_host.clone()))
                .connector_layer(TimeConnects);
            // After `no_proxy`, which forgets what was set before.
            proxy.clone().into_iter().fold(client, reqwest::ClientBuilder::proxy)
        };
        Ok(Self {
            pooled: builder().pool_max_idle_per_host(IDLE_PER_HOST).build()?,
            fresh: builder().pool_max_idle_per_host(0).build()?,
            guard,
            egress,
        })
    }

    /// A request to `url` without body: a user name and password in the URL become an `Authorization` header.
    pub fn template(&self, url: Url) -> Result<Request, ClientError> {
        Ok(self.pooled.post(url).build()?)
    }

    /// Sends what `build` makes (it is called again where a stale connection makes a second try necessary). The
    /// whole takes at most `timeout`.
    pub async fn post(&self, build: impl Fn() -> Request + Send + Sync, timeout: Duration) -> Sent {
        let started = Instant::now();
        let clock = ConnectClock { started, connect_us: Cell::new(None) };
        CONNECTED
            .scope(clock, async {
                let deadline = started + timeout;
                let mut answer = self.once(&self.pooled, build(), started, deadline, timeout).await;
                let reused = CONNECTED.with(|clock| clock.connect_us.get()).is_none();
                if reused && matches!(&answer, Err(failed) if failed.lost) && started.elapsed() < STALE_WITHIN {
                    metrics::counter!("relay_deliverer_stale_connections_total").increment(1);
                    answer = self.once(&self.fresh, build(), started, deadline, timeout).await;
                }
                let connect_us = CONNECTED.with(|clock| clock.connect_us.get());
                Sent { answer, total_us: micros(started.elapsed()), connect_us }
            })
            .await
    }

    async fn once(
        &self,
        client: &Client,
        request: Request,
        started: Instant,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Reply, Failed> {
        self.check_host(&request)?;
        let https = request.url().scheme() == "https";
        match timeout_at(deadline, client.execute(request)).await {
            Err(_) => Err(Failed::timed_out(timeout)),
            Ok(Err(error)) => Err(classify(&error, https)),
            Ok(Ok(mut response)) => {
                let first_byte_us = micros(started.elapsed());
                let status = response.status().as_u16();
                // To a request that isn't tunnelled the proxy answers itself: that is not the endpoint's word.
                if self.egress.is_some() && !https && status == PROXY_AUTHENTICATION_REQUIRED {
                    return Err(Failed {
                        class: TransportError::Connect,
                        text: "the egress proxy refused the request (407)".to_owned(),
                        lost: false,
                    });
                }
                let headers = std::mem::take(response.headers_mut());
                let excerpt = read_excerpt(response, deadline).await;
                Ok(Reply { status, headers, excerpt, first_byte_us })
            }
        }
    }

    /// What never reaches the resolver: hosts that are addresses already, and behind a proxy all others too.
    fn check_host(&self, request: &Request) -> Result<(), Failed> {
        let Some(host) = request.url().host() else { return Ok(()) };
        let checked = match (&self.egress, host) {
            (Some(proxy), host) => proxy.check(&host, &self.guard),
            (None, Host::Ipv4(ip)) => self.guard.check(ip.into()).map_err(Into::into),
            (None, Host::Ipv6(ip)) => self.guard.check(ip.into()).map_err(Into::into),
            (None, Host::Domain(_)) => Ok(()),
        };
        checked.map_err(|refused| Failed {
            class: TransportError::AddressRefused,
            text: refused.to_string(),
            lost: false,
        })
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Reads the start of the body, and the rest only where it is short and quick.
async fn read_excerpt(mut response: Response, deadline: Instant) -> Bytes {
    if response.content_length() == Some(0) {
        return Bytes::new();
    }
    let until = deadline.min(Instant::now() + BODY_TIME_MAX);
    let mut kept = BytesMut::new();
    let mut seen = 0;
    while let Ok(Ok(Some(chunk))) = timeout_at(until, response.chunk()).await {
        seen += chunk.len();
        let room = EXCERPT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if seen > DRAIN_BYTES_MAX {
            break;
        }
    }
    kept.freeze()
}

/// What kind of failure reqwest's error is. Our resolver's errors are found by their types; what TLS says comes
/// as an I/O error of kind `InvalidData` while connecting.
fn classify(error: &reqwest::Error, https: bool) -> Failed {
    let mut class = if error.is_connect() { TransportError::Connect } else { TransportError::Protocol };
    let mut lost = false;
    let mut deepest = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        deepest = cause.to_string();
        if cause.is::<RefusedAddress>() {
            class = TransportError::AddressRefused;
            break;
        }
        if cause.is::<LookupFailed>() {
            class = TransportError::Dns;
            break;
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            let kind = innermost_kind(io);
            if https && error.is_connect() && is_tls_kind(kind) {
                class = TransportError::Tls;
            } else if !error.is_connect() {
                class = TransportError::ConnectionClosed;
                lost = true;
            }
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && (http.is_incomplete_message() || http.is_closed() || http.is_canceled())
        {
            class = TransportError::ConnectionClosed;
            lost = true;
        }
        next = cause.source();
    }
    if error.is_timeout() {
        return Failed {
            class: TransportError::Timeout,
            text: format!("not connected within {CONNECT_TIMEOUT:?}"),
            lost,
        };
    }
    Failed { class, text: deepest, lost }
}

fn is_tls_kind(kind: std::io::ErrorKind) -> bool {
    matches!(kind, std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

/// I/O errors are wrapped in I/O errors by the TLS connector; the innermost one says what happened.
fn innermost_kind(error: &std::io::Error) -> std::io::ErrorKind {
    let mut error = error;
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<std::io::Error>()) {
        error = inner;
    }
    error.kind()
}

/// Notes when a connection stood, for the attempt in whose task it was made.
#[derive(Clone, Copy)]
struct TimeConnects;

impl<S> Layer<S> for TimeConnects {
    type Service = TimedConnect<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TimedConnect { inner }
    }
}

#[derive(Clone)]
struct TimedConnect<S> {
    inner: S,
}

impl<S, R> Service<R> for TimedConnect<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.inner.call(request);
        Box::pin(async move {
            let connection = connecting.await?;
            // A connection that is finished in the background, after another one was taken, belongs to nobody.
            let _ = CONNECTED.try_with(|clock| clock.connect_us.set(Some(micros(clock.started.elapsed()))));
            Ok(connection)
        })
    }
}

#[cfg(test)]
mod tests;
