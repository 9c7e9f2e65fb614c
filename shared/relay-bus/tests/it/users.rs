//! The bus with the permissions that are shipped: each service's user may do what its service does.

use std::collections::BTreeSet;

use anyhow::Result;
use bytes::Bytes;
use relay_bus::{Bus, BusOptions, Topology};
use relay_core::shard::STREAMS_MAX;
use relay_core::subject::Lane;
use relay_testkit::{ServerKind, TestServers};
use tokio_util::sync::CancellationToken;

use crate::server::small;
use crate::streams::take;

async fn bus(servers: &TestServers, user: &str) -> Result<Bus> {
    let url = servers.nats_url_of(user).expect("it is one of the users");
    Ok(Bus::connect(BusOptions { url, name: user.to_owned() }).await?)
}

#[tokio::test]
async fn every_service_may_do_its_work() -> Result<()> {
    let servers = TestServers::start(&[ServerKind::Nats])?;
    let (ingest, dispatcher, deliverer) =
        (bus(&servers, "ingest").await?, bus(&servers, "dispatcher").await?, bus(&servers, "deliverer").await?);
    for bus in [&ingest, &dispatcher, &deliverer] {
        bus.declare(&small()).await?;
        bus.ping().await?;
        let durability = bus.durability().await?;
        assert_eq!((durability.sync_always, durability.duplicate_window_zero), (Some(true), true));
    }

    ingest.publish_events("bundle".into()).await?;
    let producer = async_nats::connect(servers.nats_producer_url().expect("NATS runs")).await?;
    let answer = producer.request("relay.events.default.order.created", "{}".into()).await?;
    assert!(std::str::from_utf8(&answer.payload)?.contains("\"seq\":2"), "{answer:?}");
    let mut events = dispatcher.events();
    let messages = take(&mut events, 2).await?;
    assert_eq!(
        (messages[0].message.payload.as_ref(), messages[1].message.subject.as_str()),
        (&b"bundle"[..], "relay.events.default.order.created")
    );
    for message in messages {
        message.ack.ack_sync().await?;
    }

    dispatcher.publish_jobs(Lane::Fresh, "jobs".into()).await?;
    let mut jobs = deliverer.jobs(&[Lane::Fresh]);
    let job = jobs.next(&CancellationToken::new()).await.expect("not cancelled");
    assert_eq!(job.payload, "jobs");
    job.ack.ack_sync().await?;
    deliverer.publish_letter_hint(None, "malformed", Bytes::new());
    deliverer.hint("relay.hint.full", Bytes::new()).await;
    dispatcher.purge_history(std::time::Duration::ZERO, 0).await?;
    assert_eq!(dispatcher.events_lag().await?, relay_bus::Lag::default());
    assert_eq!(dispatcher.jobs_lag(Lane::Fresh).await?, relay_bus::Lag::default());
    Ok(())
}

/// The same over several streams: the dispatcher makes them and says which are used; the others find them.
#[tokio::test]
async fn every_service_may_do_its_work_on_every_stream() -> Result<()> {
    let servers = TestServers::start(&[ServerKind::Nats])?;
    let (ingest, dispatcher, deliverer, relay) = (
        bus(&servers, "ingest").await?,
        bus(&servers, "dispatcher").await?,
        bus(&servers, "deliverer").await?,
        bus(&servers, "relay").await?,
    );
    let of = |streams| Topology { event_streams: streams, job_streams: streams, ..small() };
    dispatcher.declare(&of(STREAMS_MAX)).await?;
    for bus in [&ingest, &deliverer] {
        bus.declare_missing().await?;
    }
    let n = usize::from(STREAMS_MAX);
    for _ in 0..n {
        ingest.publish_events("bundle".into()).await?;
        dispatcher.publish_jobs(Lane::Retry, "jobs".into()).await?;
    }
    let messages = take(&mut dispatcher.events(), n).await?;
    let streams: BTreeSet<_> = messages.iter().map(|m| m.message.stream).collect();
    assert_eq!(streams.len(), n, "{streams:?}");
    for message in messages {
        message.ack.ack_sync().await?;
    }
    let mut jobs = deliverer.jobs(&[Lane::Retry]);
    for _ in 0..n {
        jobs.next(&CancellationToken::new()).await.expect("not cancelled").ack.ack_sync().await?;
    }
    for held in relay.retained().await? {
        assert_eq!(relay.retained_part(held.shard, 1, held.last, 10).await?.messages.len(), 1, "{held:?}");
    }
    dispatcher.declare(&of(1)).await?;
    dispatcher.purge_history(std::time::Duration::ZERO, 0).await?;
    let unused = relay.unused().await?;
    assert!(unused.len() == 2 * n - 2 && unused.iter().all(|u| u.messages == 0), "{unused:?}");
    // The all-in-one's user may decide too.
    relay.declare(&of(2)).await?;
    assert_eq!(relay.unused().await?.len(), 2 * n - 4);
    Ok(())
}
