//! An endpoint: where a tenant wants its events, and how they are to be delivered. Parsed values only: what
//! is here has passed the checks of the REST interface, or came from our own rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;

use crate::breaker::CircuitRule;
use crate::ids::{EndpointId, TenantId};
use crate::matching::TypeFilter;
use crate::mutation::{self, Safety};
use crate::rate::RateLimit;
use crate::retry::Schedule;
use crate::sealing::Withheld;
use crate::signature::{Schemes, SigningKey, SigningSecret};

/// The type of the events that the test route sends, unless told otherwise.
pub const TEST_EVENT_TYPE: &str = "webhook.test";

/// What a lease adds to the endpoint's time-out: room for queueing, the record statement and its retries.
pub const LEASE_MARGIN: Duration = Duration::from_secs(30);

/// Limits of the fields, as the REST interface documents them.
pub mod limits {
    use std::ops::RangeInclusive;

    /// Characters of a name.
    pub const NAME_CHARS: RangeInclusive<usize> = 1..=255;
    /// Attempts in all.
    pub const MAX_RETRIES: RangeInclusive<u32> = 1..=20;
    /// Multiplier of the delays.
    pub const RETRY_BACKOFF_BASE: RangeInclusive<f64> = 1.0..=10.0;
    /// Cap of the delays, in seconds.
    pub const RETRY_MAX_DELAY_SECONDS: RangeInclusive<u32> = 60..=86_400;
    /// Time-out of one attempt, in seconds.
    pub const TIMEOUT_SECONDS: RangeInclusive<u32> = 5..=120;
    /// Entries of an explicit schedule.
    pub const SCHEDULE_LEN: RangeInclusive<usize> = 1..=19;
    /// One delay of an explicit schedule, in seconds.
    pub const SCHEDULE_DELAY_SECONDS: RangeInclusive<u32> = 0..=86_400;
    /// Failures that open the circuit.
    pub const CIRCUIT_THRESHOLD: RangeInclusive<u32> = 1..=100;
    /// Window of those failures, and time until a probe, in seconds.
    pub const CIRCUIT_SECONDS: RangeInclusive<u32> = 1..=3600;
    /// Requests per second of a rate limit.
    pub const RATE_PER_SECOND: RangeInclusive<f64> = 0.1..=10_000.0;
    /// Requests that may come at once within a rate limit.
    pub const RATE_BURST: RangeInclusive<u32> = 1..=10_000;
    /// Active endpoints of one tenant.
    pub const ACTIVE_ENDPOINTS_MAX: usize = 20_000;
}

/// How failed attempts are repeated, as the user gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySettings {
    /// Attempts in all (1-20).
    pub max_retries: u32,
    /// Multiplier (1-10).
    pub backoff_base: f64,
    /// Cap of a delay, in seconds.
    pub max_delay_seconds: u32,
    /// Explicit delays in seconds, which replace the formula.
    pub schedule_seconds: Option<Vec<u32>>,
}

impl RetrySettings {
    /// The schedule that these settings mean.
    pub fn schedule(&self) -> Schedule {
        match &self.schedule_seconds {
            Some(delays) => {
                Schedule::Explicit { delays: delays.iter().map(|s| Duration::from_secs(u64::from(*s))).collect() }
            }
            None => Schedule::Formula {
                max_attempts: self.max_retries,
                base: self.backoff_base,
                cap: Duration::from_secs(u64::from(self.max_delay_seconds)),
            },
        }
    }
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { max_retries: 5, backoff_base: 2.0, max_delay_seconds: 3600, schedule_seconds: None }
    }
}

/// The secrets of an endpoint: they sign its deliveries, or go with them. `Debug` hides them.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// Signs first.
    pub current: SigningSecret,
    /// The key pair for the scheme that needs one.
    pub key: Option<SigningKey>,
    /// What signs as well during a rotation's overlap.
    pub previous: Option<PreviousSecrets>,
    /// When the current secret came in (creation or rotation): 401 and 403 shortly after are retried.
    pub rotated_at: Option<DateTime<Utc>>,
    /// Values of the custom headers that are marked secret, by name.
    pub headers: BTreeMap<String, SecretString>,
}

impl Secrets {
    /// One secret, and nothing else.
    pub fn of(current: SigningSecret) -> Self {
        Self { current, key: None, previous: None, rotated_at: None, headers: BTreeMap::new() }
    }
}

/// What signed before a rotation.
#[derive(Clone, Debug)]
pub struct PreviousSecrets {
    /// The secret.
    pub secret: SigningSecret,
    /// The key pair, where there was one.
    pub key: Option<SigningKey>,
    /// Until when they sign.
    pub until: DateTime<Utc>,
}

/// An endpoint, as the directory holds it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// Where to POST. Checked when saved, and again at every connect.
    pub url: String,
    /// Which event types it wants.
    pub filter: TypeFilter,
    /// Headers that go with each delivery, but for the secret ones.
    pub custom_headers: BTreeMap<String, String>,
    /// Names of the custom headers whose values are secret.
    pub secret_headers: BTreeSet<String>,
    /// How failures are repeated.
    pub retry: RetrySettings,
    /// Time-out of one attempt.
    pub timeout: Duration,
    /// When its circuit opens and closes.
    pub circuit: CircuitRule,
    /// How often it may be called, by all pods together.
    pub rate_limit: Option<RateLimit>,
    /// Which signatures its deliveries carry.
    pub schemes: Schemes,
    /// Signing secrets and secret headers, or why this process doesn't have them: then nothing can be sent from here.
    pub secrets: Result<Secrets, Withheld>,
    /// Inactive endpoints match nothing; what waits for them becomes dead letters.
    pub is_active: bool,
    /// Paused endpoints match, but their deliveries wait.
    pub paused: bool,
    /// A resume is under way: what was accepted before this time is being discarded, and the endpoint stays paused
    /// until that is done.
    pub discard_before: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: Option<DateTime<Utc>>,
    /// The tenant's directory version that its last change made.
    pub version: i64,
}

impl Endpoint {
    /// Whether an event that is addressed to this endpoint is of a type that it takes. Test events pass any filter.
    pub fn takes(&self, event_type: &str) -> bool {
        event_type == TEST_EVENT_TYPE || self.filter.matches(event_type)
    }

    /// How long a claim holds a delivery to this endpoint: its time-out and [`LEASE_MARGIN`].
    pub fn lease(&self) -> Duration {
        let broken = mutation::is_broken(Safety::Lease);
        self.timeout + if broken { LEASE_MARGIN * 1_000 } else { LEASE_MARGIN }
    }
}
