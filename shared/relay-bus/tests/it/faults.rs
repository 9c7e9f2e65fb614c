//! Servers that die, streams that are deleted: the bus goes on by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use relay_bus::{Bus, JobSource, PublishError};
use relay_core::subject::Lane;
use tokio_util::sync::CancellationToken;

use crate::server::Server;
use crate::streams::take;

/// Redelivery after a kill takes `ack_wait` (10 s) and the time to connect.
const WITHIN: Duration = Duration::from_secs(60);

async fn next_job(source: &mut JobSource) -> Result<relay_bus::JobMessage> {
    let cancel = CancellationToken::new();
    tokio::time::timeout(WITHIN, source.next(&cancel)).await.context("no job came")?.context("not cancelled")
}

/// Publishes until it is stored, as every caller does after an unknown outcome.
async fn publish_at_last(bus: &Bus, body: &'static str) -> Result<()> {
    let publish = async {
        while let Err(error) = bus.publish_events(body.into()).await {
            assert!(!matches!(error, PublishError::Full(_) | PublishError::Refused(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    Ok(tokio::time::timeout(WITHIN, publish).await?)
}

#[tokio::test]
async fn a_killed_server_loses_nothing_that_is_not_acknowledged() -> Result<()> {
    let mut server = Server::start().await?;
    let bus = server.bus().await?;
    let mut disruption = bus.disruption();
    for n in 0..200u8 {
        bus.publish_events(Bytes::copy_from_slice(&[n])).await?;
    }
    let mut source = bus.events();
    let (mut acked, mut held) = (BTreeSet::new(), Vec::new());
    for message in take(&mut source, 100).await? {
        if message.message.sequence % 2 == 0 {
            message.ack.ack().await;
            acked.insert(message.message.payload[0]);
        } else {
            held.push(message);
        }
    }
    disruption.mark_unchanged();
    server.kill()?;
    tokio::time::timeout(WITHIN, disruption.changed()).await.context("the disruption was not seen")??;
    let refused = bus.publish_events("x".into()).await;
    assert!(matches!(refused, Err(PublishError::Unavailable(_) | PublishError::Unknown(_))), "{refused:?}");
    server.start_again().await?;

    // What was not acknowledged comes again; what was acknowledged may, with a delivery count of 1.
    let mut got = BTreeSet::new();
    while !(0..200).all(|n| acked.contains(&n) || got.contains(&n)) {
        for message in take(&mut source, 1).await? {
            got.insert(message.message.payload[0]);
            message.ack.ack().await;
        }
    }
    drop(held);
    publish_at_last(&bus, "after").await?;
    bus.ping().await?;

    // JOBS may lose its tail with the server (the leases bring it back), and goes on.
    bus.publish_jobs(Lane::Fresh, "after".into()).await?;
    assert_eq!(next_job(&mut bus.jobs(&[Lane::Fresh])).await?.payload, "after");
    Ok(())
}

#[tokio::test]
async fn jobs_published_into_an_outage_arrive_when_it_ends_in_time() -> Result<()> {
    let mut server = Server::start().await?;
    let bus = server.bus().await?;
    let mut source = bus.jobs(&[Lane::Slow]);
    server.kill()?;
    let publishing = {
        let bus = bus.clone();
        tokio::spawn(async move { bus.publish_jobs(Lane::Slow, "late".into()).await })
    };
    server.start_again().await?;
    let published = publishing.await?;
    if published.is_err() {
        // The machine was too slow for the 5 s: the lease would bring it back. Not what this test is about.
        return Ok(());
    }
    assert_eq!(next_job(&mut source).await?.payload, "late");
    Ok(())
}

#[tokio::test]
async fn a_waiting_source_goes_on_after_a_restart() -> Result<()> {
    let mut server = Server::start().await?;
    let bus = server.bus().await?;
    let mut source = bus.events();
    let waiting = tokio::spawn(async move { take(&mut source, 1).await.map(|m| m[0].message.payload.clone()) });
    for _ in 0..2 {
        server.kill()?;
        server.start_again().await?;
    }
    publish_at_last(&bus, "after").await?;
    assert_eq!(waiting.await??, "after");
    Ok(())
}

#[tokio::test]
async fn deleted_streams_and_consumers_are_declared_again() -> Result<()> {
    let server = Server::start().await?;
    let (bus, admin) = (server.bus().await?, server.raw().await?);
    let mut events = bus.events();
    let mut jobs = bus.jobs(&[Lane::Fresh, Lane::Retry]);
    bus.publish_events("one".into()).await?;
    take(&mut events, 1).await?[0].ack.ack_sync().await?;
    bus.publish_jobs(Lane::Retry, "one".into()).await?;
    next_job(&mut jobs).await?.ack.ack_sync().await?;

    for what in ["STREAM.DELETE.EVENTS", "STREAM.DELETE.JOBS", "STREAM.DELETE.EVENTS_IMPORT"] {
        admin.request(format!("$JS.API.{what}"), "".into()).await?;
    }
    bus.publish_events("two".into()).await?;
    bus.publish_jobs(Lane::Retry, "two".into()).await?;
    let message = take(&mut events, 1).await?.remove(0);
    assert_eq!(message.message.payload, "two");
    message.ack.ack_sync().await?;
    let job = next_job(&mut jobs).await?;
    assert_eq!(job.payload, "two");
    job.ack.ack_sync().await?;
    assert!(bus.durability().await?.duplicate_window_zero);

    for what in ["CONSUMER.DELETE.EVENTS.dispatcher", "CONSUMER.DELETE.JOBS.deliverer-retry"] {
        admin.request(format!("$JS.API.{what}"), "".into()).await?;
    }
    bus.publish_events("three".into()).await?;
    bus.publish_jobs(Lane::Retry, "three".into()).await?;
    // A new consumer begins at the start of the stream: nothing is skipped, old ones come again.
    while take(&mut events, 1).await?.iter().all(|m| m.message.payload != "three") {}
    while next_job(&mut jobs).await?.payload != "three" {}
    Ok(())
}

#[tokio::test]
async fn declaring_twice_changes_nothing_and_other_settings_stay() -> Result<()> {
    let server = Server::start().await?;
    let bus = server.bus().await?;
    bus.publish_events("kept".into()).await?;
    let larger = relay_bus::Topology { events_bytes_max: 128 << 20, ..crate::server::small() };
    let small = crate::server::small();
    let (a, b) = tokio::join!(bus.declare(&larger), bus.declare(&small));
    a.and(b)?;
    assert_eq!(take(&mut bus.events(), 1).await?[0].message.payload, "kept");
    Ok(())
}
