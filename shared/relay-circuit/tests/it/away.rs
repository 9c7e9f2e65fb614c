//! Without Redis, and with one that lost its memory: decisions go on.

use anyhow::Result;
use relay_circuit::{Circuits, Decision};
use relay_core::breaker::{CircuitState, Observation};
use relay_testkit::{ServerKind, Signal};

use crate::pods::{LASTING, LEASE, Pods, QUICK, endpoint, fail, now, until, until_probe, until_state};

#[tokio::test]
async fn what_redis_forgets_is_told_to_it_again() -> Result<()> {
    let pods = Pods::start()?;
    let (open, waits) = (endpoint(), endpoint());
    fail(&pods.a, open, &LASTING, 3);
    pods.a.wait_until(waits, now() + std::time::Duration::from_secs(600));
    until_state(&pods.b, open, CircuitState::Open).await?;
    let mut connection = pods.redis().await?;
    // Both pods have read Redis once, so they know which memory it was.
    until_read(&pods, &mut connection).await?;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await?;
    until_read(&pods, &mut connection).await?;
    let (later, _stop) = pods.another()?;
    until_state(&later, open, CircuitState::Open).await?;
    until("the wait is known too", || matches!(later.decide(waits, &LASTING, now()), Decision::Refuse { .. })).await?;
    for circuits in [&pods.a, &pods.b] {
        assert!(matches!(circuits.decide(open, &LASTING, now()), Decision::Refuse { .. }));
        assert_eq!(circuits.state(open).state, CircuitState::Open);
    }
    Ok(())
}

/// Waits until each pod has read everything twice from now on, as the server's statistics show.
async fn until_read(pods: &Pods, connection: &mut redis::aio::MultiplexedConnection) -> Result<()> {
    async fn reads(connection: &mut redis::aio::MultiplexedConnection) -> Result<u64> {
        let text: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await?;
        let calls = text.split("cmdstat_zrange:calls=").nth(1).and_then(|rest| rest.split(',').next());
        Ok(calls.map_or(Ok(0), str::parse)?)
    }
    let _alive = &pods.a;
    let enough = reads(connection).await? + 2 * 2 * 3;
    while reads(connection).await? < enough {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn without_redis_a_pod_goes_by_its_own_counts() -> Result<()> {
    let mut pods = Pods::start()?;
    let endpoint = endpoint();
    pods.a.ping().await?;
    pods.servers.stop_server(ServerKind::Redis, Signal::Kill)?;
    assert!(pods.a.ping().await.is_err());
    fail(&pods.a, endpoint, &QUICK, 3);
    assert!(matches!(pods.a.decide(endpoint, &QUICK, now()), Decision::Refuse { .. }));
    assert_eq!(pods.b.decide(endpoint, &QUICK, now()), Decision::Allow, "each pod for itself");
    until_probe(&pods.a, endpoint).await?;
    assert!(pods.a.try_probe(endpoint, LEASE, now()).await);
    assert!(!pods.a.try_probe(endpoint, LEASE, now()).await, "one probe");
    pods.a.observe(endpoint, &QUICK, Observation::Failure, true, now());
    until_probe(&pods.a, endpoint).await?;
    assert!(pods.a.try_probe(endpoint, LEASE, now()).await);
    pods.a.observe(endpoint, &QUICK, Observation::Success, true, now());
    assert_eq!(pods.a.decide(endpoint, &QUICK, now()), Decision::Allow);
    let mut made = Vec::new();
    until("all of it is on record", || {
        made.extend(pods.a.take_transitions().into_iter().map(|t| (t.from.as_str(), t.to.as_str())));
        made.contains(&("half_open", "closed"))
    })
    .await?;
    assert!(made.contains(&("closed", "open")) && made.contains(&("half_open", "open")), "{made:?}");

    // Opened while Redis was away, and shared when it is back.
    let opened = crate::pods::endpoint();
    fail(&pods.a, opened, &LASTING, 3);
    pods.servers.start_server(ServerKind::Redis)?;
    until_state(&pods.b, opened, CircuitState::Open).await?;
    assert_eq!(pods.b.state(endpoint).state, CircuitState::Closed);
    Ok(())
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_learns_what_is_open() -> Result<()> {
    let mut pods = Pods::start()?;
    let endpoint = endpoint();
    fail(&pods.a, endpoint, &LASTING, 3);
    until_state(&pods.b, endpoint, CircuitState::Open).await?;
    let mut connection = pods.redis().await?;
    until_read(&pods, &mut connection).await?;
    pods.servers.kill_and_restart(ServerKind::Redis)?;
    let (later, _stop) = pods.another()?;
    until_state(&later, endpoint, CircuitState::Open).await?;
    assert_eq!(pods.a.state(endpoint).state, CircuitState::Open);
    Ok(())
}

#[tokio::test]
async fn only_an_address_that_cannot_be_read_fails() {
    assert!(Circuits::connect("nonsense", "a".to_owned()).is_err());
    let circuits = Circuits::connect("redis://127.0.0.1:1/", "a".to_owned()).expect("it need not be there");
    assert!(circuits.ping().await.is_err());
    assert_eq!(circuits.decide(endpoint(), &QUICK, now()), Decision::Allow);
}
