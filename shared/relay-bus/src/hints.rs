//! Listening to hints on core NATS: wake-ups that may be lost, since everything they speed up is also polled.

use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::bus::Bus;

/// Before a subscription that ended is made again.
const PAUSE: Duration = Duration::from_millis(500);

/// A subscription that lasts: through reconnects, and made again when it ends.
pub struct Hints {
    bus: Bus,
    subject: String,
    subscriber: Option<Subscriber>,
}

impl Bus {
    /// Listens to a subject. Subscribed with the first [`Hints::recv`].
    pub fn subscribe_hints(&self, subject: &str) -> Hints {
        Hints { bus: self.clone(), subject: subject.to_owned(), subscriber: None }
    }
}

impl Hints {
    /// The next hint's body. Never `None`; dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Bytes> {
        loop {
            let subscriber = match &mut self.subscriber {
                Some(subscriber) => subscriber,
                none => match self.bus.consuming.client.subscribe(self.subject.clone()).await {
                    Ok(subscriber) => none.insert(subscriber),
                    Err(error) => {
                        tracing::warn!(subject = self.subject, %error, "can't subscribe to hints");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
            };
            match subscriber.next().await {
                Some(message) => return Some(message.payload),
                None => {
                    self.subscriber = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
