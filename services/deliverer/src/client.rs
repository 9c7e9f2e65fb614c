//! Step 9 of an event's way, the wire: sends one POST, directly ([`crate::direct`]) or through the operator's proxy
//! ([`crate::egress`]), and reads a bounded part of the answer. Called by `attempt`.
//!
//! Invariants: redirects are not followed, no proxy of the environment is used, only permitted addresses are connected to
//! ([`crate::resolver`]) or the operator's proxy alone ([`crate::egress`]), and neither size nor slowness of an answer holds more than [`EXCERPT_BYTES_MAX`] bytes
//! or time beyond the attempt's time-out. A request goes out a second time only when a *reused* connection
//! turned out stale: HTTP has no way to close an idle connection without that race.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Body;
use hyper::header::HeaderMap;
use hyper::http::uri::Scheme;
use relay_core::address::{AddressPolicy, RefusedAddress};
use relay_core::answer::TransportError;
use relay_core::delivery::EXCERPT_BYTES_MAX;
use tokio::time::{Instant, timeout_at};
use url::Host;

use crate::connect::{self, CONNECT_TIMEOUT, connect_us, micros};
use crate::direct::{self, Direct};
use crate::egress::EgressProxy;
use crate::resolver::{Guard, GuardedResolver, Lookup, LookupFailed, system};

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

/// A request that can be sent.
pub type Request = hyper::Request<Bytes>;

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
pub enum ClientError {
    /// What TLS needs of the system.
    #[error("preparing TLS: {0}")]
    Tls(#[from] io::Error),
    /// The client that leaves through the proxy.
    #[error("building the HTTP client for the egress proxy: {0}")]
    Proxied(#[from] reqwest::Error),
}

/// The way out.
#[derive(Clone)]
enum Way {
    Direct(Direct),
    Proxied(reqwest::Client),
}

/// Sends POSTs. Cheap to clone.
#[derive(Clone)]
pub struct Sender {
    pooled: Way,
    /// Never reuses a connection: for the second try after a stale one.
    fresh: Way,
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
        let resolver = GuardedResolver::new(Arc::clone(&guard), lookup, proxy_host);
        let [pooled, fresh] = match &egress {
            None => {
                let connector = direct::connector(resolver)?;
                [IDLE_PER_HOST, 0].map(|idle| Way::Direct(Direct::new(connector.clone(), idle)))
            }
            Some(proxy) => {
                [Way::Proxied(proxy.client(resolver.clone(), IDLE_PER_HOST)?), Way::Proxied(proxy.client(resolver, 0)?)]
            }
        };
        Ok(Self { pooled, fresh, guard, egress })
    }

    /// Sends what `build` makes (it is called again where a stale connection makes a second try necessary). The
    /// whole takes at most `timeout`.
    pub async fn post(&self, build: impl Fn() -> Request + Send + Sync, timeout: Duration) -> Sent {
        let started = Instant::now();
        connect::timed(started, async {
            let deadline = started + timeout;
            let mut answer = self.once(&self.pooled, build(), started, deadline, timeout).await;
            let reused = connect_us().is_none();
            if reused && matches!(&answer, Err(failed) if failed.lost) && started.elapsed() < STALE_WITHIN {
                metrics::counter!("relay_deliverer_stale_connections_total").increment(1);
                answer = self.once(&self.fresh, build(), started, deadline, timeout).await;
            }
            Sent { answer, total_us: micros(started.elapsed()), connect_us: connect_us() }
        })
        .await
    }

    async fn once(
        &self,
        way: &Way,
        request: Request,
        started: Instant,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Reply, Failed> {
        self.check_host(&request)?;
        let https = request.uri().scheme() == Some(&Scheme::HTTPS);
        let late = |_| Failed::timed_out(timeout);
        match way {
            Way::Direct(direct) => {
                let answer = timeout_at(deadline, direct.send(request)).await.map_err(late)?;
                let answer = answer.map_err(|e| classify(&e, e.is_connect(), https))?;
                Ok(read(answer, started, deadline).await)
            }
            Way::Proxied(client) => {
                let failed = |e: reqwest::Error| classify(&e, e.is_connect(), https);
                let request = request.try_into().map_err(failed)?;
                let answer = timeout_at(deadline, client.execute(request)).await.map_err(late)?.map_err(failed)?;
                // To a request that isn't tunnelled the proxy answers itself: that is not the endpoint's word.
                if !https && answer.status().as_u16() == PROXY_AUTHENTICATION_REQUIRED {
                    return Err(Failed {
                        class: TransportError::Connect,
                        text: "the egress proxy refused the request (407)".to_owned(),
                        lost: false,
                    });
                }
                Ok(read(answer.into(), started, deadline).await)
            }
        }
    }

    /// What never reaches the resolver: hosts that are addresses already, and behind a proxy all others too.
    fn check_host(&self, request: &Request) -> Result<(), Failed> {
        let refused = |text: String| Failed { class: TransportError::AddressRefused, text, lost: false };
        let host = Host::parse(request.uri().host().unwrap_or_default()).map_err(|e| refused(e.to_string()))?;
        let checked = match (&self.egress, &host) {
            (Some(proxy), _) => proxy.check(&host, &self.guard),
            (None, Host::Ipv4(ip)) => self.guard.check((*ip).into()).map_err(Into::into),
            (None, Host::Ipv6(ip)) => self.guard.check((*ip).into()).map_err(Into::into),
            (None, Host::Domain(_)) => Ok(()),
        };
        checked.map_err(|why| refused(why.to_string()))
    }
}

/// Reads an answer whose head is there.
async fn read<B>(answer: Response<B>, started: Instant, deadline: Instant) -> Reply
where
    B: Body<Data = Bytes> + Unpin,
{
    let first_byte_us = micros(started.elapsed());
    let (head, body) = answer.into_parts();
    let excerpt = read_excerpt(body, deadline).await;
    Reply { status: head.status.as_u16(), headers: head.headers, excerpt, first_byte_us }
}

/// Reads the start of the body, and the rest only where it is short and quick.
async fn read_excerpt<B>(mut body: B, deadline: Instant) -> Bytes
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.is_end_stream() {
        return Bytes::new();
    }
    let until = deadline.min(Instant::now() + BODY_TIME_MAX);
    let mut kept = BytesMut::new();
    let mut seen = 0;
    while let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await {
        let Ok(chunk) = frame.into_data() else { continue };
        seen += chunk.len();
        let room = EXCERPT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if seen > DRAIN_BYTES_MAX {
            break;
        }
    }
    kept.freeze()
}

/// What kind of failure a client's error is; `connecting`: before there was a connection. Our resolver's errors are found by
/// their types; what TLS says comes as an I/O error of kind `InvalidData` while connecting.
fn classify(error: &(dyn Error + 'static), connecting: bool, https: bool) -> Failed {
    let mut class = if connecting { TransportError::Connect } else { TransportError::Protocol };
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
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            match innermost_kind(io) {
                io::ErrorKind::TimedOut if connecting => {
                    let text = format!("not connected within {CONNECT_TIMEOUT:?}");
                    return Failed { class: TransportError::Timeout, text, lost };
                }
                kind if https && connecting && is_tls_kind(kind) => class = TransportError::Tls,
                _ if connecting => {}
                _ => (class, lost) = (TransportError::ConnectionClosed, true),
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
    Failed { class, text: deepest, lost }
}

fn is_tls_kind(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// I/O errors are wrapped in I/O errors by the TLS connector; the innermost one says what happened.
fn innermost_kind(error: &io::Error) -> io::ErrorKind {
    let mut error = error;
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        error = inner;
    }
    error.kind()
}

#[cfg(test)]
mod tests;
