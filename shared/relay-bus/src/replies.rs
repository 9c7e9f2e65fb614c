//! Answers to publishes: one subscription for all, one waiting entry for each. An entry goes away with its
//! publish, however that ends; when the connection is lost, all that wait are told at once that the outcome is unknown.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt as _;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::connect::{Connection, Link};
use crate::error::BusError;

type Table = Arc<Mutex<HashMap<u64, oneshot::Sender<Message>>>>;

/// Who waits for an answer.
pub(crate) struct Replies {
    inbox: String,
    next: AtomicU64,
    table: Table,
}

/// One publish that waits for its answer.
pub(crate) struct Waiting {
    token: u64,
    table: Table,
    /// Where the answer has to be sent.
    pub subject: String,
    /// Gives the answer, or an error when the connection was lost.
    pub answer: oneshot::Receiver<Message>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.table.lock().expect("no code panics while it holds this lock").remove(&self.token);
    }
}

impl Replies {
    /// Subscribes, and hands out answers until `stop` fires.
    pub async fn start(connection: &Connection, stop: CancellationToken) -> Result<Self, BusError> {
        let inbox = connection.client.new_inbox();
        let subscriber = subscribe(&connection.client, &inbox).await?;
        let table = Table::default();
        let pump = Pump { client: connection.client.clone(), inbox: inbox.clone(), table: Arc::clone(&table) };
        let link = connection.link.clone();
        tokio::spawn(async move { stop.run_until_cancelled(pump.run(subscriber, link)).await });
        Ok(Self { inbox, next: AtomicU64::new(0), table })
    }

    /// Makes an entry.
    pub fn register(&self) -> Waiting {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.table.lock().expect("no code panics while it holds this lock").insert(token, sender);
        Waiting { token, table: Arc::clone(&self.table), subject: format!("{}.{token}", self.inbox), answer }
    }
}

async fn subscribe(client: &Client, inbox: &str) -> Result<Subscriber, BusError> {
    client.subscribe(format!("{inbox}.*")).await.map_err(|e| BusError::Connect(e.to_string()))
}

struct Pump {
    client: Client,
    inbox: String,
    table: Table,
}

impl Pump {
    async fn run(self, mut subscriber: Subscriber, mut link: watch::Receiver<Link>) {
        loop {
            tokio::select! {
                message = subscriber.next() => match message {
                    Some(message) => self.hand_out(message),
                    None => match subscribe(&self.client, &self.inbox).await {
                        Ok(again) => subscriber = again,
                        Err(_) => return,
                    },
                },
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.table.lock().expect("no code panics while it holds this lock").clear();
                }
            }
        }
    }

    fn hand_out(&self, message: Message) {
        let token = message.subject.as_str().rsplit('.').next().and_then(|t| t.parse().ok());
        let mut table = self.table.lock().expect("no code panics while it holds this lock");
        if let Some(sender) = token.and_then(|t: u64| table.remove(&t)) {
            // Nobody waits any longer: then nobody needs the answer.
            drop(sender.send(message));
        }
    }
}
