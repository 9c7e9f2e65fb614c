//! Learning from the server which streams of a kind there are. The dispatchers alone are told how many there shall be
//! ([`crate::declare`]); everybody else looks, at the start, after each reconnect and every few seconds, so that publishers use
//! new streams and leave those that aren't used any more, and whoever takes takes from all.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use relay_core::shard::{Shard, StreamKind};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::api::{self, STREAM_NOT_FOUND};
use crate::bus::{Bus, Inner};
use crate::connect::Link;
use crate::error::BusError;
use crate::shards::{Heard, Known, Presence};
use crate::topology::{Use, use_of};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(5);
/// The same at least, whatever happens.
const PERIOD_LEAST: Duration = Duration::from_millis(200);

impl Bus {
    /// What is known of the streams now.
    pub(crate) fn known(&self) -> Known {
        *self.known.borrow()
    }

    /// Looks which streams there are.
    ///
    /// # Errors
    /// The server didn't answer for one of them: what was known of that one stays, the others are noted.
    pub(crate) async fn discover(&self) -> Result<Known, BusError> {
        let asked = StreamKind::ALL.iter().flat_map(|kind| Shard::all().skip(1).map(move |shard| (*kind, shard)));
        let found = join_all(asked.map(|(kind, shard)| async move { (kind, shard, self.presence(kind, shard).await) }));
        let (mut known, mut unanswered) = (self.known(), None);
        for (kind, shard, presence) in found.await {
            match presence {
                Ok(presence) => {
                    if presence != known.get(kind, shard) {
                        tracing::info!(stream = kind.stream(shard), "{}", in_words(presence));
                        // What was heard of it before is of no account.
                        self.note(kind, shard, Heard::Stores);
                    }
                    known.set(kind, shard, presence);
                }
                Err(error) => unanswered = Some(error),
            }
        }
        self.known.send_if_modified(|before| std::mem::replace(before, known) != known);
        unanswered.map_or(Ok(known), Err)
    }

    /// Whether a stream is gone that this process was told to have. Whoever took from it has stopped with it.
    fn lacks_streams(&self) -> bool {
        let topology = *self.topology.lock().expect("no code panics while it holds this lock");
        let known = self.known();
        let is_gone = |kind, shard| known.get(kind, shard) == Presence::Absent;
        StreamKind::ALL.iter().any(|kind| Shard::used(topology.count(*kind)).any(|shard| is_gone(*kind, shard)))
    }

    async fn make_again(&self) {
        match self.declare_after(Instant::now()).await {
            Ok(()) => self.look_once().await,
            Err(error) => tracing::warn!(%error, "one of the streams is gone and was not made again; trying again"),
        }
    }

    async fn presence(&self, kind: StreamKind, shard: Shard) -> Result<Presence, BusError> {
        match api::ask(self.api(), &format!("STREAM.INFO.{}", kind.stream(shard)), &json!({})).await {
            Ok(info) if use_of(kind, shard, &info["config"]) == Use::Retired => Ok(Presence::Retired),
            Ok(_) => Ok(Presence::Used),
            Err(error) if error.code() == Some(STREAM_NOT_FOUND) => Ok(Presence::Absent),
            Err(error) => Err(error),
        }
    }
}

fn in_words(presence: Presence) -> &'static str {
    match presence {
        Presence::Used => "NATS has one more stream: it is used from now on",
        Presence::Retired => "this stream isn't used any more; what is in it is still taken",
        Presence::Absent => "this stream is gone",
    }
}

/// Looks again and again: at once, every [`PERIOD`], after each change of the connection, and when somebody rings. Ends with
/// the last handle.
pub(crate) async fn keep_looking(bus: Weak<Inner>, mut link: watch::Receiver<Link>, bell: Arc<Notify>) {
    while let Some(bus) = bus.upgrade().map(Bus::of) {
        if link.borrow_and_update().up {
            bus.settle().await;
            bus.look_once().await;
            if bus.lacks_streams() {
                bus.make_again().await;
            }
        }
        // No handle is held while nothing is to be done.
        drop(bus);
        tokio::time::sleep(PERIOD_LEAST).await;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = bell.notified() => {}
            changed = link.changed() => if changed.is_err() { return },
        }
    }
}
