//! The bodies of requests hold a common room of bytes ([`BodyRoom`]): counted as they arrive, free again when the request is
//! answered and nothing of its body is left. Without room a request is refused at once: 503, or 429 where the tenant's own
//! requests took it. Put around routes by [`crate::auth::protect`], behind the guard, which knows the tenant.
//!
//! Invariant: what bodies hold in memory follows what is counted: small pieces are gathered, since each would keep the
//! whole buffer that it was read into.

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Body as _, Frame, SizeHint};
use metrics::{Counter, Gauge};
use relay_core::body_room::{BodyRoom, NoRoom};
use relay_core::ids::TenantId;
use relay_core::problem::{Problem, ProblemType};
use tokio::time::Sleep;

use crate::auth::Caller;
use crate::problem::RETRY_AFTER;

/// Bytes of all bodies at most, where nobody says otherwise.
pub const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a body may take to come while room is short; otherwise it has a minute.
const HURRY: Duration = Duration::from_secs(5);
/// Pieces of a body are gathered up to this size, in bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// The room of a process. Cheap to clone.
#[derive(Clone)]
pub struct Bodies(Arc<Inner>);

struct Inner {
    room: Mutex<BodyRoom>,
    used: Gauge,
    refused: Counter,
}

impl Bodies {
    /// An empty room of so many bytes. Call it after the metrics recorder is installed.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Inner {
            room: Mutex::new(BodyRoom::new(bytes_max)),
            used: metrics::gauge!("relay_http_body_bytes"),
            refused: metrics::counter!("relay_http_bodies_refused_total"),
        }))
    }

    fn with<T>(&self, work: impl FnOnce(&mut BodyRoom) -> T) -> T {
        // Nothing in it panics, and a count that is off by one request is better than no service.
        let mut room = self.0.room.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut room);
        self.0.used.set(u32::try_from(room.used()).map_or(f64::from(u32::MAX), f64::from));
        done
    }
}

/// What one request holds, in its extensions. It is free when the last copy is dropped: keep one with what is kept of the
/// body beyond the request.
#[derive(Clone)]
pub struct Held(Arc<HeldInner>);

struct HeldInner {
    bodies: Bodies,
    tenant: TenantId,
    bytes: AtomicUsize,
}

impl Held {
    fn take(&self, more: usize) -> Result<(), NoRoom> {
        let inner = &*self.0;
        let held = inner.bytes.load(Ordering::Relaxed);
        let taken = inner.bodies.with(|room| room.take(&inner.tenant, held, more));
        match taken {
            Ok(()) => {
                inner.bytes.fetch_add(more, Ordering::Relaxed);
            }
            Err(_) => inner.bodies.0.refused.increment(1),
        }
        taken
    }

    /// `body`, which holds its room as long as any slice of it is there.
    pub fn keep(self, body: Bytes) -> Bytes {
        struct Kept {
            body: Bytes,
            _held: Held,
        }
        impl AsRef<[u8]> for Kept {
            fn as_ref(&self) -> &[u8] {
                &self.body
            }
        }
        Bytes::from_owner(Kept { body, _held: self })
    }
}

impl Drop for HeldInner {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.bodies.with(|room| room.give_back(&self.tenant, bytes));
        }
    }
}

/// Why a body wasn't read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRead {
    /// There is no room for it.
    #[error("there is no room for the body")]
    NoRoom(NoRoom),
    /// It came too slowly for a time when room is short.
    #[error("the body came too slowly while there is little room")]
    TooSlow,
}

impl NotRead {
    /// The reason in an extractor's rejection, if it is one of these.
    pub fn in_error(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(why) = error.downcast_ref() {
                return Some(*why);
            }
            next = error.source();
        }
        None
    }
}

impl From<NotRead> for Problem {
    fn from(why: NotRead) -> Self {
        let (kind, detail) = match why {
            NotRead::NoRoom(NoRoom::Own) => {
                (ProblemType::TooManyRequests, "too many bytes of this tenant's requests are in flight")
            }
            NotRead::NoRoom(NoRoom::Others) => (ProblemType::Overloaded, "too many bytes of requests are in flight"),
            NotRead::TooSlow => (ProblemType::Overloaded, "the body came too slowly while many others are in flight"),
        };
        Self::new(kind, detail).retry_after(RETRY_AFTER)
    }
}

/// The layer: what comes of a request's body holds room until the request is answered.
pub(crate) async fn hold_room(State(bodies): State<Bodies>, mut request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let tenant = request.extensions().get::<Caller>().map_or_else(TenantId::default_tenant, |c| c.tenant.clone());
    let held = Held(Arc::new(HeldInner { bodies, tenant, bytes: AtomicUsize::new(0) }));
    request.extensions_mut().insert(held.clone());
    let request = request.map(|body| Body::new(Counted::new(body, held.clone())));
    let response = next.run(request).await;
    drop(held);
    response
}

/// A body that holds room for what came of it.
struct Counted<B> {
    body: B,
    held: Held,
    gathered: Vec<u8>,
    ended: bool,
    hurry: Option<Pin<Box<Sleep>>>,
}

impl<B> Counted<B> {
    fn new(body: B, held: Held) -> Self {
        Self { body, held, gathered: Vec::new(), ended: false, hurry: None }
    }

    /// What to do while nothing comes: wait, or give up, as the room is short. Looked at again and again.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<NotRead> {
        loop {
            let hurry = self.hurry.get_or_insert_with(|| Box::pin(tokio::time::sleep(HURRY)));
            if hurry.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.held.0.bodies.with(|room| room.is_short()) {
                return Poll::Ready(NotRead::TooSlow);
            }
            self.hurry = None;
        }
    }
}

impl<B> hyper::body::Body for Counted<B>
where
    B: hyper::body::Body<Data = Bytes, Error = axum::Error> + Unpin,
{
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let refuse = |why: NotRead| Poll::Ready(Some(Err(axum::Error::new(why))));
        while !this.ended {
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => {
                    this.ended = true;
                    break;
                }
                Poll::Pending => return this.wait(cx).map(|why| Some(Err(axum::Error::new(why)))),
            };
            // Nobody asks for trailers.
            let Ok(data) = frame.into_data() else { continue };
            if let Err(why) = this.held.take(data.len()) {
                return refuse(NotRead::NoRoom(why));
            }
            if this.gathered.is_empty() && this.body.is_end_stream() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            this.gathered.extend_from_slice(&data);
            if this.gathered.len() >= PIECE_BYTES {
                break;
            }
        }
        let gathered = std::mem::take(&mut this.gathered);
        Poll::Ready((!gathered.is_empty()).then(|| Ok(Frame::data(gathered.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.gathered.is_empty() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.body.size_hint();
        let gathered = u64::try_from(self.gathered.len()).unwrap_or(0);
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(gathered));
        }
        hint.set_lower(inner.lower().saturating_add(gathered));
        hint
    }
}

#[cfg(test)]
mod tests;
