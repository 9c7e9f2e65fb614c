//! With Redis there: pods share what they see.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use relay_circuit::Decision;
use relay_core::breaker::{CircuitState, Observation};

use crate::pods::{LASTING, LEASE, Pods, QUICK, endpoint, fail, now, until, until_probe, until_state};

#[tokio::test]
async fn opening_is_shared_and_put_on_record_once() -> Result<()> {
    let pods = Pods::start()?;
    let endpoint = endpoint();
    fail(&pods.a, endpoint, &LASTING, 2);
    assert_eq!(pods.a.decide(endpoint, &LASTING, now()), Decision::Allow);
    fail(&pods.a, endpoint, &LASTING, 1);
    assert!(matches!(pods.a.decide(endpoint, &LASTING, now()), Decision::Refuse { .. }), "its own pod stops at once");
    until_state(&pods.b, endpoint, CircuitState::Open).await?;
    assert_eq!(pods.b.open_endpoints(), [endpoint]);
    let view = pods.b.state(endpoint).until.expect("it is open") - now();
    assert!(view.num_seconds() > 250 && view.num_seconds() <= 360, "{view}");

    // The other pod's late failures change nothing.
    fail(&pods.b, endpoint, &LASTING, 5);
    let mut made = Vec::new();
    until("the opening is on record", || {
        made.extend(pods.a.take_transitions());
        made.extend(pods.b.take_transitions());
        !made.is_empty()
    })
    .await?;
    assert_eq!((made[0].endpoint, made[0].from, made[0].to), (endpoint, CircuitState::Closed, CircuitState::Open));

    let (later, _stop) = pods.another()?;
    until_state(&later, endpoint, CircuitState::Open).await?;
    made.extend(pods.a.take_transitions().into_iter().chain(pods.b.take_transitions()).chain(later.take_transitions()));
    assert_eq!(made.len(), 1, "{made:?}");
    Ok(())
}

#[tokio::test]
async fn failures_of_several_pods_count_together() -> Result<()> {
    let pods = Pods::start()?;
    let (opens, stays) = (endpoint(), endpoint());
    fail(&pods.a, opens, &LASTING, 2);
    fail(&pods.b, opens, &LASTING, 2);
    until_state(&pods.a, opens, CircuitState::Open).await?;
    until_state(&pods.b, opens, CircuitState::Open).await?;

    // A success between them, and reported between them, keeps it closed.
    fail(&pods.a, stays, &LASTING, 2);
    pods.a.observe(stays, &LASTING, Observation::Success, false, now());
    fail(&pods.a, stays, &LASTING, 1);
    fail(&pods.a, opens, &LASTING, 3);
    let marker = endpoint();
    fail(&pods.a, marker, &LASTING, 3);
    until_state(&pods.b, marker, CircuitState::Open).await?;
    assert_eq!(pods.b.state(stays).state, CircuitState::Closed);
    Ok(())
}

#[tokio::test]
async fn half_of_twenty_calls_opens_across_pods() -> Result<()> {
    let pods = Pods::start()?;
    let endpoint = endpoint();
    let rule = relay_core::breaker::CircuitRule { threshold: 100, ..LASTING };
    for circuits in [&pods.a, &pods.b] {
        fail(circuits, endpoint, &rule, 1);
        for n in 0..11 {
            let what = if n % 2 == 0 { Observation::Failure } else { Observation::Success };
            circuits.observe(endpoint, &rule, what, false, now());
        }
    }
    until_state(&pods.a, endpoint, CircuitState::Open).await?;
    until_state(&pods.b, endpoint, CircuitState::Open).await
}

#[tokio::test]
async fn one_of_many_gets_the_probe() -> Result<()> {
    let pods = Pods::start()?;
    let endpoint = endpoint();
    assert!(!pods.a.try_probe(endpoint, LEASE, now()).await, "a closed circuit needs none");
    fail(&pods.a, endpoint, &LASTING, 3);
    until_state(&pods.b, endpoint, CircuitState::Open).await?;
    assert!(!pods.b.try_probe(endpoint, LEASE, now()).await, "not before its time");
    pods.b.half_open(endpoint).await;
    for circuits in [&pods.a, &pods.b] {
        until_probe(circuits, endpoint).await?;
    }
    let racers: Vec<_> = (0..50)
        .map(|n| {
            let circuits = if n % 2 == 0 { pods.a.clone() } else { pods.b.clone() };
            tokio::spawn(async move { circuits.try_probe(endpoint, LEASE, now()).await })
        })
        .collect();
    let mut granted = 0;
    for racer in racers {
        granted += usize::from(racer.await?);
    }
    assert_eq!(granted, 1);
    for circuits in [&pods.a, &pods.b] {
        until_state(circuits, endpoint, CircuitState::HalfOpen).await?;
        assert!(matches!(circuits.decide(endpoint, &LASTING, now()), Decision::Refuse { .. }));
    }
    Ok(())
}

#[tokio::test]
async fn a_probes_success_closes_for_all_and_ramps_up() -> Result<()> {
    let pods = Pods::start()?;
    let endpoint = endpoint();
    fail(&pods.a, endpoint, &QUICK, 3);
    until_probe(&pods.b, endpoint).await?;
    let mut changes = [pods.a.changes(), pods.b.changes()];
    // Redis may see the end of the open time a moment after the pod.
    while !pods.b.try_probe(endpoint, LEASE, now()).await {}
    changes.iter_mut().for_each(tokio::sync::watch::Receiver::mark_unchanged);
    pods.b.observe(endpoint, &QUICK, Observation::Success, true, now());
    for changed in &mut changes {
        tokio::time::timeout(Duration::from_secs(30), changed.changed()).await??;
    }
    until_state(&pods.a, endpoint, CircuitState::Closed).await?;
    assert_eq!(pods.a.decide(endpoint, &QUICK, now()), Decision::Allow);
    assert_eq!(pods.b.decide(endpoint, &QUICK, now()), Decision::Allow);

    let mut allowed = Vec::new();
    while let Some(n) = pods.b.ramp(endpoint) {
        allowed.push(n);
        pods.b.observe(endpoint, &QUICK, Observation::Success, false, now());
    }
    assert_eq!(allowed, [1, 2, 4, 8, 16, 32]);

    let made: BTreeSet<_> = pods
        .a
        .take_transitions()
        .into_iter()
        .chain(pods.b.take_transitions())
        .map(|t| (t.from.as_str(), t.to.as_str()))
        .collect();
    assert_eq!(made, [("closed", "open"), ("open", "half_open"), ("half_open", "closed")].into());
    Ok(())
}

#[tokio::test]
async fn a_failed_probe_opens_again_and_a_lost_one_is_replaced() -> Result<()> {
    let pods = Pods::start()?;
    let (failed, lost) = (endpoint(), endpoint());
    for endpoint in [failed, lost] {
        fail(&pods.a, endpoint, &LASTING, 3);
        until_state(&pods.b, endpoint, CircuitState::Open).await?;
        pods.a.half_open(endpoint).await;
        until_probe(&pods.b, endpoint).await?;
    }
    assert!(pods.b.try_probe(failed, LEASE, now()).await);
    pods.b.observe(failed, &LASTING, Observation::Failure, true, now());
    until_state(&pods.a, failed, CircuitState::Open).await?;
    until("it is open for the whole time", || {
        pods.a.state(failed).until.is_some_and(|until| (until - now()).num_seconds() > 250)
    })
    .await?;

    assert!(pods.a.try_probe(lost, Duration::from_millis(50), now()).await);
    until_probe(&pods.b, lost).await?;
    let mut granted = false;
    while !granted {
        granted = pods.b.try_probe(lost, LEASE, now()).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_wait_holds_all_pods_and_a_replay_ends_it() -> Result<()> {
    let pods = Pods::start()?;
    let endpoint = endpoint();
    let end = now() + Duration::from_secs(600);
    pods.a.wait_until(endpoint, end);
    assert_eq!(pods.a.decide(endpoint, &QUICK, now()), Decision::Refuse { until: end });
    until("the other pod waits too", || matches!(pods.b.decide(endpoint, &QUICK, now()), Decision::Refuse { .. }))
        .await?;
    let (later, _stop) = pods.another()?;
    until("a later pod waits too", || matches!(later.decide(endpoint, &QUICK, now()), Decision::Refuse { .. })).await?;
    assert_eq!(pods.b.state(endpoint).state, CircuitState::Closed);
    pods.b.half_open(endpoint).await;
    until("nobody waits", || pods.a.decide(endpoint, &QUICK, now()) == Decision::Allow).await
}
