//! Requests as attackers would write them, as bytes on a connection: each is answered with a 4xx, nothing panics, and
//! no connection hangs.

use anyhow::Context as _;
use it::World;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The status and the rest of the answer to these bytes; 0 where the connection ends without one. Reads to the end of
/// the connection, so the request must ask for it.
async fn exchange(w: &World, sent: &[u8]) -> anyhow::Result<(u16, String)> {
    let address = w.api.url("").replace("http://", "");
    let (mut read, mut write) = TcpStream::connect(address).await?.into_split();
    let sent = sent.to_vec();
    // An early answer may come before everything is taken.
    let writing = tokio::spawn(async move {
        let _ = write.write_all(&sent).await;
        write
    });
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(it::api::PATIENCE, read.read_to_end(&mut answer)).await;
    writing.abort();
    ended.context("the connection hangs").map(|_| ())?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, answer))
}

fn request(method: &str, target: &str, headers: &[u8], body: &[u8]) -> Vec<u8> {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n");
    let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    [head.as_bytes(), length.as_bytes(), headers, b"\r\n", body].concat()
}

/// It still answers, and nothing panicked on the way.
async fn still_well(w: &World) -> anyhow::Result<()> {
    w.api.request("GET", "/health/ready", &[], None).await?.expect(200);
    let log = w.up.output();
    anyhow::ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[tokio::test]
async fn heads_that_are_no_http_are_refused() -> anyhow::Result<()> {
    let w = World::start().await?;
    let get = |headers: &[u8]| request("GET", "/api/v1/endpoints", headers, b"");
    let post = |headers: &str| {
        let head =
            "POST /api/v1/events HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nContent-Type: application/json\r\n";
        [head.as_bytes(), headers.as_bytes(), b"\r\n"].concat()
    };
    let huge = [b"X-A: ".to_vec(), vec![b'a'; 2_000_000], b"\r\n".to_vec()].concat();
    for (name, sent) in [
        ("a NUL in a name", get(b"X\0A: b\r\n")),
        ("a NUL in a value", get(b"X-A: a\0b\r\n")),
        ("a carriage return in a value", get(b"X-A: a\rX-B: b\r\n")),
        ("no colon", get(b"nonsense\r\n")),
        ("a blank before the colon", get(b"X-A : b\r\n")),
        ("a folded header", get(b"X-A: b\r\n c\r\n")),
        ("no name", get(b": b\r\n")),
        ("a header of 2 MB", get(&huge)),
        ("a thousand headers", get("X-A: b\r\n".repeat(1000).as_bytes())),
        ("a key of 300 KB", get(format!("Authorization: Bearer {}\r\n", "k".repeat(300_000)).as_bytes())),
        ("a long target", request("GET", &format!("/{}", "a".repeat(100_000)), b"", b"")),
        ("a target with a blank", request("GET", "/a b", b"", b"")),
        ("another version", b"GET / HTTP/9.9\r\n\r\n".to_vec()),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03hello, this is TLS\r\n\r\n".to_vec()),
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n")),
        ("a negative length", post("Content-Length: -2\r\n")),
        ("a length beyond 64 bits", post("Content-Length: 99999999999999999999999\r\n")),
        ("a length that is no number", post("Content-Length: 0x10\r\n")),
        ("an unknown transfer coding", post("Transfer-Encoding: chunked, identity\r\n")),
        ("a chunk of no size", post("Transfer-Encoding: chunked\r\n\r\nzz\r\n")),
        ("a chunk of impossible size", post("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n")),
        ("a body over any limit", post("Content-Length: 18446744073709551614\r\n")),
    ] {
        let (status, answer) = exchange(&w, &sent).await.context(name)?;
        assert!((400..500).contains(&status), "{name}: {answer}");
    }
    // What no status is owed for, is ended all the same.
    exchange(&w, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    still_well(&w).await
}

/// A text that nests this deep.
fn deep(n: usize) -> String {
    format!("{}{}", "[".repeat(n), "]".repeat(n))
}

fn list(item: &str, n: usize) -> String {
    format!("[{}{item}]", format!("{item},").repeat(n - 1))
}

#[tokio::test]
async fn bodies_are_refused_with_the_field_at_fault() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = |more: &str| format!(r#"{{"name":"n","url":"https://example.com/"{more}}}"#);
    let field = |name: &str, value: &str| endpoint(&format!(r#","{name}":{value}"#));
    let headers: Vec<String> = (0..10_000).map(|i| format!(r#""X-{i}":7"#)).collect();
    let headers = format!("{{{}}}", headers.join(","));
    for (body, at) in [
        (field("name", "\"again\""), "body.name"),
        (field("url", "\"https://example.com/\""), "body.url"),
        (field("custom_headers", r#"{"X-A":"1","X-A":"2"}"#), "body.custom_headers.X-A"),
        (field("custom_headers", r#"{"X-A":"1","x-a":"2"}"#), "body.custom_headers.x-a"),
        (field("custom_headers", r#"{"X-A":"1\r\nX-B: 2"}"#), "body.custom_headers.X-A"),
        (field("custom_headers", r#"{"X-A":"1\nX-B: 2"}"#), "body.custom_headers.X-A"),
        (field("custom_headers", r#"{"X-A":"1\u0000"}"#), "body.custom_headers.X-A"),
        (field("custom_headers", r#"{"X-A: 1\r\nX-B":"2"}"#), "body.custom_headers.X-A: 1\r\nX-B"),
        (field("custom_headers", r#"{"X A":"2"}"#), "body.custom_headers.X A"),
        (field("custom_headers", r#"{"Content-Length":"2"}"#), "body.custom_headers.Content-Length"),
        (field("custom_headers", r#"{"Webhook-Signature":"v1,x"}"#), "body.custom_headers.Webhook-Signature"),
        (field("custom_headers", &format!(r#"{{"X-A":"{}"}}"#, "a".repeat(5000))), "body.custom_headers.X-A"),
        (field("custom_headers", &headers), "body.custom_headers"),
        (field("custom_headers", &deep(10_000)), "body.custom_headers"),
        (field("event_types_filter", &list("\"a\"", 10_000)), "body.event_types_filter"),
        (field("event_types_filter", &list("7", 10_000)), "body.event_types_filter"),
        (field("event_types_filter", &list(&deep(50), 10)), "body.event_types_filter.0"),
        (field("retry_schedule_seconds", &list("1", 10_000)), "body.retry_schedule_seconds"),
        (field("signature_schemes", &list("\"standard-v1\"", 5_000)), "body.signature_schemes"),
        (field("retry_backoff_base", "1e400"), "body.retry_backoff_base"),
        (field("retry_backoff_base", "-1e400"), "body.retry_backoff_base"),
        (field("max_retries", "1e400"), "body.max_retries"),
        (field("max_retries", "99999999999999999999999999"), "body.max_retries"),
        (field("timeout_seconds", &"9".repeat(10_000)), "body.timeout_seconds"),
        (field("paused", &deep(10_000)), "body.paused"),
        (r#"{"name":"a\u0000b","url":"https://example.com/"}"#.to_owned(), "body.name"),
        (r#"{"name":"\ud800","url":"https://example.com/"}"#.to_owned(), "body.name"),
        (r#"{"name":"n","url":"https://example.com/\r\nX: y"}"#.to_owned(), "body.url"),
        (r#"{"name":"n","url":"https://example.com/\u0000"}"#.to_owned(), "body.url"),
    ] {
        let answer = w.api.post_raw("/endpoints", body).await?.expect_problem(422, "validation-failed");
        assert_eq!(answer.body["errors"][0]["field"], at, "{}", answer.body);
        assert!(answer.body["errors"].as_array().is_some_and(|all| all.len() <= 100), "{at}");
    }
    for (body, at) in [
        (r#"{"event_type":"a","event_type":"b","payload":1}"#.to_owned(), "body.event_type"),
        (r#"{"event_type":"a","payload":1,"payload":2}"#.to_owned(), "body.payload"),
        (r#"{"event_type":"a\u0000","payload":1}"#.to_owned(), "body.event_type"),
        (r#"{"event_type":"a\r\nb","payload":1}"#.to_owned(), "body.event_type"),
        (r#"{"event_type":"a","payload":1,"idempotency_key":"\u0000"}"#.to_owned(), "body.idempotency_key"),
        (r#"{"event_type":"a","payload":1,"idempotency_key":1e400}"#.to_owned(), "body.idempotency_key"),
        (format!(r#"{{"event_type":{},"payload":1}}"#, deep(10_000)), "body.event_type"),
        (format!(r#"{{"event_type":"a","payload":{}}}"#, deep(10_000)), "body.payload"),
    ] {
        let answer = w.api.post_raw("/events", body).await?.expect_problem(422, "validation-failed");
        assert_eq!(answer.body["errors"][0]["field"], at, "{}", answer.body);
    }
    for (path, body, at) in [
        ("/events/batch", format!(r#"{{"events":{}}}"#, list("{}", 10_000)), "body.events"),
        ("/events/batch", r#"{"events":[],"events":[{"event_type":"a","payload":1}]}"#.to_owned(), "body.events"),
        ("/keys", format!(r#"{{"name":"n","scopes":{}}}"#, list("\"read\"", 5_000)), "body.scopes"),
        ("/keys", r#"{"name":"n","scopes":["read"],"scopes":["admin"]}"#.to_owned(), "body.scopes"),
        ("/dlq/replay/bulk", r#"{"reason":"gone","reason":"expired"}"#.to_owned(), "body"),
        ("/dlq/replay/bulk", r#"{"event_type":"\u0000"}"#.to_owned(), "body.event_type"),
        ("/dlq/replay/bulk", r#"{"rate":1e400}"#.to_owned(), "body"),
    ] {
        let answer = w.api.post_raw(path, body).await?;
        assert!(answer.status == 422 || answer.status == 400, "{path}: {}", answer.body);
        let named = answer.body["errors"][0]["field"].as_str().unwrap_or("body");
        assert!(named.starts_with(at), "{path}: {}", answer.body);
    }
    for body in [deep(100_000), format!(r#"{{"unknown":{}}}"#, deep(100_000))] {
        let answer = w.api.post_raw("/endpoints", body).await?;
        assert!([400, 422].contains(&answer.status), "{}", answer.body);
    }
    // The payload is the producer's own: whatever is JSON is kept.
    let payload = r#"{"a":1,"a":1e400,"b":[123456789012345678901234567890,"\u0000"]}"#;
    let made = w.api.post_raw("/events", format!(r#"{{"event_type":"a","payload":{payload}}}"#)).await?.expect(202);
    let read = request("GET", &format!("/api/v1/events/{}", made.text("id")), b"", b"");
    let deadline = tokio::time::Instant::now() + it::api::PATIENCE;
    loop {
        let (status, kept) = exchange(&w, &read).await?;
        if status == 200 && kept.contains(payload) {
            break;
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{kept}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    still_well(&w).await
}

/// Every operation of the document, with nonsense in each place that takes something.
#[tokio::test]
async fn nonsense_is_never_a_fault_of_ours() -> anyhow::Result<()> {
    let w = World::start().await?;
    let document = w.api.request("GET", "/openapi.json", &[], None).await?.expect(200).body;
    let nested = format!(r#"{{"name":{0},"events":{0},"x":{0}}}"#, deep(20_000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"\0".to_vec(),
        b"{\"name\":\"\xff\xfe\"}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{\"a\":1".to_vec(),
        b"null".to_vec(),
        b"1e999".to_vec(),
        deep(20_000).into_bytes(),
        "[".repeat(20_000).into_bytes(),
        "{\"a\":".repeat(20_000).into_bytes(),
        nested.into_bytes(),
        list("{\"name\":1}", 5_000).into_bytes(),
    ];
    let long = "x".repeat(20_000);
    let values = ["%00", "a%00b", "%ff", "%0d%0aX:y", "1e400", "-1", "99999999999999999999", "%F0%9F%92%A9", &long];
    let times = ["%2B262142-12-31T23:59:59Z", "-0004-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z"];
    let mut faults = Vec::new();
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase();
            let nobody = "01890a5d-ac96-774b-bcce-b302099a8057";
            let fill = |with: &str| {
                let mut parts = path.split(['{', '}']);
                let first = parts.next().unwrap_or_default().to_owned();
                parts.enumerate().fold(first, |all, (i, part)| all + if i % 2 == 0 { with } else { part })
            };
            let mut requests = Vec::new();
            for body in &bodies {
                requests.push((fill(nobody), request(&method, &fill(nobody), b"", body)));
            }
            for value in values.iter().filter(|_| path.contains('{')) {
                requests.push((fill(value), request(&method, &fill(value), b"", b"{}")));
            }
            let empty = Vec::new();
            for parameter in operation["parameters"].as_array().unwrap_or(&empty) {
                let name = parameter["name"].as_str().unwrap();
                for value in values.iter().chain(&times) {
                    if parameter["in"] == "query" {
                        let target = format!("{}?{name}={value}", fill(nobody));
                        requests.push((target.clone(), request(&method, &target, b"", b"{}")));
                    } else if parameter["in"] == "header" {
                        let header = format!("{name}: {value}\r\n");
                        let raw = [name.as_bytes(), b": \xff\xfe\x80\r\n"].concat();
                        requests.push((header.clone(), request(&method, &fill(nobody), header.as_bytes(), b"{}")));
                        requests.push((header, request(&method, &fill(nobody), &raw, b"{}")));
                    }
                }
            }
            for (what, sent) in requests {
                tried += 1;
                let (status, answer) = exchange(&w, &sent).await.with_context(|| format!("{method} {what}"))?;
                if !(200..500).contains(&status) {
                    let start: String = answer.chars().take(600).collect();
                    let what: String = what.chars().take(200).collect();
                    faults.push(format!(
                        "{method} {what} {:?}: {start}",
                        String::from_utf8_lossy(&sent[sent.len().saturating_sub(60)..])
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
    assert!(tried > 500, "{tried}");
    for key in [&b"\xff\xfe"[..], b"Bearer \xff", b"Bearer ", b"Basic Og==", b"Bearer whr_", &[b'a'; 10_000]] {
        let header = [b"Authorization: ", key, b"\r\nX-API-Key: ", key, b"\r\n"].concat();
        let status = exchange(&w, &request("GET", "/api/v1/endpoints", &header, b"")).await?.0;
        assert!((200..500).contains(&status), "{status}");
    }
    still_well(&w).await
}

/// Those who send slowly wait for themselves only.
#[tokio::test]
async fn slow_clients_keep_nobody_waiting() -> anyhow::Result<()> {
    let w = World::start().await?;
    let address = w.api.url("").replace("http://", "");
    let mut slow = Vec::new();
    for i in 0..1000 {
        let mut stream = TcpStream::connect(&address).await?;
        let start: &[u8] = match i % 3 {
            0 => b"",
            1 => b"POST /api/v1/events HTTP/1.1\r\nHost: relay\r\nX-A: ",
            _ => b"POST /api/v1/events HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        };
        stream.write_all(start).await?;
        slow.push(stream);
    }
    let endpoint = w.api.endpoint(&w.sink.url("/quick"), json!({})).await?.text("id");
    let event = w.api.event(&endpoint, "order.created", Value::Null).await?;
    w.api.wait_status(&event, "delivered").await?;
    drop(slow);
    still_well(&w).await
}
