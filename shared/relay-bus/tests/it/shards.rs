//! Events and jobs over several streams: more of them, fewer of them, one in trouble; nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::Client;
use bytes::Bytes;
use relay_bus::{Bus, BusOptions, EventSource, JobSource, PublishError, Topology, Unused};
use relay_core::subject::Lane;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::server::{Server, small};
use crate::streams::{publish, take};

const WITHIN: Duration = Duration::from_secs(60);

fn streams(events: u8, jobs: u8) -> Topology {
    Topology { event_streams: events, job_streams: jobs, ..small() }
}

async fn connect(server: &Server) -> Result<Bus> {
    Ok(Bus::connect(BusOptions { url: server.url(), name: "test".to_owned() }).await?)
}

/// How many messages a stream has; `None` where there is no such stream.
async fn messages(client: &Client, stream: &str) -> Result<Option<u64>> {
    Ok(info(client, stream).await?["state"]["messages"].as_u64())
}

async fn info(client: &Client, stream: &str) -> Result<Value> {
    let answer = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}

/// Publishes one event after the other until it is so.
async fn publish_until(bus: &Bus, sent: &mut BTreeSet<u32>, so: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    while !so().await? {
        ensure!(Instant::now() < deadline, "it doesn't become so");
        publish_next(bus, sent).await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn publish_next(bus: &Bus, sent: &mut BTreeSet<u32>) -> Result<()> {
    let n = sent.len() as u32;
    bus.publish_events(Bytes::copy_from_slice(&n.to_be_bytes())).await?;
    sent.insert(n);
    Ok(())
}

/// Takes and acknowledges so many, each once; says how many came from each stream.
async fn take_all(source: &mut EventSource, wanted: &BTreeSet<u32>) -> Result<BTreeMap<&'static str, usize>> {
    let (mut got, mut by_stream) = (BTreeSet::new(), BTreeMap::new());
    for message in take(source, wanted.len()).await? {
        ensure!(got.insert(u32::from_be_bytes(message.message.payload[..].try_into()?)), "it came twice");
        *by_stream.entry(message.message.stream).or_default() += 1;
        message.ack.ack_sync().await?;
    }
    ensure!(got == *wanted, "{got:?} came, {wanted:?} were sent");
    Ok(by_stream)
}

async fn take_jobs(source: &mut JobSource, n: usize) -> Result<BTreeSet<(Lane, Bytes)>> {
    let (cancel, mut got) = (CancellationToken::new(), BTreeSet::new());
    while got.len() < n {
        let job = tokio::time::timeout(WITHIN, source.next(&cancel)).await.context("no job came")?;
        let job = job.context("not cancelled")?;
        ensure!(got.insert((job.lane, job.payload)), "a job came twice");
        job.ack.ack_sync().await?;
    }
    Ok(got)
}

/// From one stream to three and back, with a publisher and a taker that are told nothing.
#[tokio::test]
async fn more_streams_and_fewer_lose_nothing() -> Result<()> {
    let server = Server::start().await?;
    let (decides, publisher, taker) = (connect(&server).await?, connect(&server).await?, connect(&server).await?);
    let client = server.raw().await?;
    let mut sent = BTreeSet::new();
    decides.declare(&streams(1, 1)).await?;
    for _ in 0..5 {
        publish_next(&publisher, &mut sent).await?;
    }
    assert_eq!((messages(&client, "EVENTS").await?, messages(&client, "EVENTS_1").await?), (Some(5), None));

    // More: the publisher finds them, and whoever takes does.
    decides.declare(&streams(3, 2)).await?;
    publish_until(&publisher, &mut sent, async || {
        let both = (messages(&client, "EVENTS_1").await?, messages(&client, "EVENTS_2").await?);
        Ok(both.0 > Some(3) && both.1 > Some(3))
    })
    .await?;
    let mut source = taker.events();
    let came = take_all(&mut source, &sent).await?;
    assert!(came.len() == 3 && came["EVENTS"] > 5, "{came:?}");
    assert!(decides.durability().await?.duplicate_window_zero);
    sent.clear();

    // Fewer: what lies in the others still comes, and nothing more gets there.
    for _ in 0..6 {
        publish_next(&decides, &mut sent).await?;
    }
    let jobs: BTreeSet<_> = (0..10u8).map(|n| (Lane::Retry, Bytes::copy_from_slice(&[n]))).collect();
    for (lane, body) in &jobs {
        decides.publish_jobs(*lane, body.clone()).await?;
    }
    assert_eq!((messages(&client, "JOBS").await?, messages(&client, "JOBS_1").await?), (Some(5), Some(5)));
    let before = (messages(&client, "EVENTS_1").await?, messages(&client, "EVENTS_2").await?);
    let another = connect(&server).await?;
    another.declare(&streams(1, 1)).await?;
    for bus in [&another, &publisher, &decides] {
        for _ in 0..10 {
            publish_next(bus, &mut sent).await?;
        }
    }
    assert_eq!((messages(&client, "EVENTS_1").await?, messages(&client, "EVENTS_2").await?), before);
    let came = take_all(&mut source, &sent).await?;
    assert_eq!((came["EVENTS"], came["EVENTS_1"], came["EVENTS_2"]), (32, 2, 2), "{came:?}");
    assert_eq!(take_jobs(&mut taker.jobs(&[Lane::Retry]), 10).await?, jobs);
    assert_eq!((taker.events_lag().await?.pending, taker.jobs_lag(Lane::Retry).await?.pending), (0, 0));

    // Acknowledged and purged they are empty; then they may be deleted.
    let unused: Vec<_> = another.unused().await?.into_iter().map(|u| u.stream).collect();
    assert_eq!(unused, ["EVENTS_1", "EVENTS_2", "JOBS_1"]);
    another.purge_history(Duration::ZERO, 0).await?;
    assert!(another.unused().await?.iter().all(|u| u.messages == 0));
    let held: Vec<_> = another.retained().await?.iter().map(|h| h.last - h.acknowledged).collect();
    assert_eq!(held, [0, 0, 0]);
    for stream in ["EVENTS_1", "JOBS_1"] {
        client.request(format!("$JS.API.STREAM.DELETE.{stream}"), "".into()).await?;
    }
    assert_eq!(another.unused().await?, [Unused { stream: "EVENTS_2", messages: 0 }]);

    // And more again: the one that is there is used again, the other one made anew.
    decides.declare(&streams(3, 1)).await?;
    sent.clear();
    for _ in 0..6 {
        publish_next(&decides, &mut sent).await?;
    }
    let came = take_all(&mut source, &sent).await?;
    assert_eq!(came.values().collect::<Vec<_>>(), [&2, &2, &2], "{came:?}");
    Ok(())
}

/// A system of the version before: JOBS takes every subject, and its pods publish to the number 0.
#[tokio::test]
async fn jobs_of_a_system_with_one_stream_leave_room_for_a_second() -> Result<()> {
    let server = Server::start().await?;
    let (bus, client) = (connect(&server).await?, server.raw().await?);
    let config = json!({ "name": "JOBS", "subjects": ["relay.jobs.>"], "max_bytes": 64 << 20 });
    client.request("$JS.API.STREAM.CREATE.JOBS", config.to_string().into()).await?;
    bus.declare(&streams(1, 1)).await?;
    assert_eq!(info(&client, "JOBS").await?["config"]["subjects"], json!(["relay.jobs.>"]), "nothing is changed");
    publish(&client, "relay.jobs.fresh.0", &[], "before").await?;

    // A process that isn't told the number changes nothing either.
    let deliverer = connect(&server).await?;
    bus.declare(&streams(1, 2)).await?;
    deliverer.declare_missing().await?;
    assert_eq!(info(&client, "JOBS").await?["config"]["subjects"], json!(["relay.jobs.*.0"]));
    assert_eq!(info(&client, "JOBS_1").await?["config"]["subjects"], json!(["relay.jobs.*.1"]));
    publish(&client, "relay.jobs.fresh.0", &[], "an old pod's").await?;
    bus.publish_jobs(Lane::Fresh, "one".into()).await?;
    bus.publish_jobs(Lane::Fresh, "two".into()).await?;
    assert_eq!(messages(&client, "JOBS_1").await?, Some(1));
    let got = take_jobs(&mut deliverer.jobs(&[Lane::Fresh]), 4).await?;
    let bodies: BTreeSet<_> = got.iter().map(|(_, body)| body.as_ref()).collect();
    assert_eq!(bodies, BTreeSet::from([&b"before"[..], b"an old pod's", b"one", b"two"]));
    Ok(())
}

#[tokio::test]
async fn a_full_stream_refuses_nothing_while_another_has_room() -> Result<()> {
    let server = Server::start().await?;
    let bus = connect(&server).await?;
    bus.declare(&Topology { events_bytes_max: 1 << 20, ..streams(1, 1) }).await?;
    bus.declare(&Topology { events_bytes_max: 4 << 20, ..streams(2, 1) }).await?;
    let mut accepted = 0;
    let refused = loop {
        match bus.publish_events(Bytes::from(vec![7; 500_000])).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, PublishError::Full(_)), "{refused}");
    assert!((9..=10).contains(&accepted), "2 and 7 or 8: {accepted}");
    assert_eq!(take(&mut bus.events(), accepted).await?.len(), accepted);
    bus.ping().await?;
    Ok(())
}

/// A server, and a bus for which nobody answers on a subject, as if the stream behind it had no leader: the server drops what
/// that user publishes there.
async fn with_a_silent_subject(subject: &str) -> Result<(Server, Bus)> {
    let users = format!(
        "}}\nno_auth_user: admin\nauthorization {{ users: [{{ user: admin, password: a }}, \
         {{ user: limited, password: b, permissions: {{ publish: {{ deny: [\"{subject}\"] }} }} }}]"
    );
    let server = Server::start_with(&users).await?;
    let url = server.url().replace("nats://", "nats://limited:b@");
    let bus = Bus::connect(BusOptions { url, name: "test".to_owned() }).await?;
    Ok((server, bus))
}

#[tokio::test]
async fn a_stream_that_does_not_answer_keeps_no_dispatcher_from_starting() -> Result<()> {
    let (server, bus) = with_a_silent_subject("$JS.API.STREAM.INFO.EVENTS_1").await?;
    connect(&server).await?.declare(&streams(2, 1)).await?;
    bus.declare(&streams(3, 2)).await?;
    for stream in ["EVENTS_2", "JOBS_1"] {
        assert_eq!(messages(&server.raw().await?, stream).await?, Some(0), "{stream}");
    }
    let mut sent = BTreeSet::new();
    for _ in 0..4 {
        publish_next(&bus, &mut sent).await?;
    }
    let came = take_all(&mut bus.events(), &sent).await?;
    assert_eq!((came["EVENTS"], came["EVENTS_2"]), (2, 2));
    Ok(())
}

#[tokio::test]
async fn a_silent_stream_is_left_to_its_own() -> Result<()> {
    let (server, bus) = with_a_silent_subject("relay.bundles.1").await?;
    connect(&server).await?.declare(&streams(2, 1)).await?;
    bus.declare_missing().await?;
    // While the first that went there isn't answered, no other one goes there.
    let started: Vec<_> = (0..2)
        .map(|_| {
            let bus = bus.clone();
            tokio::spawn(async move { bus.publish_events("x".into()).await })
        })
        .collect();
    tokio::task::yield_now().await;
    for _ in 0..20 {
        bus.publish_events("x".into()).await?;
    }
    let mut outcomes = Vec::new();
    for outcome in started {
        outcomes.push(outcome.await?);
    }
    let unknown = outcomes.iter().filter(|o| matches!(o, Err(PublishError::Unknown(_)))).count();
    assert_eq!((unknown, outcomes.iter().filter(|o| o.is_ok()).count()), (1, 1), "{outcomes:?}");
    // And afterwards it is known.
    for _ in 0..9 {
        bus.publish_events("x".into()).await?;
    }
    bus.ping().await?;
    assert_eq!(messages(&server.raw().await?, "EVENTS").await?, Some(30));
    Ok(())
}

#[tokio::test]
async fn a_further_stream_that_is_deleted_is_made_again_by_those_who_want_it() -> Result<()> {
    let server = Server::start().await?;
    let (bus, client) = (connect(&server).await?, server.raw().await?);
    bus.declare(&streams(2, 2)).await?;
    let (mut events, mut jobs) = (bus.events(), bus.jobs(&[Lane::Slow]));
    let mut sent = BTreeSet::new();
    for _ in 0..4 {
        publish_next(&bus, &mut sent).await?;
    }
    take_all(&mut events, &sent).await?;
    for stream in ["EVENTS_1", "JOBS_1"] {
        client.request(format!("$JS.API.STREAM.DELETE.{stream}"), "".into()).await?;
    }
    // Nothing is refused meanwhile.
    sent.clear();
    for n in 0..6u8 {
        publish_next(&bus, &mut sent).await?;
        bus.publish_jobs(Lane::Slow, Bytes::copy_from_slice(&[n])).await?;
    }
    take_all(&mut events, &sent).await?;
    take_jobs(&mut jobs, 6).await?;
    let again = async {
        // Whoever takes finds it missing, and makes it.
        let cancel = CancellationToken::new();
        tokio::select! {
            _ = events.next(1, &cancel) => bail!("nothing was sent"),
            _ = jobs.next(&cancel) => bail!("nothing was sent"),
            made = async {
                while messages(&client, "EVENTS_1").await? != Some(0) || messages(&client, "JOBS_1").await? != Some(0) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            } => made,
        }
    };
    tokio::time::timeout(WITHIN, again).await.context("not made again")??;

    // A consumer that is deleted is made by whoever takes, also where that process was told of fewer streams.
    let taker = connect(&server).await?;
    client.request("$JS.API.CONSUMER.DELETE.JOBS_1.deliverer-slow", "".into()).await?;
    client.request("$JS.API.CONSUMER.DELETE.EVENTS_1.dispatcher", "".into()).await?;
    let (mut events, mut jobs) = (taker.events(), taker.jobs(&[Lane::Slow]));
    publish(&client, "relay.jobs.slow.1", &[], "job").await?;
    publish(&client, "relay.bundles.1", &[], "event").await?;
    take_jobs(&mut jobs, 1).await?;
    assert_eq!(take(&mut events, 1).await?[0].message.payload, "event");
    Ok(())
}
