//! The opinion that pods share: keys and scripts in Redis. All times that cross the wire are durations, so that no
//! clock of a pod matters.
//!
//! Keys: `<prefix>:{<endpoint>}` a hash per endpoint in trouble; `<prefix>:open`, `<prefix>:probes`,
//! `<prefix>:waits` sorted sets of endpoints by the time in milliseconds when that ends; `<prefix>:born` a random
//! value that is gone when Redis lost its memory; `<prefix>:rate:{<endpoint>}` a hash per endpoint with a rate limit that is
//! in use; channel `<prefix>:changes`. One Redis, not a Redis Cluster: the scripts
//! touch hashes and sets together.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Script};
use relay_core::breaker::{CALLS_MIN, FAILURE_PERCENT, Observation};
use relay_core::ids::EndpointId;
use relay_core::rate::{BATCH_US, Lease, RESERVE_US, RateLimit};
use uuid::Uuid;

use crate::error::CircuitError;
use crate::report::Report;

/// Time for one command of the background work.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for a lease, of a probe or of tokens: somebody waits to send.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// State is kept for this long after it has run out. Running out is never a change of state.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// A pod that asked for tokens within this time counts among those that share the limit.
const PODS_FOR: Duration = Duration::from_secs(10);
/// Parts that the window is counted in.
const PARTS: u32 = 12;
/// Endpoints reported in one call, which holds Redis for about 10 µs each.
pub(crate) const REPORTS_MAX: usize = 64;

/// What Redis says that a circuit does; the time is what is left of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    Closed,
    Open(Duration),
    Probing(Duration),
}

impl Word {
    fn read(word: &str, ms: i64) -> Self {
        let left = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        match word {
            "open" => Self::Open(left),
            "probing" => Self::Probing(left),
            _ => Self::Closed,
        }
    }
}

/// The answer to who asks for the probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Grant {
    Refused,
    /// The first of this open time.
    First,
    /// The one before it was lost.
    AfterLost,
}

/// What Redis made of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// This report changed the state: whether it was open (or probed) before.
    pub changed_from_open: Option<bool>,
    pub word: Word,
}

/// All that is open, probed or waited for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub born: String,
    pub open: Vec<(EndpointId, Duration)>,
    pub probes: Vec<(EndpointId, Duration)>,
    pub waits: Vec<(EndpointId, Duration)>,
}

struct Keys {
    open: String,
    probes: String,
    waits: String,
    born: String,
    channel: String,
    prefix: String,
}

impl Keys {
    fn hash(&self, endpoint: EndpointId) -> String {
        format!("{}:{{{endpoint}}}", self.prefix)
    }

    fn bucket(&self, endpoint: EndpointId) -> String {
        format!("{}:rate:{{{endpoint}}}", self.prefix)
    }
}

/// Redis, as far as circuits need it.
pub(crate) struct Shared {
    client: Client,
    connection: ConnectionManager,
    keys: Keys,
    report: Script,
    probe: Script,
    half_open: Script,
    lease: Script,
}

impl Shared {
    /// Connects with the first command, and again after every failure.
    pub fn new(url: &str, prefix: &str) -> Result<Self, CircuitError> {
        let client = Client::open(url).map_err(|e| CircuitError::Url(e.to_string()))?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(RESPONSE_TIMEOUT));
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        let key = |name: &str| format!("{prefix}:{name}");
        Ok(Self {
            client,
            connection,
            keys: Keys {
                open: key("open"),
                probes: key("probes"),
                waits: key("waits"),
                born: key("born"),
                channel: key("changes"),
                prefix: prefix.to_owned(),
            },
            report: script(include_str!("scripts/report.lua")),
            probe: script(include_str!("scripts/probe.lua")),
            half_open: script(include_str!("scripts/half_open.lua")),
            lease: Script::new(include_str!("scripts/lease.lua")),
        })
    }

    pub fn channel(&self) -> &str {
        &self.keys.channel
    }

    pub async fn ping(&self) -> Result<(), CircuitError> {
        let mut connection = self.connection.clone();
        in_time(RESPONSE_TIMEOUT, redis::cmd("PING").exec_async(&mut connection)).await
    }

    /// A connection that hears of changes.
    pub async fn listen(&self) -> Result<redis::aio::PubSub, CircuitError> {
        in_time(RESPONSE_TIMEOUT, async {
            let mut listener = self.client.get_async_pubsub().await?;
            listener.subscribe(self.channel()).await?;
            Ok(listener)
        })
        .await
    }

    /// Reports at most [`REPORTS_MAX`] endpoints; one reply for each. `left` turns a time into what is left of it.
    pub async fn report(
        &self,
        reports: &[(EndpointId, Report)],
        left: impl Fn(chrono::DateTime<chrono::Utc>) -> u64,
    ) -> Result<Vec<Reply>, CircuitError> {
        let mut call = self.report.prepare_invoke();
        call.key(&self.keys.open).key(&self.keys.probes).key(&self.keys.waits);
        call.arg(self.channel()).arg(millis(KEEP)).arg(CALLS_MIN).arg(FAILURE_PERCENT).arg(PARTS);
        for (endpoint, report) in reports {
            let probe = match report.probe {
                Some(Observation::Success) => "success",
                Some(Observation::Failure) => "failure",
                None => "",
            };
            call.key(self.keys.hash(*endpoint));
            call.arg(endpoint.to_string())
                .arg(report.calls)
                .arg(report.failures)
                .arg(u8::from(report.had_success))
                .arg(report.trailing)
                .arg(report.rule.threshold)
                .arg(millis(report.rule.window))
                .arg(millis(report.open_time))
                .arg(u8::from(report.opens))
                .arg(probe)
                .arg(report.wait_until.map_or(0, &left))
                // What has run out but isn't probed yet is restored as ending now.
                .arg(report.restore_until.map_or(0, |until| left(until).max(1)));
        }
        let mut connection = self.connection.clone();
        let replies: Vec<(u8, u8, String, i64)> = in_time(RESPONSE_TIMEOUT, call.invoke_async(&mut connection)).await?;
        let reply = |(changed, was_open, word, ms): (u8, u8, String, i64)| Reply {
            changed_from_open: (changed == 1).then_some(was_open == 1),
            word: Word::read(&word, ms),
        };
        Ok(replies.into_iter().map(reply).collect())
    }

    /// Asks for the one probe.
    pub async fn probe(&self, endpoint: EndpointId, lease: Duration) -> Result<(Grant, Word), CircuitError> {
        let mut call = self.probe.prepare_invoke();
        call.key(self.keys.hash(endpoint)).key(&self.keys.probes);
        call.arg(endpoint.to_string()).arg(self.channel()).arg(millis(lease)).arg(millis(KEEP));
        let mut connection = self.connection.clone();
        let (granted, word, ms): (u8, String, i64) = in_time(PROBE_TIMEOUT, call.invoke_async(&mut connection)).await?;
        let grant = match granted {
            0 => Grant::Refused,
            1 => Grant::First,
            _ => Grant::AfterLost,
        };
        Ok((grant, Word::read(&word, ms)))
    }

    /// Ends an open time now.
    pub async fn half_open(&self, endpoint: EndpointId) -> Result<bool, CircuitError> {
        let mut call = self.half_open.prepare_invoke();
        call.key(self.keys.hash(endpoint)).key(&self.keys.open).key(&self.keys.probes).key(&self.keys.waits);
        call.arg(endpoint.to_string()).arg(self.channel());
        let mut connection = self.connection.clone();
        let was_open: u8 = in_time(RESPONSE_TIMEOUT, call.invoke_async(&mut connection)).await?;
        Ok(was_open == 1)
    }

    /// Leases tokens of a rate limit; with them, how many pods share it.
    pub async fn lease(
        &self,
        endpoint: EndpointId,
        limit: &RateLimit,
        wanted: u32,
        pod: &str,
    ) -> Result<(Lease, u32), CircuitError> {
        let mut call = self.lease.prepare_invoke();
        call.key(self.keys.bucket(endpoint));
        call.arg(pod).arg(limit.interval_us()).arg(limit.burst).arg(wanted);
        call.arg(RESERVE_US).arg(BATCH_US).arg(u64::try_from(PODS_FOR.as_micros()).unwrap_or(u64::MAX));
        let mut connection = self.connection.clone();
        let (count, first_us, pods) = in_time(PROBE_TIMEOUT, call.invoke_async(&mut connection)).await?;
        Ok((Lease { count, first_us }, pods))
    }

    /// Reads all that is known.
    pub async fn poll(&self) -> Result<Known, CircuitError> {
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("SET").arg(&self.keys.born).arg(new_memory()).arg("NX").ignore();
        pipe.cmd("GET").arg(&self.keys.born);
        pipe.cmd("TIME");
        for set in [&self.keys.open, &self.keys.probes, &self.keys.waits] {
            pipe.cmd("ZRANGE").arg(set).arg(0).arg(-1).arg("WITHSCORES");
        }
        type Set = Vec<(String, f64)>;
        let mut connection = self.connection.clone();
        let (born, (seconds, micros), open, probes, waits): (String, (u64, u64), Set, Set, Set) =
            in_time(RESPONSE_TIMEOUT, pipe.query_async(&mut connection)).await?;
        let now = seconds * 1000 + micros / 1000;
        let left = |set: Set| {
            set.into_iter()
                .filter_map(|(endpoint, at)| {
                    let left = Duration::try_from_secs_f64((at - now as f64) / 1000.0).unwrap_or_default();
                    Some((endpoint.parse().ok()?, left))
                })
                .collect()
        };
        Ok(Known { born, open: left(open), probes: left(probes), waits: left(waits) })
    }

    /// Removes what has run out from the sets.
    pub async fn sweep(&self) -> Result<(), CircuitError> {
        let mut connection = self.connection.clone();
        in_time(RESPONSE_TIMEOUT, async {
            let (seconds, _): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await?;
            let now = seconds * 1000;
            let mut pipe = redis::pipe();
            for (set, until) in
                [(&self.keys.probes, now), (&self.keys.waits, now), (&self.keys.open, now.saturating_sub(millis(KEEP)))]
            {
                pipe.cmd("ZREMRANGEBYSCORE").arg(set).arg("-inf").arg(until).ignore();
            }
            pipe.exec_async(&mut connection).await
        })
        .await
    }
}

/// The mark of a Redis that has no memory yet.
#[expect(clippy::disallowed_methods, reason = "an adapter knows the core alone; this is no id that is stored")]
fn new_memory() -> String {
    Uuid::from_u128(rand::random()).to_string()
}

fn script(code: &str) -> Script {
    Script::new(&format!("{}\n{code}", include_str!("scripts/common.lua")))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn in_time<T>(limit: Duration, command: impl Future<Output = redis::RedisResult<T>>) -> Result<T, CircuitError> {
    tokio::time::timeout(limit, command)
        .await
        .map_err(|_| CircuitError::Unreachable(format!("no answer within {limit:?}")))?
        .map_err(CircuitError::from)
}
