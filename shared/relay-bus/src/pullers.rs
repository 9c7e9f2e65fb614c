//! Waiting for the next message of several consumers at once, in turn: those of every stream of a kind that there is, also of
//! one that isn't used any more. Used by the sources.

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
use crate::shards::Known;

/// How often a waiting caller looks at the clock when nothing else wakes it.
const LOOK: Duration = Duration::from_secs(60);

/// Several pullers, served in turn.
pub(crate) struct Pullers {
    bus: Bus,
    /// What to pull from each stream; the number of the stream in it says nothing.
    from_each: Vec<PullFrom>,
    list: Vec<Puller>,
    turn: usize,
    link: watch::Receiver<Link>,
    known: watch::Receiver<Known>,
    client: Client,
}

impl Pullers {
    pub fn new(bus: &Bus, from_each: Vec<PullFrom>) -> Self {
        bus.watch_leaders();
        let mut known = bus.known.subscribe();
        known.mark_changed();
        Self {
            bus: bus.clone(),
            from_each,
            list: Vec::new(),
            turn: 0,
            link: bus.consuming.link.clone(),
            known,
            client: bus.consuming.client.clone(),
        }
    }

    /// The next message and where it comes from. Dropping the future loses no message.
    pub async fn next(&mut self) -> (PullFrom, Message) {
        let since = Instant::now();
        loop {
            if self.known.has_changed().unwrap_or(false) {
                self.follow_streams();
            }
            self.link.mark_unchanged();
            for puller in &mut self.list {
                puller.prepare().await;
            }
            let wake_at =
                self.list.iter().filter_map(|p| p.wake_at(since)).min().unwrap_or_else(|| Instant::now() + LOOK);
            let Self { list, turn, link, known, .. } = self;
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
                // The sender is in the handle that is held here.
                Ok(()) = known.changed() => {
                    known.mark_changed();
                    continue;
                }
                () = tokio::time::sleep_until(wake_at) => {
                    for puller in list.iter_mut() {
                        puller.check_time(since);
                    }
                    continue;
                }
            };
            if let (from, Some(message)) = came {
                return (from, message);
            }
        }
    }

    /// A message that is there already, and where it comes from.
    pub fn ready(&mut self) -> Option<(PullFrom, Message)> {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match poll_in_turn(&mut self.list, &mut self.turn, &mut cx) {
                Poll::Ready((from, Some(message))) => return Some((from, message)),
                Poll::Ready((_, None)) => {}
                Poll::Pending => return None,
            }
        }
    }

    /// One puller for each consumer of each stream that there is. What came of one that is gone can't be acknowledged any more.
    fn follow_streams(&mut self) {
        let known = *self.known.borrow_and_update();
        let Self { list, from_each, bus, .. } = self;
        let before = list.len();
        list.retain(|p| known.existing(p.from().kind()).contains(&p.from().shard));
        if list.len() < before {
            bus.disruption.fire();
        }
        for from in from_each {
            for shard in known.existing(from.kind()) {
                if !list.iter().any(|p| (p.from().shard, p.from().lane) == (shard, from.lane)) {
                    list.push(Puller::new(bus.clone(), PullFrom { shard, ..*from }));
                }
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

fn poll_in_turn(list: &mut [Puller], turn: &mut usize, cx: &mut Context<'_>) -> Poll<(PullFrom, Option<Message>)> {
    for step in 0..list.len() {
        let index = (*turn + step) % list.len();
        if let Poll::Ready(message) = list[index].poll(cx) {
            *turn = index + 1;
            return Poll::Ready((list[index].from(), message));
        }
    }
    Poll::Pending
}
