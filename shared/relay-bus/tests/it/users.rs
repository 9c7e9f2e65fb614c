//! The bus with the permissions that are shipped: each service's user may do what its service does.

use anyhow::Result;
use bytes::Bytes;
use relay_bus::{Bus, BusOptions};
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
