//! Waiting for the next message of several consumers at once, in turn. Used by the sources.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::{Client, Message};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ack::AckHandle;
use crate::bus::Bus;
use crate::connect::Link;
use crate::pull::{PullFrom, Puller};

/// How often a waiting caller looks at the clock when nothing else wakes it.
const LOOK: Duration = Duration::from_secs(60);

/// Several pullers, served in turn.
pub(crate) struct Pullers {
    list: Vec<Puller>,
    turn: usize,
    link: watch::Receiver<Link>,
    client: Client,
}

impl Pullers {
    pub fn new(bus: &Bus, from: impl IntoIterator<Item = PullFrom>) -> Self {
        bus.watch_leaders();
        let list = from.into_iter().map(|from| Puller::new(bus.clone(), from)).collect();
        Self { list, turn: 0, link: bus.consuming.link.clone(), client: bus.consuming.client.clone() }
    }

    /// The next message and which puller it comes from. Dropping the future loses no message.
    pub async fn next(&mut self) -> (usize, Message) {
        let since = Instant::now();
        loop {
            self.link.mark_unchanged();
            for puller in &mut self.list {
                puller.prepare().await;
            }
            let wake_at =
                self.list.iter().filter_map(|p| p.wake_at(since)).min().unwrap_or_else(|| Instant::now() + LOOK);
            let Self { list, turn, link, .. } = self;
            let came = tokio::select! {
                biased;
                came = poll_fn(|cx| poll_in_turn(list, turn, cx)) => came,
                changed = link.changed() => {
                    if changed.is_err() {
                        // The client is closed, which happens only with the last handle: nothing will ever come.
                        std::future::pending::<()>().await;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(wake_at) => {
                    for puller in list.iter_mut() {
                        puller.check_time(since);
                    }
                    continue;
                }
            };
            if let (index, Some(message)) = came {
                return (index, message);
            }
        }
    }

    /// A message that is there already, and which puller it comes from.
    pub fn ready(&mut self) -> Option<(usize, Message)> {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match poll_in_turn(&mut self.list, &mut self.turn, &mut cx) {
                Poll::Ready((index, Some(message))) => return Some((index, message)),
                Poll::Ready((_, None)) => {}
                Poll::Pending => return None,
            }
        }
    }
}

impl Drop for Pullers {
    /// What came and wasn't taken goes to others at once, not after `ack_wait`.
    fn drop(&mut self) {
        let mut given_back = Vec::new();
        while let Some((_, message)) = self.ready() {
            given_back.extend(message.reply.map(|reply| AckHandle::new(self.client.clone(), reply)));
        }
        if let (false, Ok(runtime)) = (given_back.is_empty(), Handle::try_current()) {
            runtime.spawn(async move {
                for ack in given_back {
                    ack.nak(Duration::ZERO).await;
                }
            });
        }
    }
}

fn poll_in_turn(list: &mut [Puller], turn: &mut usize, cx: &mut Context<'_>) -> Poll<(usize, Option<Message>)> {
    for step in 0..list.len() {
        let index = (*turn + step) % list.len();
        if let Poll::Ready(message) = list[index].poll(cx) {
            *turn = index + 1;
            return Poll::Ready((index, message));
        }
    }
    Poll::Pending
}
