//! What the streams do with messages: de-duplication, refusal, redelivery, history, hints.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use relay_bus::{Bus, EventMessage, EventSource, Lag, PublishError, Topology};
use relay_core::ids::TenantId;
use relay_core::subject::{HEADER_ENDPOINT, HEADER_MSG_ID, HEADER_SUSPECT, HEADER_TRACE, Lane};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::server::{Server, small};

const WITHIN: Duration = Duration::from_secs(60);

/// Publishes as a producer would and returns JetStream's answer.
pub async fn publish(client: &Client, subject: &str, headers: &[(&str, &str)], body: &'static str) -> Result<Value> {
    let mut map = HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.insert(*name, *value));
    let answer = client.request_with_headers(subject.to_owned(), map, body.into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}

/// Takes messages until there are `n`.
pub async fn take(source: &mut EventSource, n: usize) -> Result<Vec<EventMessage>> {
    let cancel = CancellationToken::new();
    let mut taken = Vec::new();
    while taken.len() < n {
        taken.extend(tokio::time::timeout(WITHIN, source.next(1000, &cancel)).await.context("no message came")?);
    }
    Ok(taken)
}

/// Waits for what a bus says of its consumers.
async fn wait_for_lag(bus: &Bus, wanted: Lag) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    while Instant::now() < deadline {
        if bus.events_lag().await? == wanted {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("the lag is {:?}, not {wanted:?}", bus.events_lag().await?)
}

async fn state(client: &Client, stream: &str) -> Result<Value> {
    let answer = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await?;
    let mut info: Value = serde_json::from_slice(&answer.payload)?;
    Ok(info["state"].take())
}

#[tokio::test]
async fn equal_message_ids_of_two_tenants_and_two_endpoints_are_all_stored() -> Result<()> {
    let server = Server::start().await?;
    let (bus, producer) = (server.bus().await?, server.raw().await?);
    let sent = [
        ("relay.events.a.order.created", "1"),
        ("relay.events.b.order.created", "1"),
        ("relay.events.b.order.created", "2"),
    ];
    for (subject, endpoint) in sent {
        let headers = [(HEADER_MSG_ID, "order-1"), (HEADER_ENDPOINT, endpoint), (HEADER_TRACE, "00-aa-bb-01")];
        let answer = publish(&producer, subject, &headers, r#"{"n":1}"#).await?;
        assert_eq!(answer["duplicate"], Value::Null, "{answer}");
    }
    let taken = take(&mut bus.events(), 3).await?;
    let got: Vec<_> = taken
        .iter()
        .map(|m| (m.message.subject.as_str(), m.message.endpoint_id.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(got, sent);
    for (EventMessage { message, delivered, .. }, sequence) in taken.iter().zip(1..) {
        assert_eq!((message.msg_id.as_deref(), message.trace.as_deref()), (Some("order-1"), Some("00-aa-bb-01")));
        assert_eq!((message.sequence, *delivered, message.stream), (sequence, 1, "EVENTS"));
        assert_eq!(message.payload, r#"{"n":1}"#);
    }
    let durability = bus.durability().await?;
    assert!(durability.duplicate_window_zero);
    assert!(durability.server_version.starts_with("2."), "{durability:?}");
    Ok(())
}

#[tokio::test]
async fn jobs_are_de_duplicated_and_marks_are_seen() -> Result<()> {
    let server = Server::start().await?;
    let (bus, client) = (server.bus().await?, server.raw().await?);
    let headers = [(HEADER_MSG_ID, "p-1")];
    assert_eq!(publish(&client, "relay.jobs.retry.0", &headers, "one").await?["duplicate"], Value::Null);
    let again = [(HEADER_MSG_ID, "p-1"), (HEADER_SUSPECT, "1")];
    assert_eq!(publish(&client, "relay.jobs.retry.0", &again, "one").await?["duplicate"], json!(true));
    let other = [(HEADER_MSG_ID, "p-2"), (HEADER_SUSPECT, "1")];
    publish(&client, "relay.jobs.fresh.0", &other, "two").await?;
    for body in ["three", "four"] {
        bus.publish_jobs(Lane::Fresh, body.into()).await?;
    }

    let cancel = CancellationToken::new();
    let mut source = bus.jobs(&Lane::ALL);
    let mut got = BTreeSet::new();
    for _ in 0..4 {
        let job = tokio::time::timeout(WITHIN, source.next(&cancel)).await?.context("not cancelled")?;
        got.insert((job.lane, String::from_utf8(job.payload.to_vec())?, job.marked, job.delivered));
        job.ack.ack_sync().await?;
    }
    let wanted = [
        (Lane::Fresh, "two", true),
        (Lane::Fresh, "three", false),
        (Lane::Fresh, "four", false),
        (Lane::Retry, "one", false),
    ];
    assert_eq!(got, wanted.map(|(lane, body, marked)| (lane, body.to_owned(), marked, 1)).into());
    for lane in Lane::ALL {
        assert_eq!(bus.jobs_lag(lane).await?, Lag::default());
    }
    Ok(())
}

#[tokio::test]
async fn streams_are_smaller_where_the_disk_is() -> Result<()> {
    let server = Server::start_with(", max_file_store: 700MB").await?;
    let bus = Bus::connect(relay_bus::BusOptions { url: server.url(), name: "test".to_owned() }).await?;
    bus.declare(&Topology { events_bytes_max: 1 << 30, jobs_bytes_max: 128 << 20, ..small() }).await?;
    let client = server.raw().await?;
    let info = client.request("$JS.API.STREAM.INFO.EVENTS", "".into()).await?;
    let info: Value = serde_json::from_slice(&info.payload)?;
    assert_eq!(info["config"]["max_bytes"], 512 << 20);
    Ok(())
}

#[tokio::test]
async fn a_full_log_refuses_and_keeps_what_it_accepted() -> Result<()> {
    let server = Server::start().await?;
    let bus = Bus::connect(relay_bus::BusOptions { url: server.url(), name: "test".to_owned() }).await?;
    bus.declare(&Topology { events_bytes_max: 4 << 20, ..small() }).await?;
    let mut accepted = 0u8;
    let refused = loop {
        match bus.publish_events(Bytes::from(vec![accepted; 500_000])).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, PublishError::Full(_)), "{refused}");
    assert!(accepted >= 7, "{accepted}");
    let taken = take(&mut bus.events(), accepted.into()).await?;
    assert!(taken.iter().zip(0u8..).all(|(m, n)| m.message.payload.len() == 500_000 && m.message.payload[0] == n));

    // Acknowledged and purged, there is room again.
    for message in &taken {
        message.ack.ack_sync().await?;
    }
    bus.purge_history(Duration::from_secs(3600), 0).await?;
    bus.publish_events(Bytes::from_static(b"more")).await?;
    Ok(())
}

#[tokio::test]
async fn the_largest_message_is_pulled_and_a_larger_one_refused() -> Result<()> {
    let server = Server::start().await?;
    let bus = server.bus().await?;
    for _ in 0..9 {
        bus.publish_events(Bytes::from(vec![7; (2 << 20) - 100])).await?;
    }
    let refused = bus.publish_events(Bytes::from(vec![7; 3 << 20])).await;
    assert!(matches!(refused, Err(PublishError::Refused(_))), "{refused:?}");
    let refused = bus.publish_events(Bytes::from(vec![7; 9 << 20])).await;
    assert!(matches!(refused, Err(PublishError::Refused(_))), "{refused:?}");
    assert_eq!(take(&mut bus.events(), 9).await?.len(), 9);
    Ok(())
}

#[tokio::test]
async fn nak_brings_a_message_back_and_progress_and_acks_are_known() -> Result<()> {
    let server = Server::start().await?;
    let bus = server.bus().await?;
    bus.publish_events("one".into()).await?;
    let mut source = bus.events();
    let first = take(&mut source, 1).await?.remove(0);
    first.ack.progress().await;
    first.ack.nak(Duration::from_millis(50)).await;
    let second = take(&mut source, 1).await?.remove(0);
    assert_eq!((second.message.sequence, second.delivered), (first.message.sequence, 2));
    second.ack.nak(Duration::ZERO).await;
    let third = take(&mut source, 1).await?.remove(0);
    assert_eq!(third.delivered, 3);
    third.ack.ack().await;
    wait_for_lag(&bus, Lag::default()).await
}

#[tokio::test]
async fn next_takes_what_is_there_and_dropping_it_loses_nothing() -> Result<()> {
    let server = Server::start().await?;
    let bus = server.bus().await?;
    let mut source = bus.events();
    let cancel = CancellationToken::new();
    for n in 0..200u32 {
        // Dropped while it waits, each time at another moment.
        drop(tokio::time::timeout(Duration::from_micros(u64::from(n) * 20), source.next(1, &cancel)).await.map(|m| {
            assert!(m.is_empty(), "nothing was published yet");
        }));
    }
    for n in 0..50u8 {
        bus.publish_events(Bytes::copy_from_slice(&[n])).await?;
    }
    wait_for_lag(&bus, Lag { pending: 0, ack_pending: 50 }).await?;
    let taken = source.next(20, &cancel).await;
    assert!(!taken.is_empty() && taken.len() <= 20);
    let rest = take(&mut source, 50 - taken.len()).await?;
    let got: Vec<u8> = taken.iter().chain(&rest).map(|m| m.message.payload[0]).collect();
    assert_eq!(got, (0..50).collect::<Vec<_>>());

    cancel.cancel();
    assert!(source.next(20, &cancel).await.is_empty());
    Ok(())
}

#[tokio::test]
async fn two_sources_share_the_work() -> Result<()> {
    let server = Server::start().await?;
    let (a, b) = (server.bus().await?, server.bus().await?);
    for n in 0..100u8 {
        a.publish_jobs(Lane::Fresh, Bytes::copy_from_slice(&[n])).await?;
    }
    let cancel = CancellationToken::new();
    let mut sources = [a.jobs(&[Lane::Fresh]), b.jobs(&[Lane::Fresh])];
    let mut seen = BTreeSet::new();
    let mut counts = [0, 0];
    for turn in 0..100 {
        let [first, second] = &mut sources;
        let (who, job) = tokio::time::timeout(WITHIN, async {
            // Each in turn has the first word, as two pods that work equally fast.
            if turn % 2 == 0 {
                tokio::select! { biased; job = first.next(&cancel) => (0, job), job = second.next(&cancel) => (1, job) }
            } else {
                tokio::select! { biased; job = second.next(&cancel) => (1, job), job = first.next(&cancel) => (0, job) }
            }
        })
        .await?;
        let job = job.context("not cancelled")?;
        counts[who] += 1;
        assert!(seen.insert(job.payload[0]), "delivered twice");
        job.ack.ack().await;
    }
    assert!(counts.iter().all(|n| *n >= 20), "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn a_source_that_ends_gives_back_what_it_did_not_hand_out() -> Result<()> {
    let server = Server::start().await?;
    let bus = server.bus().await?;
    for n in 0..10u8 {
        bus.publish_events(Bytes::copy_from_slice(&[n])).await?;
    }
    let cancel = CancellationToken::new();
    let mut first = bus.events();
    let taken = first.next(1, &cancel).await;
    wait_for_lag(&bus, Lag { pending: 0, ack_pending: 10 }).await?;
    // All are delivered; asking once more makes sure that they have arrived in this process too.
    bus.ping().await?;
    drop(first);
    let rest = take(&mut bus.events(), 9).await?;
    assert!(rest.iter().all(|m| m.message.payload != taken[0].message.payload && m.delivered == 2));
    Ok(())
}

#[tokio::test]
async fn only_acknowledged_history_is_purged() -> Result<()> {
    let server = Server::start().await?;
    let (bus, client) = (server.bus().await?, server.raw().await?);
    for n in 0..10u8 {
        bus.publish_events(Bytes::copy_from_slice(&[n])).await?;
        bus.publish_jobs(Lane::Replay, Bytes::copy_from_slice(&[n])).await?;
    }
    let taken = take(&mut bus.events(), 10).await?;
    for message in &taken[..6] {
        message.ack.ack_sync().await?;
    }
    bus.purge_history(Duration::from_secs(3600), 25).await?;
    assert_eq!(state(&client, "EVENTS").await?["messages"], json!(10), "within its share and age");
    bus.purge_history(Duration::from_secs(3600), 0).await?;
    assert_eq!(state(&client, "EVENTS").await?["first_seq"], json!(7));
    assert_eq!(state(&client, "JOBS").await?["messages"], json!(10), "nothing of it is acknowledged");

    let cancel = CancellationToken::new();
    let mut jobs = bus.jobs(&[Lane::Replay]);
    for _ in 0..10 {
        jobs.next(&cancel).await.context("not cancelled")?.ack.ack_sync().await?;
    }
    bus.purge_history(Duration::ZERO, 100).await?;
    assert_eq!(state(&client, "JOBS").await?["messages"], json!(0));
    assert_eq!(state(&client, "EVENTS").await?["first_seq"], json!(7), "the rest is not acknowledged");
    Ok(())
}

#[tokio::test]
async fn hints_are_heard_and_letters_stored() -> Result<()> {
    let server = Server::start().await?;
    let (bus, client) = (server.bus().await?, server.raw().await?);
    let mut hints = bus.subscribe_hints("relay.hint.due");
    // Subscribing happens with the first call and is not confirmed: repeat until it is heard.
    let heard = tokio::time::timeout(WITHIN, async {
        loop {
            bus.hint("relay.hint.due", "now".into()).await;
            if let Ok(heard) = tokio::time::timeout(Duration::from_millis(50), hints.recv()).await {
                break heard;
            }
        }
    })
    .await?;
    assert_eq!(heard.as_deref(), Some(&b"now"[..]));

    bus.publish_letter_hint(Some(&TenantId::default_tenant()), "exhausted", "{}".into());
    bus.publish_letter_hint(None, "malformed", "{}".into());
    let deadline = Instant::now() + WITHIN;
    while state(&client, "DLQ").await?["messages"] != json!(2) {
        assert!(Instant::now() < deadline, "the hints were not stored");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bus.letter_hints_dropped(), 0);
    for _ in 0..20_000 {
        bus.publish_letter_hint(None, "malformed", Bytes::new());
    }
    assert!(bus.letter_hints_dropped() > 0, "the queue is bounded");
    Ok(())
}
