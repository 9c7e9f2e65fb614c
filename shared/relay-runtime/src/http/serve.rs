//! The server under a router: HTTP/1.1 over TCP or TLS, with bounds on what a client can hold.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::Response;
use futures_util::future::OptionFuture;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_core::forwarded::TrustedProxies;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt};

use super::front::Front;
use super::hurried::Hurried;

/// Connections at once at most; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16_384;
/// How long a client may take to send the head of a request; also how long a connection may idle.
const HEADER_READ_MAX: Duration = Duration::from_secs(60);
/// How large the head of a request may be, in bytes, give or take one read; a larger one is answered with 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long running requests may take to finish once `stop` has fired.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Pause after an accept that failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The address that a request comes from, in the request's extensions: where its connection comes from, and behind a
/// trusted proxy whoever that proxy was called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address}")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Connections that may wait to be taken; the system may cut it (`net.core.somaxconn`). A client whose connection finds no
/// place asks again after a whole second, and a burst of producers easily opens more at once than the usual 128.
const WAITING_CONNECTIONS_MAX: u32 = 4096;

/// Listens on an address.
///
/// # Errors
/// It is taken, or not this machine's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    listen(address).map_err(|source| BindError { address, source })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port is free again at once when its process has ended.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_CONNECTIONS_MAX)
}

/// What can be served: a router, or something around one.
pub trait Serve:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Serve for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// Serves `router` until `stop` fires; then takes no more connections, lets running requests finish, for
/// ten seconds at most, and closes the rest.
pub async fn serve(listener: TcpListener, router: impl Serve, stop: CancellationToken) {
    serve_behind(Front::default(), listener, router, stop).await;
}

/// The same behind what an operator put in front of the listener.
pub async fn serve_behind(front: Front, listener: TcpListener, router: impl Serve, stop: CancellationToken) {
    let watching = front.tls.clone().map(|tls| tokio::spawn(tls.follow(stop.clone())));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        // The permit comes first: without room nothing is accepted.
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (front, router, stop, cut) = (front.clone(), router.clone(), stop.clone(), cut.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = welcome(stream, peer, front, router, stop) => {}
                        () = cut.cancelled() => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::warn!("{} connections did not finish and are cut", connections.len());
        cut.cancel();
        connections.wait().await;
    }
    if let Some(Err(error)) = OptionFuture::from(watching).await {
        tracing::error!(%error, "watching the certificate ended badly");
    }
}

/// One connection, from its first byte on.
async fn welcome(stream: TcpStream, peer: SocketAddr, front: Front, router: impl Serve, stop: CancellationToken) {
    // Small answers go out at once instead of waiting for the client's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    match front.tls {
        None => converse(stream, peer.ip(), front.proxies, router, stop).await,
        Some(tls) => {
            if let Some(Some(stream)) = stop.run_until_cancelled(tls.accept(stream, peer)).await {
                converse(stream, peer.ip(), front.proxies, router, stop).await;
            }
        }
    }
}

/// The requests of one connection, from the first to the last.
async fn converse<S>(stream: S, peer: IpAddr, proxies: TrustedProxies, router: impl Serve, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        let router = router.clone();
        let values = request.headers().get_all(proxies.header().name()).iter().map(HeaderValue::as_bytes);
        let client = ClientAddress(proxies.client(peer, values));
        request.extensions_mut().insert(client);
        async move { router.oneshot(request.map(|body| Body::new(Hurried::new(body)))).await as Result<_, Infallible> }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use relay_core::forwarded::ProxyHeader;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What a client reads that sends `sent`, and no more, until the server ends the connection.
    async fn answer_to(sent: &[u8]) -> String {
        let router =
            Router::new().route("/", axum::routing::post(async |body: axum::body::Bytes| body.len().to_string()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tokio::spawn(serve(listener, router, CancellationToken::new()));
        client.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        // A connection that is cut while more of a request comes may be reset.
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    /// Nobody takes a connection here: all have to find a place, or they ask again and again.
    #[tokio::test]
    async fn a_burst_of_connections_finds_a_place() {
        let listener = bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = (0..400).map(|_| TcpStream::connect(address));
        let all = futures_util::future::try_join_all(connections);
        let all = tokio::time::timeout(Duration::from_secs(60), all).await.expect("each finds a place").unwrap();
        assert_eq!(all.len(), 400);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_slow_client_for_ever() {
        assert_eq!(answer_to(b"").await, "", "an idle connection");
        assert_eq!(answer_to(b"POST / HTTP/1.1\r\nHost: x\r\nX-A: ").await, "");
        let answer = answer_to(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        let chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        let answer = answer_to(chunked).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }

    /// The client of a request with these headers, where loopback is a trusted proxy, or not.
    async fn client_of(is_trusted: bool, headers: &str) -> String {
        let router =
            Router::new().route("/", get(async |client: axum::Extension<ClientAddress>| client.0.0.to_string()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let networks = is_trusted.then(|| "127.0.0.0/8".parse().unwrap()).into_iter().collect();
        let front = Front { tls: None, proxies: TrustedProxies::new(networks, ProxyHeader::default()) };
        tokio::spawn(serve_behind(front, listener, router, CancellationToken::new()));
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer.rsplit("\r\n").next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn only_trusted_proxies_say_who_a_client_is() {
        let headers =
            "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 192.0.2.7, 127.0.0.9\r\nForwarded: for=192.0.2.8\r\n";
        assert_eq!(client_of(false, headers).await, "127.0.0.1");
        assert_eq!(client_of(true, headers).await, "192.0.2.7");
        assert_eq!(client_of(true, "").await, "127.0.0.1");
    }

    #[tokio::test]
    async fn a_huge_head_is_refused() {
        let head = |size: usize| {
            format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-A: {}\r\n\r\n", "a".repeat(size))
        };
        assert!(answer_to(head(HEAD_BYTES_MAX / 2).as_bytes()).await.starts_with("HTTP/1.1 200"));
        let endless = &head(4 * HEAD_BYTES_MAX)[..2 * HEAD_BYTES_MAX];
        assert!(answer_to(endless.as_bytes()).await.starts_with("HTTP/1.1 431"));
    }

    #[tokio::test]
    async fn a_running_request_is_finished_when_it_stops() {
        let (entered, leave) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let (inside, outside) = (entered.clone(), leave.clone());
        let router = Router::new().route(
            "/",
            get(async move || {
                inside.notify_one();
                outside.notified().await;
                "done"
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, router, stop.clone()));
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        entered.notified().await;
        stop.cancel();
        leave.notify_one();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0, "idle connections are closed");
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
