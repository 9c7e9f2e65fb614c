//! Bodies of requests that must come within a time: a client that sends a byte now and then would hold its connection
//! for ever. Used by `serve` for every request.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

/// How long a client may take to send the body of a request.
const BODY_READ_MAX: Duration = Duration::from_secs(60);

/// Why a body ended.
#[derive(Debug, thiserror::Error)]
pub enum BodyFailed {
    /// It did not come within its time.
    #[error("the body did not come within {BODY_READ_MAX:?}")]
    TooSlow,
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] hyper::Error),
}

/// A body with a time limit, which runs from the first wait for it.
pub struct Hurried {
    body: Incoming,
    /// Most bodies are there with their heads and never need it.
    limit: Option<Pin<Box<Sleep>>>,
}

impl Hurried {
    /// `body`, within its time.
    pub fn new(body: Incoming) -> Self {
        Self { body, limit: None }
    }
}

impl Body for Hurried {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyFailed::from)));
        }
        let limit = self.limit.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_READ_MAX)));
        limit.as_mut().poll(cx).map(|()| Some(Err(BodyFailed::TooSlow)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
