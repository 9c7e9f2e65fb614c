//! What a user can set of ingest.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use relay_core::body_room::BodyRoom;
use relay_core::event::PAYLOAD_BYTES_MAX;
use relay_runtime::http::BODIES_BYTES_MAX;

use crate::batch;
use crate::committer::{CommitLimits, LAG_MS_MAX};

/// The largest limit on payloads that can be set: the accept log stores messages of at most 2 MiB, frame included.
pub const PAYLOAD_BYTES_CEILING: usize = 2 * 1024 * 1024 - 8 * 1024;
/// What a request to `POST /events` may have around its payload, in bytes.
pub const REQUEST_OVERHEAD_BYTES: usize = 64 * 1024;

/// Settings of ingest.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Address of the REST interface; other than loopback needs an API key
    #[arg(long, env = "RELAY_LISTEN", default_value = "127.0.0.1:8742")]
    pub listen: SocketAddr,
    /// Largest payload of an event, in bytes
    #[arg(long, env = "RELAY_PAYLOAD_BYTES_MAX", default_value_t = PAYLOAD_BYTES_MAX, value_parser = payload_limit)]
    pub payload_bytes_max: usize,
    /// Bytes of all request bodies in memory at most; without room a request is refused with 503, or 429 where its
    /// tenant's other requests took it
    #[arg(long, env = "RELAY_BODIES_BYTES_MAX", default_value_t = BODIES_BYTES_MAX, value_parser = bodies_limit)]
    pub bodies_bytes_max: usize,
    /// How long requests may wait for a processor, in milliseconds (1 to 1000), while more than 256 of them wait; where it
    /// is longer for a quarter of a second, the part that doesn't fit is refused with 503
    #[arg(long, env = "RELAY_LAG_MS_MAX", default_value_t = LAG_MS_MAX, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub lag_ms_max: u16,
    /// Network that endpoints may be in though it is private, in CIDR notation; can be repeated
    #[arg(long = "allow-network", env = "RELAY_ALLOW_NETWORKS", value_delimiter = ',', value_name = "CIDR")]
    pub allow_networks: Vec<IpNet>,
    /// Directory for the copy of the endpoint directory (without secrets) that ingest starts from while Postgres
    /// is away
    #[arg(long, env = "RELAY_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

impl Config {
    /// Bytes of a request at most.
    pub fn body_bytes_max(&self) -> usize {
        self.payload_bytes_max + REQUEST_OVERHEAD_BYTES
    }

    /// Bounds of the committer.
    pub fn commit_limits(&self) -> CommitLimits {
        CommitLimits { lag_max: Duration::from_millis(self.lag_ms_max.into()), ..CommitLimits::default() }
    }
}

/// The smallest room that has place for a batch.
const BODIES_BYTES_FLOOR: usize = 32 * 1024 * 1024;
const _: () = assert!(BodyRoom::body_max(BODIES_BYTES_FLOOR) >= batch::BODY_BYTES_MAX);

fn bodies_limit(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|e| format!("{e}"))?;
    if bytes >= BODIES_BYTES_FLOOR { Ok(bytes) } else { Err(format!("must be at least {BODIES_BYTES_FLOOR}")) }
}

fn payload_limit(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|e| format!("{e}"))?;
    if (1..=PAYLOAD_BYTES_CEILING).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("must be between 1 and {PAYLOAD_BYTES_CEILING}"))
    }
}
