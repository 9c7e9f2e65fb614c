//! What a user can set of the deliverer.

use std::time::Duration;

use relay_core::address::Network;
use relay_core::lanes::LaneLimits;
use relay_runtime::flags::SecretString;

/// Settings of the deliverer.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Requests in flight at once
    #[arg(long, env = "RELAY_IN_FLIGHT_MAX", default_value_t = LaneLimits::default().global_in_flight)]
    pub in_flight_max: usize,
    /// Requests in flight at once to one endpoint
    #[arg(long, env = "RELAY_ENDPOINT_IN_FLIGHT_MAX", default_value_t = LaneLimits::default().endpoint_max)]
    pub endpoint_in_flight_max: usize,
    /// Jobs that this process holds at most, waiting or in flight
    #[arg(long, env = "RELAY_JOBS_HELD_MAX", default_value_t = 32 * 1024)]
    pub jobs_held_max: usize,
    /// Bytes of jobs that this process holds at most
    #[arg(long, env = "RELAY_JOBS_HELD_BYTES_MAX", default_value_t = 256 * 1024 * 1024)]
    pub jobs_held_bytes_max: usize,
    /// Networks that endpoints may lie in although they are private, loopback or special. No flag of its own: the
    /// process that flattens these settings has one, which the REST interface uses too
    #[arg(skip)]
    pub allow_networks: Vec<Network>,
    /// HTTP proxy through which all deliveries leave, e.g. http://user:password@proxy:3128. It resolves the names, so it
    /// must refuse inner addresses [env: RELAY_EGRESS_PROXY or RELAY_EGRESS_PROXY_FILE]
    #[arg(long, value_name = "URL")]
    pub egress_proxy: Option<SecretString>,
    /// Seconds that requests in flight get to finish when the process is told to stop; what lasts longer is cut short,
    /// recorded, and sent again later
    #[arg(long, env = "RELAY_IN_FLIGHT_GRACE_SECONDS", default_value_t = 20)]
    pub in_flight_grace_seconds: u64,
}

impl Config {
    /// Limits of the queues.
    pub(crate) fn lane_limits(&self) -> LaneLimits {
        LaneLimits {
            global_in_flight: self.in_flight_max.max(1),
            endpoint_max: self.endpoint_in_flight_max.max(1),
            ..LaneLimits::default()
        }
    }

    /// How long requests in flight get after the order to stop.
    pub(crate) fn in_flight_grace(&self) -> Duration {
        Duration::from_secs(self.in_flight_grace_seconds)
    }
}
