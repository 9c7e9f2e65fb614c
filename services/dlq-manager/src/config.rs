//! What a user can set of the DLQ manager.

use std::net::SocketAddr;

/// Settings of the DLQ manager.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Address of the REST interface; other than loopback needs an API key
    #[arg(long, env = "RELAY_LISTEN", default_value = "127.0.0.1:8743")]
    pub listen: SocketAddr,
    /// How long things are kept
    #[command(flatten)]
    pub retention: Retention,
}

/// How long things are kept.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub struct Retention {
    /// Days that events, deliveries and attempts are kept; then the whole day is dropped
    #[arg(long, env = "RELAY_RETENTION_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=3650))]
    pub retention_days: u32,
    /// Days that dead letters are kept, with copies of their payloads where the event's day was dropped
    #[arg(long, env = "RELAY_DEAD_LETTER_DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub dead_letter_days: u32,
}
