//! Hints about dead letters, on the stream DLQ. The rows in Postgres are the truth, so a hint is never waited for:
//! a bounded queue that drops and counts.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use relay_core::ids::TenantId;
use relay_core::subject;
use tokio::sync::mpsc;

use crate::bus::{Bus, Inner};

/// Hints that wait at most.
pub(crate) const QUEUE_MAX: usize = 4096;
/// Published at once.
const TOGETHER: usize = 64;
/// A hint that isn't acknowledged by then is counted as dropped.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// One hint.
pub(crate) struct LetterHint {
    subject: String,
    body: Bytes,
}

impl Bus {
    /// Queues the hint that there is a dead letter (`tenant` is `None` where it isn't known). Never waits.
    pub fn publish_letter_hint(&self, tenant: Option<&TenantId>, reason: &str, body: Bytes) {
        let hint = LetterHint { subject: subject::dead_letter(tenant, reason), body };
        if self.letters.try_send(hint).is_err() {
            self.letters_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hints that were dropped since the start, because the queue was full or NATS away.
    pub fn letter_hints_dropped(&self) -> u64 {
        self.letters_dropped.load(Ordering::Relaxed)
    }
}

/// Publishes what is queued, until the last handle is gone.
pub(crate) async fn publish_queued(bus: Weak<Inner>, mut queue: mpsc::Receiver<LetterHint>) {
    let mut hints = Vec::with_capacity(TOGETHER);
    while queue.recv_many(&mut hints, TOGETHER).await > 0 {
        let Some(bus) = bus.upgrade().map(Bus::of) else { return };
        let results = join_all(hints.drain(..).map(|hint| {
            let bus = &bus;
            async move { bus.publish_once(&hint.subject, None, hint.body, ACK_TIMEOUT).await }
        }))
        .await;
        let lost = results.iter().filter(|r| r.is_err()).count();
        bus.letters_dropped.fetch_add(lost as u64, Ordering::Relaxed);
    }
}
