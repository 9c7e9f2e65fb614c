//! What the tests share: a Redis, some pods on it, and waiting for what they come to know.

use std::time::Duration;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use relay_circuit::{Circuits, Decision};
use relay_core::breaker::{CircuitRule, CircuitState, Observation};
use relay_core::ids::EndpointId;
use relay_testkit::{ServerKind, TestServers};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

const WITHIN: Duration = Duration::from_secs(30);
pub const LEASE: Duration = Duration::from_secs(40);

/// Opens after three failures, for a tenth of a second or a little more.
pub const QUICK: CircuitRule =
    CircuitRule { threshold: 3, window: Duration::from_secs(60), recovery: Duration::from_millis(100) };
/// The same, and stays open.
pub const LASTING: CircuitRule = CircuitRule { recovery: Duration::from_secs(300), ..QUICK };

pub struct Pods {
    pub servers: TestServers,
    pub a: Circuits,
    pub b: Circuits,
    _stop: DropGuard,
}

impl Pods {
    pub fn start() -> Result<Self> {
        let servers = TestServers::start(&[ServerKind::Redis])?;
        let stop = CancellationToken::new();
        let pod = |name: &str| -> Result<Circuits> {
            let circuits = Circuits::connect(&servers.redis(), name.to_owned())?;
            tokio::spawn(circuits.clone().run(stop.clone()));
            Ok(circuits)
        };
        let (a, b) = (pod("a")?, pod("b")?);
        Ok(Self { servers, a, b, _stop: stop.drop_guard() })
    }

    /// Another pod, which comes later.
    pub fn another(&self) -> Result<(Circuits, DropGuard)> {
        let stop = CancellationToken::new();
        let circuits = Circuits::connect(&self.servers.redis(), "later".to_owned())?;
        tokio::spawn(circuits.clone().run(stop.clone()));
        Ok((circuits, stop.drop_guard()))
    }

    pub async fn redis(&self) -> Result<redis::aio::MultiplexedConnection> {
        Ok(redis::Client::open(self.servers.redis())?.get_multiplexed_async_connection().await?)
    }
}

#[expect(clippy::disallowed_methods, reason = "the server counts real time, so the test does")]
pub fn now() -> DateTime<Utc> {
    std::time::SystemTime::now().into()
}

#[expect(clippy::disallowed_methods, reason = "any endpoint will do")]
pub fn endpoint() -> EndpointId {
    EndpointId(Uuid::from_u128(rand::random()))
}

pub fn fail(circuits: &Circuits, endpoint: EndpointId, rule: &CircuitRule, times: u32) {
    (0..times).for_each(|_| circuits.observe(endpoint, rule, Observation::Failure, false, now()));
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    while !is_so() {
        if Instant::now() > deadline {
            bail!("still not so: {what}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

pub async fn until_state(circuits: &Circuits, endpoint: EndpointId, state: CircuitState) -> Result<()> {
    until(&format!("{endpoint} is {}", state.as_str()), || circuits.state(endpoint).state == state).await
}

pub async fn until_probe(circuits: &Circuits, endpoint: EndpointId) -> Result<()> {
    until("a probe may go", || circuits.decide(endpoint, &QUICK, now()) == Decision::Probe).await
}
