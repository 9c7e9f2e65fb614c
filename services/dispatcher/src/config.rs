//! What a user can set of the dispatcher.

/// Settings of the dispatcher.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Largest payload of an event published straight to NATS, in bytes. No flag of its own: the process that
    /// flattens these settings has one, which the REST interface uses too
    #[arg(skip = relay_core::event::PAYLOAD_BYTES_MAX)]
    pub payload_bytes_max: usize,
    /// Size of the accept log (stream EVENTS), in bytes; a full log refuses producers, it never drops
    #[arg(long, env = "RELAY_EVENTS_BYTES_MAX", default_value_t = 8 * 1024 * 1024 * 1024)]
    pub events_bytes_max: i64,
    /// Size of the stream of delivery jobs, in bytes
    #[arg(long, env = "RELAY_JOBS_BYTES_MAX", default_value_t = 2 * 1024 * 1024 * 1024)]
    pub jobs_bytes_max: i64,
    /// How many batches of events may be on their way into Postgres at once
    #[arg(long, env = "RELAY_DISPATCH_BATCHES", default_value_t = 3)]
    pub dispatch_batches: usize,
}

impl Config {
    /// The streams that these settings ask for.
    pub fn topology(&self) -> relay_bus::Topology {
        relay_bus::Topology {
            events_bytes_max: self.events_bytes_max,
            jobs_bytes_max: self.jobs_bytes_max,
            ..Default::default()
        }
    }
}
