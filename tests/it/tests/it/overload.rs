//! More than fits: memory stays bounded, what is refused is told when to come again, others go on, and all recovers.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use it::World;
use it::api::{Answer, Api, PATIENCE};
use it::sink::Received;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

const MIB: u64 = 1024 * 1024;

/// Begins a request that is larger than what is sent of it, and waits. Answers the status and the head of what the
/// server says to that, once it says something.
async fn unfinished(
    address: String,
    key: String,
    sent: usize,
    mut stop: watch::Receiver<bool>,
) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let head = format!(
        "POST /api/v1/events HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        sent + 10
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    let (mut read, mut write) = stream.split();
    let body = vec![b' '; sent];
    let mut answer = vec![0; 2000];
    let answered = async {
        // It is answered before all of it is taken, or stays there unfinished.
        let writing = async {
            let _ = write.write_all(&body).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = writing => None,
            n = read.read(&mut answer) => n.ok(),
        }
    };
    let n = tokio::select! {
        n = answered => n?,
        _ = stop.wait_for(|stop| *stop) => return None,
    };
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.to_ascii_lowercase()))
}

/// A small event, which must be answered.
async fn small(api: &Api) -> anyhow::Result<Answer> {
    let body = json!({"event_type": "small.event", "payload": 1});
    tokio::time::timeout(PATIENCE, api.post("/events", &body)).await.context("a small request hangs")?
}

/// A tenant that sends more than fits, in many requests that it doesn't finish, takes no memory beyond the room, and
/// nothing from another tenant.
#[tokio::test]
async fn unfinished_bodies_take_bounded_memory_and_nothing_from_others() -> anyhow::Result<()> {
    const REQUESTS: usize = 500;
    const BODY: usize = 1_000_000;
    let w = World::closed("overload-operator-key").await?;
    for tenant in ["greedy", "modest"] {
        w.command(&["tenants", "create", tenant])?;
    }
    let greedy_key = w.key("greedy", "events:write", &[])?;
    let (greedy, modest) = (w.api.with_key(&greedy_key), w.api.with_key(&w.key("modest", "events:write", &[])?));
    small(&greedy).await?.expect(202);
    small(&modest).await?.expect(202);
    let before = w.up.resident_peak_bytes()?;

    let address = w.api.url("").replace("http://", "");
    let (end, stop) = watch::channel(false);
    let (answers, mut answered) = mpsc::unbounded_channel();
    for _ in 0..REQUESTS {
        let (address, key, stop, answers) = (address.clone(), greedy_key.clone(), stop.clone(), answers.clone());
        tokio::spawn(async move {
            let _ = answers.send(unfinished(address, key, BODY, stop).await);
        });
    }
    // Its part of 64 MiB is full before a tenth of them are in.
    let mut over_its_part = 0;
    for n in 0..REQUESTS * 4 / 5 {
        let refused = tokio::time::timeout(PATIENCE, answered.recv()).await.context("requests hang")?.flatten();
        if let Some((status, answer)) = refused {
            let slug = match status {
                429 => "too-many-requests",
                503 => "overloaded",
                _ => panic!("{answer}"),
            };
            over_its_part += usize::from(status == 429);
            assert!(answer.contains("\r\nretry-after: 1\r\n") && answer.contains(slug), "{answer}");
        }
        if n % 50 == 0 {
            small(&modest).await?.expect(202);
            let own = small(&greedy).await?;
            assert!(own.status == 202 || own.status == 429, "{}", own.body);
        }
    }
    assert!(over_its_part > 0, "nothing was refused for the tenant's own requests");
    // 64 MiB, and what an allocator keeps of it; all that was sent is eight times as much.
    let grown = w.up.resident_peak_bytes()?.saturating_sub(before);
    assert!(grown < 160 * MIB, "{} MiB", grown / MIB);

    end.send(true)?;
    // All is as before: the largest payload passes.
    let large = json!({"event_type": "large.event", "payload": "x".repeat(1_000_000)});
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = greedy.post("/events", &large).await?;
        if answer.status == 202 {
            break;
        }
        assert_eq!(answer.status, 429, "{}", answer.body);
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "the room doesn't get free: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = w.up.output();
    assert!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// What one sender of a flood saw.
#[derive(Default)]
struct Flooded {
    /// Events for the receiver that were accepted.
    accepted: Vec<String>,
    /// Events that were refused.
    refused: usize,
}

/// Batches of 500 events, of which ten go to a receiver, one after the other. What is refused must say when to come again.
async fn flood(api: Api, batches: usize) -> anyhow::Result<Flooded> {
    let mut seen = Flooded::default();
    let is_wanted = |i: usize| i.is_multiple_of(50);
    let event_type = |i| if is_wanted(i) { "wanted.event" } else { "other.event" };
    let event = |i: usize| json!({"event_type": event_type(i), "payload": "x".repeat(200)});
    let body = json!({"events": (0..500).map(event).collect::<Vec<_>>()});
    for _ in 0..batches {
        let answer = api.post("/events/batch", &body).await?;
        assert!([202, 429, 503].contains(&answer.status), "{}", answer.body);
        if answer.status != 202 {
            assert!(answer.headers.contains_key("retry-after"), "{}: {}", answer.status, answer.body["detail"]);
            let type_ = answer.body["type"].as_str().unwrap_or_default();
            assert!(type_.ends_with(":overloaded") || type_.ends_with(":too-many-requests"), "{type_}");
        }
        let Some(results) = answer.body["results"].as_array() else {
            seen.refused += 500;
            continue;
        };
        for (i, result) in results.iter().enumerate() {
            match result["status"].as_u64() {
                Some(202) if is_wanted(i) => seen.accepted.push(result["id"].as_str().unwrap().to_owned()),
                Some(202) => {}
                Some(503) => {
                    assert!(answer.headers.contains_key("retry-after"), "a part was refused: {result}");
                    seen.refused += 1;
                }
                other => panic!("{other:?}: {result}"),
            }
        }
    }
    Ok(seen)
}

/// Far more than it can take: a part is refused, memory of each process stays bounded, and what was accepted arrives, once.
#[tokio::test]
async fn a_flood_is_refused_in_part_and_what_was_accepted_arrives() -> anyhow::Result<()> {
    const SENDERS: usize = 80;
    const BATCHES: usize = 3;
    let mut w = World::servers().await?;
    let mut processes = Vec::new();
    for name in ["dispatcher", "deliverer", "ingest"] {
        let (process, address) = w.service(name, name).await?;
        processes.push((name, process));
        w.use_api(&address);
    }
    w.api.endpoint(&w.sink.url("/wanted"), json!({"event_types_filter": ["wanted.event"]})).await?;
    let senders: Vec<_> = (0..SENDERS).map(|_| tokio::spawn(flood(w.api.clone(), BATCHES))).collect();
    let mut accepted = HashSet::new();
    let mut refused = 0;
    for sender in senders {
        let seen = sender.await??;
        refused += seen.refused;
        accepted.extend(seen.accepted);
    }
    assert!(!accepted.is_empty() && refused > 0, "{} accepted, {refused} refused", accepted.len());
    let arrived = |all: &[Received]| all.iter().map(|r| r.header("webhook-id").to_owned()).collect::<HashSet<_>>();
    let all_there = w.sink.wait_until(|all| all.len() >= accepted.len() && accepted.is_subset(&arrived(all))).await;
    assert!(all_there.is_ok(), "{} of {} arrived", w.sink.count(), accepted.len());
    let all = w.sink.received("/wanted");
    assert_eq!(arrived(&all).len(), all.len(), "something came twice");
    for (name, process) in &processes {
        let peak = process.resident_peak_bytes()?;
        assert!(peak < 300 * MIB, "{name}: {} MiB", peak / MIB);
        assert!(!process.output().contains("panicked"), "{name}: {}", process.output());
    }
    // And it goes on.
    let event = small(&w.api).await?.expect(202).text("id");
    w.api.wait_status(&event, "unmatched").await?;
    Ok(())
}
