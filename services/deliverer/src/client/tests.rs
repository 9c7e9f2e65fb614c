//! The client against small servers that misbehave in every way that matters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Method;
use relay_core::delivery::EXCERPT_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: b\r\n\r\nok";
/// Long enough that no test meets it by accident.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that gives each connection, with its number from 0, to `serve`.
async fn server<F>(serve: impl Fn(usize, TcpStream) -> F + Send + 'static) -> (Url, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/hook", listener.local_addr().unwrap())).unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(count.fetch_add(1, Ordering::SeqCst), stream));
        }
    });
    (url, connections)
}

/// Reads one request with a body of two bytes; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") || !bytes.ends_with(b"{}") {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}

fn sender(allow: &[&str]) -> Sender {
    Sender::new(AddressPolicy::new(allow.iter().map(|net| net.parse().unwrap()).collect()), None).unwrap()
}

fn local() -> Sender {
    sender(&["127.0.0.0/8", "::1/128"])
}

async fn post(sender: &Sender, url: &Url, timeout: Duration) -> Sent {
    let build = || {
        let mut request = Request::new(Bytes::from_static(b"{}"));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.as_str().try_into().unwrap();
        request
    };
    sender.post(build, timeout).await
}

fn class(sent: &Sent) -> TransportError {
    sent.answer.as_ref().expect_err("no answer was expected").class
}

#[tokio::test]
async fn an_answer_comes_with_its_headers_body_and_times() {
    let (url, connections) = server(|_, mut stream| async move {
        while read_request(&mut stream).await.is_some() {
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let sender = local();
    let first = post(&sender, &url, PATIENCE).await;
    assert!(first.connect_us.is_some());
    let reply = first.answer.unwrap();
    assert_eq!((reply.status, &reply.excerpt[..], &reply.headers["x-a"]), (200, &b"ok"[..], &"b".parse().unwrap()));
    assert!(reply.first_byte_us >= first.connect_us.unwrap() && first.total_us >= reply.first_byte_us);
    let second = post(&sender, &url, PATIENCE).await;
    assert_eq!((second.connect_us, connections.load(Ordering::SeqCst)), (None, 1), "the connection is used again");
}

#[tokio::test]
async fn redirects_are_answers() {
    let (url, connections) = server(|_, mut stream| async move {
        while let Some(request) = read_request(&mut stream).await {
            assert!(request.starts_with("POST /hook "));
            stream.write_all(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let sent = post(&local(), &url, PATIENCE).await;
    assert_eq!(sent.answer.unwrap().status, 302);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn silence_ends_with_the_time_out() {
    let (url, _) = server(|_, mut stream| async move {
        read_request(&mut stream).await;
        std::future::pending().await
    })
    .await;
    let sent = post(&local(), &url, Duration::from_millis(100)).await;
    assert_eq!(class(&sent), TransportError::Timeout);
    assert!(sent.connect_us.is_some());
}

#[tokio::test]
async fn the_status_counts_however_slowly_the_body_dribbles() {
    let (url, _) = server(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let reply = post(&local(), &url, Duration::from_millis(300)).await.answer.unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.excerpt.len() < 1000);
}

#[tokio::test]
async fn of_a_large_body_only_the_start_is_kept() {
    let (url, _) = server(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let chunk = [b"8000\r\n".to_vec(), vec![b'y'; 0x8000], b"\r\n".to_vec()].concat();
        while stream.write_all(&chunk).await.is_ok() {}
    })
    .await;
    let reply = post(&local(), &url, PATIENCE).await.answer.unwrap();
    assert_eq!((reply.status, reply.excerpt.len()), (500, EXCERPT_BYTES_MAX));
}

#[tokio::test]
async fn a_stale_connection_costs_a_second_try_on_a_fresh_one() {
    let (url, connections) = server(|number, mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        if number == 0 {
            // As a server that closes an idle connection just when a request comes.
            read_request(&mut stream).await;
        }
    })
    .await;
    let sender = local();
    assert_eq!(post(&sender, &url, PATIENCE).await.answer.unwrap().status, 200);
    let second = post(&sender, &url, PATIENCE).await;
    assert_eq!(second.answer.unwrap().status, 200);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_fresh_connection_that_is_lost_is_not_tried_again() {
    let (url, connections) = server(|_, mut stream| async move {
        read_request(&mut stream).await;
    })
    .await;
    assert_eq!(class(&post(&local(), &url, PATIENCE).await), TransportError::ConnectionClosed);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn failures_have_their_classes() {
    let (garbage, _) = server(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(b"no http at all\r\n\r\n").await.unwrap();
    })
    .await;
    assert_eq!(class(&post(&local(), &garbage, PATIENCE).await), TransportError::Protocol);

    let (mut plain, _) = server(|_, mut stream| async move {
        let mut hello = [0; 512];
        let _ = stream.read(&mut hello).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    plain.set_scheme("https").unwrap();
    assert_eq!(class(&post(&local(), &plain, PATIENCE).await), TransportError::Tls);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = Url::parse(&format!("http://{closed}/")).unwrap();
    assert_eq!(class(&post(&local(), &closed, PATIENCE).await), TransportError::Connect);

    let nowhere = Url::parse("http://nowhere.invalid/").unwrap();
    assert_eq!(class(&post(&local(), &nowhere, PATIENCE).await), TransportError::Dns);
}

#[tokio::test]
async fn addresses_that_are_not_permitted_are_never_connected_to() {
    let (url, connections) = server(|_, _| async {}).await;
    let strict = sender(&[]);
    assert_eq!(class(&post(&strict, &url, PATIENCE).await), TransportError::AddressRefused);
    let mut by_name = url.clone();
    by_name.set_host(Some("localhost")).unwrap();
    let refused = post(&strict, &by_name, PATIENCE).await;
    assert_eq!(class(&refused), TransportError::AddressRefused);
    assert!(refused.answer.unwrap_err().text.contains("loopback"));
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

/// A sender that may call 127.0.0.1 only, with a name server whose answer to the n-th lookup is `answers(n)`.
fn rebinding(answers: fn(usize) -> &'static [&'static str]) -> (Sender, Arc<AtomicUsize>) {
    let lookups = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lookups);
    let lookup: Lookup = Arc::new(move |host| {
        assert_eq!(host, "rebinding.example");
        let found = answers(count.fetch_add(1, Ordering::SeqCst)).iter().map(|ip| ip.parse().unwrap()).collect();
        Box::pin(async move { Ok(found) })
    });
    let policy = AddressPolicy::new(vec!["127.0.0.1/32".parse().unwrap()]);
    (Sender::with_lookup(policy, None, lookup).unwrap(), lookups)
}

/// Servers on the same port of 127.0.0.1 (permitted) and 127.0.0.2 (not), and how often each was connected to.
async fn good_and_bad() -> (Url, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let closing = |_, mut stream: TcpStream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    };
    loop {
        let (mut url, good) = server(closing).await;
        let Ok(listener) = TcpListener::bind(("127.0.0.2", url.port().unwrap())).await else { continue };
        let bad = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&bad);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        url.set_host(Some("rebinding.example")).unwrap();
        return (url, good, bad);
    }
}

#[tokio::test]
async fn a_name_that_changes_its_address_gains_nothing() {
    let (url, good, bad) = good_and_bad().await;
    let (sender, lookups) = rebinding(|n| if n % 2 == 0 { &["127.0.0.1"] } else { &["127.0.0.2"] });
    for round in 1..=5 {
        assert_eq!(post(&sender, &url, PATIENCE).await.answer.unwrap().status, 200);
        assert_eq!(lookups.load(Ordering::SeqCst), 2 * round - 1, "what is connected to is what was looked up, once");
        assert_eq!(class(&post(&sender, &url, PATIENCE).await), TransportError::AddressRefused);
        assert_eq!(lookups.load(Ordering::SeqCst), 2 * round);
    }
    assert_eq!((good.load(Ordering::SeqCst), bad.load(Ordering::SeqCst)), (5, 0));
}

#[tokio::test]
async fn one_refused_address_refuses_the_name() {
    let (url, good, bad) = good_and_bad().await;
    let answers: fn(usize) -> &'static [&'static str] = |n| match n {
        0 => &["127.0.0.1", "127.0.0.2"],
        1 => &["127.0.0.2", "127.0.0.1"],
        2 => &["127.0.0.1", "::ffff:10.0.0.1"],
        3 => &["127.0.0.1", "fe80::1"],
        4 => &["::1"],
        _ => &[],
    };
    let (sender, _) = rebinding(answers);
    for _ in 0..5 {
        assert_eq!(class(&post(&sender, &url, PATIENCE).await), TransportError::AddressRefused);
    }
    assert_eq!(class(&post(&sender, &url, PATIENCE).await), TransportError::Dns, "a name without addresses");
    assert_eq!((good.load(Ordering::SeqCst), bad.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test]
async fn of_localhost_the_permitted_addresses_are_taken() {
    let (mut url, connections) = server(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    url.set_host(Some("localhost")).unwrap();
    let both: Lookup = Arc::new(|_| {
        Box::pin(async { Ok(vec![std::net::Ipv6Addr::LOCALHOST.into(), std::net::Ipv4Addr::LOCALHOST.into()]) })
    });
    let policy = AddressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]);
    let sent = post(&Sender::with_lookup(policy, None, both).unwrap(), &url, PATIENCE).await;
    assert_eq!(sent.answer.unwrap().status, 200);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// A proxy that leads everything to `to`, and what it was asked: the first line of each request and its credentials.
async fn proxy(to: &Url) -> (Url, Arc<std::sync::Mutex<Vec<String>>>) {
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (log, to) = (Arc::clone(&asked), to.socket_addrs(|| None).unwrap()[0]);
    let (url, _) = server(move |_, mut client| {
        let log = Arc::clone(&log);
        async move {
            let mut head = Vec::new();
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                if client.read_buf(&mut head).await.unwrap() == 0 {
                    return;
                }
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            let credentials =
                text.lines().find_map(|l| l.to_lowercase().strip_prefix("proxy-authorization: ").map(|_| &l[21..]));
            log.lock().unwrap().push(format!("{} {}", text.lines().next().unwrap(), credentials.unwrap_or("-")));
            let mut server = TcpStream::connect(to).await.unwrap();
            if text.starts_with("CONNECT ") {
                client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
            } else {
                server.write_all(&head).await.unwrap();
            }
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    })
    .await;
    (url, asked)
}

/// A sender that may call no inner address, through a proxy at `url` that is known by a name.
fn through(url: &Url) -> Sender {
    let lookup: Lookup = Arc::new(|host| {
        assert_eq!(host, "proxy.internal", "nothing but the proxy is looked up here");
        Box::pin(async { Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()]) })
    });
    let proxy = format!("http://me:p%40ss@proxy.internal:{}", url.port().unwrap());
    let proxy = EgressProxy::new(&relay_runtime::flags::SecretString::from(proxy)).unwrap();
    Sender::with_lookup(AddressPolicy::new(Vec::new()), Some(proxy), lookup).unwrap()
}

/// `me:p@ss`.
const CREDENTIALS: &str = "Basic bWU6cEBzcw==";

#[tokio::test]
async fn a_proxy_is_asked_for_names_that_nobody_looks_up_here() {
    let (endpoint, _) = server(|_, mut stream| async move {
        let mut first = [0];
        stream.peek(&mut first).await.unwrap();
        if first == *b"P" {
            read_request(&mut stream).await;
            stream.write_all(OK).await.unwrap();
        } else {
            // Speaks no TLS: that it was asked to is what counts.
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
        }
    })
    .await;
    let (url, asked) = proxy(&endpoint).await;
    let sender = through(&url);
    let plain = Url::parse("http://hooks.example.com/a?b=c").unwrap();
    assert_eq!(post(&sender, &plain, PATIENCE).await.answer.unwrap().status, 200);
    let secured = Url::parse("https://hooks.example.com:8443/a").unwrap();
    assert_eq!(class(&post(&sender, &secured, PATIENCE).await), TransportError::Tls);
    let asked = asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            format!("POST http://hooks.example.com/a?b=c HTTP/1.1 {CREDENTIALS}"),
            format!("CONNECT hooks.example.com:8443 HTTP/1.1 {CREDENTIALS}"),
        ]
    );
}

#[tokio::test]
async fn a_proxy_is_not_asked_for_what_is_refused() {
    let (endpoint, connections) = server(|_, _| async {}).await;
    let (url, asked) = proxy(&endpoint).await;
    let sender = through(&url);
    for inner in [
        "http://10.0.0.1/",
        "https://[::1]/",
        "http://localhost/",
        "https://169.254.169.254/",
        "http://proxy.internal:22/",
    ] {
        let sent = post(&sender, &Url::parse(inner).unwrap(), PATIENCE).await;
        assert_eq!(class(&sent), TransportError::AddressRefused, "{inner}");
    }
    assert!(asked.lock().unwrap().is_empty());
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_a_proxy_says_itself_is_no_answer_of_the_endpoint() {
    let (refusing, _) = server(|_, mut stream| async move {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    let sender = through(&refusing);
    for url in ["http://hooks.example.com/", "https://hooks.example.com/"] {
        let sent = post(&sender, &Url::parse(url).unwrap(), PATIENCE).await;
        assert_eq!(class(&sent), TransportError::Connect, "{url}");
        let text = sent.answer.unwrap_err().text;
        assert!(text.contains("proxy") && !text.contains("p@ss"), "{text}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = through(&Url::parse(&format!("http://{closed}/")).unwrap());
    let sent = post(&away, &Url::parse("https://hooks.example.com/").unwrap(), PATIENCE).await;
    assert_eq!(class(&sent), TransportError::Connect);
}
