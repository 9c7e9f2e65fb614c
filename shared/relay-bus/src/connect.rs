//! Connecting to NATS: credentials, the private inbox prefix, keeping the connection, and knowing when it changed.
//! Called by [`crate::Bus::connect`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::disruption::Disruption;
use crate::error::BusError;

/// A half-open connection is noticed after two of these.
const PING_PERIOD: Duration = Duration::from_secs(5);
/// Time for one connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait between two attempts to connect again.
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(2);
/// Commands (above all acks) that wait while the connection is being made again.
const COMMANDS_MAX: usize = 16 * 1024;

/// How to connect.
#[derive(Clone)]
pub struct BusOptions {
    /// One or more server URLs, separated by commas; user and password inside.
    pub url: String,
    /// Name of the connection, as the server shows it.
    pub name: String,
}

impl fmt::Debug for BusOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusOptions").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the options say, taken apart.
pub(crate) struct Address {
    servers: Vec<ServerAddr>,
    credentials: Option<(String, Option<String>)>,
    /// Answers and pulled messages arrive below it. A service's own user may subscribe only to its own prefix,
    /// so that no producer can read what the services are sent.
    pub inbox_prefix: String,
}

impl Address {
    pub fn parse(url: &str) -> Result<Self, BusError> {
        let servers = url
            .split(',')
            .map(|part| part.trim().parse::<ServerAddr>().map_err(|e| BusError::Url(e.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(server) = servers.iter().find(|s| s.host().is_empty()) {
            return Err(BusError::Url(format!("no host after {}://", server.scheme())));
        }
        let credentials = servers
            .iter()
            .find_map(|s| s.username().map(|user| (percent_decoded(user), s.password().map(percent_decoded))));
        let inbox_prefix = match &credentials {
            Some((user, Some(_))) => format!("_R_{user}"),
            _ => "_INBOX".to_owned(),
        };
        Ok(Self { servers, credentials, inbox_prefix })
    }
}

/// Undoes the escapes that user names and passwords have in URLs.
fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Whether the connection is up, and a number that changes with every change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub up: bool,
    pub epoch: u64,
}

/// A client and what is known of its connection.
pub(crate) struct Connection {
    pub client: Client,
    pub link: watch::Receiver<Link>,
}

impl Connection {
    /// Connects once; afterwards the client connects again by itself, for ever.
    pub async fn open(address: &Address, name: &str, disruption: &Arc<Disruption>) -> Result<Self, BusError> {
        let (sender, link) = watch::channel(Link { up: false, epoch: 0 });
        let sender = Arc::new(sender);
        let disruption = Arc::clone(disruption);
        let label = name.to_owned();
        let mut options = ConnectOptions::new()
            .name(name)
            .custom_inbox_prefix(&address.inbox_prefix)
            .ping_interval(PING_PERIOD)
            .connection_timeout(CONNECT_TIMEOUT)
            .client_capacity(COMMANDS_MAX)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                on_event(&event, &label, &sender, &disruption);
                std::future::ready(())
            });
        match address.credentials.clone() {
            Some((user, Some(password))) => options = options.user_and_password(user, password),
            Some((token, None)) => options = options.token(token),
            None => {}
        }
        let client = options.connect(address.servers.as_slice()).await.map_err(|e| BusError::Connect(e.to_string()))?;
        // The event comes from a task of its own; the first one must not look like a reconnect later.
        let connection = Self { client, link };
        if connection.is_up_by(Instant::now() + CONNECT_TIMEOUT).await {
            Ok(connection)
        } else {
            Err(BusError::Connect("the connection was lost at once".to_owned()))
        }
    }

    /// Waits until the connection is up, or the time has come.
    pub async fn is_up_by(&self, deadline: Instant) -> bool {
        let mut link = self.link.clone();
        let up = tokio::time::timeout_at(deadline, link.wait_for(|l| l.up)).await;
        matches!(up, Ok(Ok(_)))
    }
}

fn on_event(event: &Event, name: &str, link: &watch::Sender<Link>, disruption: &Disruption) {
    let change = |up| link.send_modify(|l| *l = Link { up, epoch: l.epoch + 1 });
    match event {
        Event::Connected => {
            tracing::info!(name, "connected to NATS");
            disruption.fire();
            change(true);
        }
        Event::Disconnected => {
            tracing::warn!(name, "connection to NATS lost");
            disruption.fire();
            change(false);
        }
        Event::Closed => {
            disruption.fire();
            change(false);
        }
        Event::SlowConsumer(_) => {
            tracing::warn!(name, "NATS messages were dropped unread; they come again");
            disruption.fire();
        }
        Event::ServerError(error) => tracing::warn!(name, %error, "NATS reports an error"),
        Event::ClientError(error) => tracing::warn!(name, %error, "NATS client error"),
        Event::LameDuckMode | Event::Draining => tracing::info!(name, "the NATS server is about to stop"),
    }
}

/// At once the first time, then 20 ms, 40 ms … up to [`RECONNECT_WAIT_MAX`], stretched by up to a quarter.
#[expect(clippy::disallowed_methods, reason = "an adapter knows the core alone; this is jitter")]
fn reconnect_delay(attempts: usize) -> Duration {
    if attempts <= 1 {
        return Duration::ZERO;
    }
    let doubled = Duration::from_millis(10 << attempts.min(8));
    doubled.min(RECONNECT_WAIT_MAX).mul_f64(1.0 + rand::random::<f64>() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_the_url_gives_the_inbox_prefix() {
        let prefix = |url| Address::parse(url).map(|a| a.inbox_prefix).ok();
        assert_eq!(prefix("nats://127.0.0.1:4222").as_deref(), Some("_INBOX"));
        assert_eq!(prefix("nats://deliverer:secret@a:4222,nats://b:4222").as_deref(), Some("_R_deliverer"));
        assert_eq!(prefix("nats://token@a:4222").as_deref(), Some("_INBOX"));
        assert_eq!(prefix("ftp://a"), None);
    }

    #[test]
    fn passwords_are_unescaped_and_never_shown() {
        let address = Address::parse("nats://u%40x:p%2Fw%25%zz@a:4222").expect("it is a URL");
        assert_eq!(address.credentials, Some(("u@x".to_owned(), Some("p/w%%zz".to_owned()))));
        let shown = format!("{:?}", BusOptions { url: "nats://u:secret@a".to_owned(), name: "n".to_owned() });
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn fuzz_urls() {
        let seeds =
            ["nats://deliverer:secret@a:4222,nats://b:4222", "nats://u%40x:p%2Fw%25%zz@a:4222", "%+1%-2%41", "a,,b"];
        let words: &[&[u8]] = &[b"%", b"%41", b"%+1", b"@", b":", b"//", b",", b"nats://"];
        relay_fuzz::fuzz("NATS URLs", &seeds, words, |input| {
            let text = relay_fuzz::text(input)?;
            let escape = |w: &[u8]| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit();
            if !text.as_bytes().windows(3).any(escape) {
                assert_eq!(percent_decoded(text), text, "nothing of it is an escape");
            }
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            assert_eq!(percent_decoded(&escaped), text);
            let address = Address::parse(text);
            Some(address.map(|a| (a.servers.len().min(3), a.credentials.is_some())).map_err(|e| e.to_string().len()))
        });
    }

    #[test]
    fn waits_between_attempts_stay_bounded() {
        for attempts in 0..100 {
            assert!(reconnect_delay(attempts) <= RECONNECT_WAIT_MAX.mul_f64(1.25));
        }
    }
}
