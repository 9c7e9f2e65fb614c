//! Endpoints as attackers would have them: where they may not lie, and what they answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use it::{Reply, World};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Loopback is allowed by `up`; what is refused here lies elsewhere.
#[tokio::test]
async fn no_spelling_of_a_forbidden_address_is_registered() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = w.api.endpoint(&w.sink.url("/good"), json!({})).await?.text("id");
    for (url, why) in [
        ("http://10.0.0.1/", "private"),
        ("http://10.1/", "private"),
        ("http://167772161/", "private"),
        ("http://0xa000001/", "private"),
        ("http://012.0.0.1/", "private"),
        ("http://10.0.0.1./", "private"),
        ("http://example.com@10.0.0.1/", "private"),
        ("http://%31%30.0.0.1/", "private"),
        ("http://192.168.1/", "private"),
        ("HTTP://0XAC100001/", "private"),
        ("http://169.254.169.254/latest/meta-data/", "metadata"),
        ("http://0xA9FEA9FE/", "metadata"),
        ("http://0251.0376.0251.0376/", "metadata"),
        ("http://2852039166/", "metadata"),
        ("http://[::ffff:169.254.169.254]/", "metadata"),
        ("http://[::FFFF:A9FE:A9FE]/", "metadata"),
        ("http://[64:ff9b::a9fe:a9fe]/", "metadata"),
        ("http://[64:FF9B::10.0.0.1]/", "private"),
        ("http://[64:ff9b:1::1]/", "NAT64"),
        ("http://[2002:a00:1::]/", "6to4"),
        ("http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "Teredo"),
        ("http://[::1]/", "loopback"),
        ("http://[::]/", "unspecified"),
        ("http://[::10.0.0.1]/", "compatible"),
        ("http://[fe80::1]/", "link-local"),
        ("http://[fd12::1]/", "unique local"),
        ("http://0/", "this network"),
        ("http://255.255.255.255/", "broadcast"),
    ] {
        let body = json!({"name": "bad", "url": url});
        let answers =
            [w.api.post("/endpoints", &body).await?, w.api.patch(&format!("/endpoints/{endpoint}"), &body).await?];
        for answer in answers {
            let answer = answer.expect_problem(422, "validation-failed");
            let error = &answer.body["errors"][0];
            assert_eq!(error["field"], "body.url", "{url}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("may not be called") && message.contains(why), "{url}: {message}");
        }
    }
    assert_eq!(w.api.get(&format!("/endpoints/{endpoint}")).await?.text("url"), w.sink.url("/good"));
    Ok(())
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() -> anyhow::Result<()> {
    let w = World::start().await?;
    for status in [301, 302, 303, 307, 308] {
        let path = format!("/redirects/{status}");
        w.sink.script(&path, [Reply::status(status).header("location", w.sink.url("/inside"))]);
        let endpoint = w.api.endpoint(&w.sink.url(&path), json!({"max_retries": 1})).await?.text("id");
        let event = w.api.event(&endpoint, "order.created", json!({})).await?;
        let dead = w.api.wait_status(&event, "dead_lettered").await?;
        assert_eq!(dead.body["attempts"][0]["http_status_code"], status, "{}", dead.body["attempts"]);
        assert_eq!(w.sink.received(&path).len(), 1);
    }
    assert_eq!(w.sink.received("/inside").len(), 0);
    Ok(())
}

/// What a receiver of the worst kind does with a connection.
#[derive(Clone, Debug)]
enum Trick {
    /// Sends this and closes.
    Close(Vec<u8>),
    /// Sends this and keeps the connection open.
    Hold(Vec<u8>),
    /// Sends the first once, then the second again and again, as fast as it is taken.
    Flood(Vec<u8>, Vec<u8>),
    /// Sends the first once, then a byte of the second every now and then.
    Dribble(Vec<u8>, u8),
    /// Closes as soon as there is a connection.
    Slam,
}

/// How long a dribbling receiver waits before the next byte.
const DRIP: Duration = Duration::from_millis(100);

async fn reads_request(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"{}") {
        if stream.read_buf(&mut seen).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

async fn play(mut stream: TcpStream, trick: Trick) -> std::io::Result<()> {
    if matches!(trick, Trick::Slam) {
        return Ok(());
    }
    reads_request(&mut stream).await?;
    match trick {
        Trick::Slam => {}
        Trick::Close(bytes) => stream.write_all(&bytes).await?,
        Trick::Hold(bytes) => {
            stream.write_all(&bytes).await?;
            stream.read_to_end(&mut Vec::new()).await?;
        }
        Trick::Flood(first, then) => {
            stream.write_all(&first).await?;
            let piece = then.repeat(1 + 16_384 / then.len());
            loop {
                stream.write_all(&piece).await?;
            }
        }
        Trick::Dribble(first, then) => {
            stream.write_all(&first).await?;
            loop {
                tokio::time::sleep(DRIP).await;
                stream.write_all(&[then]).await?;
            }
        }
    }
    Ok(())
}

/// Listens and plays one trick on every connection. Returns its URL and how many connections are open.
async fn receiver(trick: Trick) -> anyhow::Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (trick, count) = (trick.clone(), Arc::clone(&count));
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                // How it ends is the sender's business.
                let _ = play(stream, trick).await;
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Ok((url, open))
}

/// What is to be recorded.
#[derive(Clone, Copy, Debug)]
enum Recorded {
    Status(u16),
    Class(&'static str),
}

fn tricks() -> Vec<(&'static str, Trick, Recorded)> {
    use Recorded::{Class, Status};
    use Trick::{Close, Dribble, Flood, Hold, Slam};
    let b = |text: &str| text.as_bytes().to_vec();
    let ok = |headers: &str| format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes();
    // Nobody unpacks it, so it is a flood like others.
    let gzip = ok("content-encoding: gzip\r\ntransfer-encoding: chunked\r\n");
    vec![
        ("an endless body", Flood(ok("transfer-encoding: chunked\r\n"), b("4\r\nmore\r\n")), Status(200)),
        ("an endless body without a length", Flood(ok(""), b("more")), Status(200)),
        ("a gzip bomb", Flood(gzip, b("4\r\n\x1f\x08\x00\x00\r\n")), Status(200)),
        ("a dribbling body", Dribble(ok("content-length: 1000000\r\n"), b'x'), Status(200)),
        ("a body that never comes", Hold(ok("content-length: 10\r\n")), Status(200)),
        ("a body that ends early", Close([ok("content-length: 10\r\n"), b("half")].concat()), Status(200)),
        (
            "a chunk of impossible size",
            Hold([ok("transfer-encoding: chunked\r\n"), b("fffffffffffffffffff\r\n")].concat()),
            Status(200),
        ),
        (
            "endless trailers",
            Flood([ok("transfer-encoding: chunked\r\n"), b("0\r\n")].concat(), b("x: y\r\n")),
            Status(200),
        ),
        ("bytes of all values", Close([ok(""), (0..=255).collect()].concat()), Status(200)),
        (
            "headers in no known alphabet",
            Close([b("HTTP/1.1 200 OK\r\nx-a: "), vec![0x80, 0xfe, 0xff, b'\t'], b("\r\n\r\n")].concat()),
            Status(200),
        ),
        ("a hundred headers less one", Close(ok(&"x: y\r\n".repeat(99))), Status(200)),
        ("an unknown status", Close(b("HTTP/1.1 999 Never\r\ncontent-length: 0\r\n\r\n")), Status(999)),
        (
            "another protocol",
            Hold(b("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")),
            Status(101),
        ),
        ("nothing", Hold(Vec::new()), Class("timeout")),
        ("a dribbling head", Dribble(b("HTTP/1.1 200 OK\r\nx: "), b'y'), Class("timeout")),
        ("half a head", Hold(b("HTTP/1.1 200 OK\r\n")), Class("timeout")),
        ("1xx without end", Flood(Vec::new(), b("HTTP/1.1 100 Continue\r\n\r\n")), Class("timeout")),
        (
            "early hints without end",
            Flood(Vec::new(), b("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")),
            Class("timeout"),
        ),
        ("1xx now and then", Dribble(b("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 102 P"), b'p'), Class("timeout")),
        ("a closed door", Slam, Class("connection_closed")),
        ("an early end", Close(Vec::new()), Class("connection_closed")),
        ("an end within the head", Close(b("HTTP/1.1 200 OK\r\nx: y")), Class("connection_closed")),
        ("HTTP/0.9", Close(b("<html>hello</html>")), Class("protocol")),
        ("HTTP/2", Close(b("\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64")), Class("protocol")),
        ("another version", Close(b("HTTP/3.0 200 OK\r\n\r\n")), Class("protocol")),
        ("no status", Close(b("HTTP/1.1 OK\r\n\r\n")), Class("protocol")),
        ("a status of four digits", Close(b("HTTP/1.1 2000 OK\r\n\r\n")), Class("protocol")),
        ("status 000", Close(b("HTTP/1.1 000 No\r\n\r\n")), Class("protocol")),
        ("a header with a NUL", Close(ok("x\0: y\r\n")), Class("protocol")),
        ("a value with a NUL", Close(ok("x: a\0b\r\n")), Class("protocol")),
        ("a header without colon", Close(ok("nonsense\r\n")), Class("protocol")),
        ("two lengths", Close(ok("content-length: 1\r\ncontent-length: 2\r\n")), Class("protocol")),
        ("a negative length", Close(ok("content-length: -1\r\n")), Class("protocol")),
        ("a length beyond 64 bits", Close(ok("content-length: 99999999999999999999999\r\n")), Class("protocol")),
        ("a header of 2 MB", Close(ok(&format!("x: {}\r\n", "y".repeat(2_000_000)))), Class("protocol")),
        ("an endless header", Flood(b("HTTP/1.1 200 OK\r\nx: "), b("y")), Class("protocol")),
        ("an endless status line", Flood(b("HTTP/1.1 200 "), b("O")), Class("protocol")),
        ("headers without end", Flood(b("HTTP/1.1 200 OK\r\n"), b("x: y\r\n")), Class("protocol")),
        ("blank lines without end", Flood(Vec::new(), b("\r\n")), Class("protocol")),
    ]
}

/// Every trick is played twice by one endpoint each, all at once, while a good endpoint gets its events.
#[tokio::test]
async fn whatever_a_receiver_answers_is_recorded_and_holds_nothing() -> anyhow::Result<()> {
    const ROUNDS: usize = 2;
    let w = World::start().await?;
    let good = w.api.endpoint(&w.sink.url("/good"), json!({})).await?.text("id");
    let mut played = Vec::new();
    for (name, trick, recorded) in tricks() {
        let (url, open) = receiver(trick).await?;
        let settings = json!({"name": name, "max_retries": 1, "timeout_seconds": 5});
        let endpoint = w.api.endpoint(&url, settings).await?.text("id");
        let mut events = Vec::new();
        for _ in 0..ROUNDS {
            events.push(w.api.event(&endpoint, "order.created", json!({})).await?);
            w.api.event(&good, "order.created", json!({})).await?;
        }
        played.push((name, recorded, open, events));
    }
    w.sink.wait("/good", ROUNDS * played.len()).await?;
    let mut wrong = Vec::new();
    for (name, recorded, _, events) in &played {
        for event in events {
            let path = format!("/events/{event}");
            let ended = ["delivered", "dead_lettered"];
            let answer = w.api.wait_for(&path, |a| ended.iter().any(|s| a.body["status"] == *s)).await?;
            let attempt = &answer.body["attempts"][0];
            let good = match recorded {
                Recorded::Status(status) => attempt["http_status_code"] == *status,
                Recorded::Class(class) => attempt["error_class"] == *class && attempt["http_status_code"].is_null(),
            };
            // A slot that is stuck would end with its lease, and be tried again.
            if !good || answer.body["attempts"].as_array().is_none_or(|all| all.len() != 1) {
                let mut attempt = attempt.clone();
                attempt["response_headers"] = json!(null);
                wrong.push(format!("{name}: {recorded:?} expected, but {attempt}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Connections are let go of with the attempts.
    let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
    for (name, _, open, _) in &played {
        while open.load(Ordering::SeqCst) > 0 {
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "{name}: a connection stays open");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
