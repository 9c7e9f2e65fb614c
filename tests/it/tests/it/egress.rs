//! The ways out: over TLS to receivers whose certificate is trusted and to no others, and through an operator's proxy to
//! names that only the proxy can look up.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use it::World;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

const NAME: &str = "hooks.nowhere.invalid";

/// A port of loopback where each connection is given to `serve`.
async fn listening<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> anyhow::Result<SocketAddr>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    Ok(address)
}

/// A proxy that leads plain requests to `plain` and tunnels to `secured`, and writes down what it was asked.
async fn proxy(plain: SocketAddr, secured: SocketAddr) -> anyhow::Result<(SocketAddr, Arc<Mutex<Vec<String>>>)> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let address = listening(move |mut client| {
        let log = Arc::clone(&log);
        async move {
            let mut head = Vec::new();
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                if client.read_buf(&mut head).await? == 0 {
                    return Ok(());
                }
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            log.lock().unwrap().push(text.clone());
            let mut server;
            if text.starts_with("CONNECT ") {
                server = TcpStream::connect(secured).await?;
                client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
            } else {
                server = TcpStream::connect(plain).await?;
                // The sink knows paths, not addresses.
                server.write_all(text.replacen(&format!("http://{NAME}/"), "/", 1).as_bytes()).await?;
            }
            copy_bidirectional(&mut client, &mut server).await?;
            Ok(())
        }
    })
    .await?;
    Ok((address, asked))
}

/// Speaks TLS for the server at `to`.
async fn secured(to: SocketAddr, made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> anyhow::Result<SocketAddr> {
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    listening(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let (mut client, mut server) = (acceptor.accept(stream).await?, TcpStream::connect(to).await?);
            copy_bidirectional(&mut client, &mut server).await?;
            Ok(())
        }
    })
    .await
}

#[tokio::test]
async fn deliveries_leave_through_the_proxy() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let roots = w.data("roots.pem");
    std::fs::write(&roots, made.cert.pem())?;
    let sink: SocketAddr = reqwest::Url::parse(&w.sink.url("/"))?.socket_addrs(|| None)?[0];
    let (proxy, asked) = proxy(sink, secured(sink, &made).await?).await?;
    let flags = ["--egress-proxy".to_owned(), format!("http://me:sesame@localhost:{}", proxy.port())];
    let trust = [("SSL_CERT_FILE".to_owned(), roots.to_string_lossy().into_owned())];
    let (mut deliverer, _) = w.service_with("deliverer", "deliverer", &flags, &trust).await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    for (scheme, path) in [("http", "/plain"), ("https", "/secured")] {
        let endpoint = w.api.endpoint(&format!("{scheme}://{NAME}{path}"), json!({})).await?.text("id");
        let event = w.api.event(&endpoint, "a.b", json!({})).await?;
        w.api.wait_status(&event, "delivered").await?;
        assert_eq!(w.sink.received(path).len(), 1, "{scheme}");
    }
    let asked = asked.lock().unwrap().clone();
    assert!(asked.iter().any(|head| head.starts_with(&format!("POST http://{NAME}/plain HTTP/1.1\r\n"))), "{asked:?}");
    assert!(asked.iter().any(|head| head.starts_with(&format!("CONNECT {NAME}:443 HTTP/1.1\r\n"))), "{asked:?}");
    for head in &asked {
        assert!(head.to_lowercase().contains("\r\nproxy-authorization: basic "), "{head}");
    }
    for received in w.sink.received("/plain").into_iter().chain(w.sink.received("/secured")) {
        assert!(received.headers.contains_key("webhook-signature"));
    }
    assert!(deliverer.terminate().await?, "{}", deliverer.output());
    let output = deliverer.output();
    assert!(output.contains(&format!("http://localhost:{}", proxy.port())) && !output.contains("sesame"), "{output}");
    Ok(())
}

/// Without a proxy: who shows a certificate that the system trusts, for the name that was asked for, gets the event.
#[tokio::test]
async fn over_tls_only_those_get_it_who_prove_their_name() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (other_name, unknown) = (
        rcgen::generate_simple_self_signed([NAME.to_owned()])?,
        rcgen::generate_simple_self_signed(["localhost".to_owned()])?,
    );
    let roots = w.data("roots.pem");
    std::fs::write(&roots, made.cert.pem() + &other_name.cert.pem())?;
    let trust = [("SSL_CERT_FILE".to_owned(), roots.to_string_lossy().into_owned())];
    let (_deliverer, _) = w.service_with("deliverer", "deliverer", &[], &trust).await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    let sink: SocketAddr = reqwest::Url::parse(&w.sink.url("/"))?.socket_addrs(|| None)?[0];
    let settings = json!({"retry_schedule_seconds": [0], "circuit_failure_threshold": 100});
    for (shown, path, status) in [
        (&made, "/trusted", "delivered"),
        (&other_name, "/other", "dead_lettered"),
        (&unknown, "/unknown", "dead_lettered"),
    ] {
        let port = secured(sink, shown).await?.port();
        let endpoint = w.api.endpoint(&format!("https://localhost:{port}{path}"), settings.clone()).await?.text("id");
        let event = w.api.event(&endpoint, "a.b", json!({})).await?;
        w.api.wait_status(&event, status).await?;
        let came = w.sink.received(path).len();
        assert_eq!(came, usize::from(status == "delivered"), "{path}");
        let attempts = w.api.get(&format!("/events/{event}/attempts")).await?.expect(200);
        let attempt = &attempts.body["items"][0];
        let class = if came == 1 { json!(null) } else { json!("tls") };
        assert_eq!(attempt["error_class"], class, "{path}: {attempt}");
    }
    Ok(())
}

/// A proxy that can't be used is said before anything is waited for, without its password.
#[test]
fn a_bad_proxy_is_refused_at_once() -> anyhow::Result<()> {
    let output = std::process::Command::new(it::process::binary("deliverer")?)
        .args(["--database-url", "postgres://127.0.0.1:1/x", "--redis-url", "redis://127.0.0.1:1"])
        .args(["--nats-url", "nats://127.0.0.1:1", "--egress-proxy", "socks5://me:sesame@proxy:1080"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("--egress-proxy") && !text.contains("sesame"), "{text}");
    Ok(())
}
