//! When deliveries last may have gone to others, or come back, without a mark on the message: a changed
//! connection, a failed pull, a new consumer leader. Written by the connection, the pullers and the advisories; read
//! by the deliverers' check.

use tokio::sync::watch;
use tokio::time::Instant;

/// The time of the last disruption.
#[derive(Debug)]
pub(crate) struct Disruption(watch::Sender<Instant>);

impl Disruption {
    /// Starting is a disruption: what a process before this one took may come back as new.
    pub fn new() -> Self {
        Self(watch::Sender::new(Instant::now()))
    }

    /// One happened now.
    pub fn fire(&self) {
        self.0.send_replace(Instant::now());
    }

    pub fn subscribe(&self) -> watch::Receiver<Instant> {
        self.0.subscribe()
    }
}
