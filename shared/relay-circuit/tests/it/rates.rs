//! Rate limits that pods keep together.

use anyhow::Result;
use relay_core::rate::{BATCH_US, Lease, RESERVE_US, RateLimit};
use relay_testkit::{ServerKind, Signal};

use crate::pods::{Pods, endpoint};

#[tokio::test]
async fn pods_take_turns_at_one_limit() -> Result<()> {
    let pods = Pods::start()?;
    let (endpoint, other) = (endpoint(), endpoint());
    let limit = RateLimit { per_second: 2.0, burst: 3 };
    let (first, pods_then) = pods.a.lease_tokens(endpoint, &limit, 2).await.expect("Redis is there");
    assert_eq!((first, pods_then), (Lease { count: 2, first_us: -1_000_000 }, 1));
    // One is left of the burst, the next comes half a second after it.
    let (second, pods_then) = pods.b.lease_tokens(endpoint, &limit, 1).await.expect("Redis is there");
    assert_eq!((second.count, pods_then), (1, 2));
    assert!((-1_000_000..=0).contains(&second.first_us), "{second:?}");
    let (third, _) = pods.a.lease_tokens(endpoint, &limit, 1).await.expect("Redis is there");
    assert!(third.count == 1 && third.first_us > second.first_us, "{third:?}");
    let mut last = third;
    while last.count > 0 {
        (last, _) = pods.b.lease_tokens(endpoint, &limit, 1).await.expect("Redis is there");
    }
    assert!(last.first_us > RESERVE_US, "too far ahead: {last:?}");
    let (apart, pods_then) = pods.a.lease_tokens(other, &limit, 3).await.expect("Redis is there");
    assert_eq!((apart.count, pods_then), (3, 1), "each endpoint for itself");
    // A limit that was raised counts at once, but for what is leased already.
    let raised = RateLimit { per_second: 1000.0, burst: 3 };
    let (soon, _) = pods.a.lease_tokens(endpoint, &raised, 1).await.expect("Redis is there");
    assert!(soon.first_us <= RESERVE_US + BATCH_US + 1000, "{soon:?}");
    Ok(())
}

#[tokio::test]
async fn without_redis_there_are_no_common_tokens() -> Result<()> {
    let mut pods = Pods::start()?;
    let limit = RateLimit { per_second: 2.0, burst: 3 };
    pods.servers.stop_server(ServerKind::Redis, Signal::Kill)?;
    assert_eq!(pods.a.lease_tokens(endpoint(), &limit, 1).await, None);
    Ok(())
}
