//! What a user can set of the dispatcher.

use std::time::Duration;

use relay_core::shard::STREAMS_MAX;

/// [`STREAMS_MAX`], as ranges of flags have it.
const STREAMS: i64 = STREAMS_MAX as i64;

/// Settings of the dispatcher.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Largest payload of an event published straight to NATS, in bytes. No flag of its own: the process that
    /// flattens these settings has one, which the REST interface uses too
    #[arg(skip = relay_core::event::PAYLOAD_BYTES_MAX)]
    pub payload_bytes_max: usize,
    /// Streams that accepted events are spread over: EVENTS, EVENTS_1 and so on. Every dispatcher must say the same; the other
    /// services find them. What lies in streams beyond that is still delivered
    #[arg(long, env = "RELAY_EVENT_STREAMS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=STREAMS))]
    pub event_streams: u8,
    /// Streams that delivery jobs are spread over: JOBS, JOBS_1 and so on, likewise
    #[arg(long, env = "RELAY_JOB_STREAMS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=STREAMS))]
    pub job_streams: u8,
    /// Size of the accept log (of each stream EVENTS), in bytes; a full log refuses producers, it never drops
    #[arg(long, env = "RELAY_EVENTS_BYTES_MAX", default_value_t = 8 * 1024 * 1024 * 1024)]
    pub events_bytes_max: i64,
    /// For how many hours the accept log keeps what is done: `webhook-relay recover` refills a restored database from it
    #[arg(long, env = "RELAY_HISTORY_HOURS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=8760))]
    pub history_hours: u32,
    /// And how much of the accept log's size that history may take, in percent; the oldest goes first
    #[arg(long, env = "RELAY_HISTORY_PERCENT", default_value_t = 25, value_parser = clap::value_parser!(u8).range(0..=90))]
    pub history_percent: u8,
    /// Size of each stream of delivery jobs, in bytes
    #[arg(long, env = "RELAY_JOBS_BYTES_MAX", default_value_t = 2 * 1024 * 1024 * 1024)]
    pub jobs_bytes_max: i64,
    /// Copies of each stream: 1, or 3 or 5 in a cluster of as many NATS servers
    #[arg(long, env = "RELAY_STREAM_REPLICAS", default_value_t = 1, value_name = "1|3|5", value_parser = replicas)]
    pub stream_replicas: u8,
    /// How many batches of events may be on their way into Postgres at once
    #[arg(long, env = "RELAY_DISPATCH_BATCHES", default_value_t = 3)]
    pub dispatch_batches: usize,
}

impl Config {
    /// For how long acknowledged events stay in the accept log.
    pub fn history(&self) -> Duration {
        Duration::from_secs(u64::from(self.history_hours) * 3600)
    }

    /// The streams that these settings ask for.
    pub fn topology(&self) -> relay_bus::Topology {
        relay_bus::Topology {
            event_streams: self.event_streams,
            job_streams: self.job_streams,
            events_bytes_max: self.events_bytes_max,
            jobs_bytes_max: self.jobs_bytes_max,
            replicas: self.stream_replicas,
            ..Default::default()
        }
    }
}

/// An odd number: the copies vote.
fn replicas(text: &str) -> Result<u8, &'static str> {
    text.parse().ok().filter(|n| matches!(n, 1 | 3 | 5)).ok_or("must be 1, 3 or 5")
}
