//! How connections to endpoints are made, and what that took: within a bounded time, noted for the attempt in whose task it was.
//! Used by `direct` and `egress`; read by `client`.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tower::{BoxError, Layer, Service};

/// DNS, TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are closed before common servers close them (5 s), which keeps stale ones rare.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

tokio::task_local! {
    /// When the connection of this attempt stood.
    static CONNECTED: ConnectClock;
}

struct ConnectClock {
    started: Instant,
    /// In microseconds since `started`; `None` while it didn't connect.
    connect_us: Cell<Option<u32>>,
}

/// Runs an attempt that started at `started`, in which [`connect_us`] says when it was connected.
pub async fn timed<F: Future>(started: Instant, attempt: F) -> F::Output {
    CONNECTED.scope(ConnectClock { started, connect_us: Cell::new(None) }, attempt).await
}

/// When the connection of this attempt stood, in microseconds since its start; `None` where it used one that was there.
pub fn connect_us() -> Option<u32> {
    CONNECTED.try_with(|clock| clock.connect_us.get()).ok().flatten()
}

/// Microseconds, as they are recorded.
pub fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Bounds the time of a connector and notes when it was done.
#[derive(Clone, Copy)]
pub struct TimeConnects;

impl<S> Layer<S> for TimeConnects {
    type Service = TimedConnect<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TimedConnect { inner }
    }
}

/// A connector whose time is bounded and noted. What takes longer fails as an I/O error of kind `TimedOut`.
#[derive(Clone)]
pub struct TimedConnect<S> {
    inner: S,
}

impl<S, R> Service<R> for TimedConnect<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.inner.call(request);
        Box::pin(async move {
            let connected = timeout(CONNECT_TIMEOUT, connecting).await;
            let connection = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(Into::into)?;
            // A connection that is finished in the background, after another one was taken, belongs to nobody.
            let _ = CONNECTED.try_with(|clock| clock.connect_us.set(Some(micros(clock.started.elapsed()))));
            Ok(connection)
        })
    }
}
