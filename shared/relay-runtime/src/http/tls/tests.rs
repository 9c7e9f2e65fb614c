//! TLS with certificates of the test's own, and clients that do it right, slowly, or not at all.

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as Secured;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};

use super::*;
use crate::http::{Front, serve_behind};

/// A certificate for `localhost` that signs itself, and its key.
struct Pair {
    cert: rcgen::Certificate,
    key: rcgen::KeyPair,
}

fn pair() -> Pair {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    Pair { cert, key: signing_key }
}

/// The two files of a listener.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn with(pair: &Pair) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.write(&pair.cert.pem(), &pair.key.serialize_pem());
        place
    }

    fn cert(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    fn write(&self, cert: &str, key: &str) {
        std::fs::write(self.cert(), cert).unwrap();
        std::fs::write(self.key(), key).unwrap();
    }

    fn load(&self) -> Result<Tls, TlsError> {
        Tls::load(self.cert(), self.key())
    }
}

/// A server behind `tls`.
struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn served(tls: Tls) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let router = Router::new().route("/", get(async || "over TLS"));
    let task = tokio::spawn(serve_behind(Front { tls: Some(tls), ..Front::default() }, listener, router, stop.clone()));
    Served { address, stop, task }
}

/// A client that trusts `pair` only.
fn connector(pair: &Pair, version: &'static SupportedProtocolVersion, protocol: &[u8]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn connect(connector: &TlsConnector, address: SocketAddr) -> io::Result<Secured<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// What a server answers to a client that trusts `pair`.
async fn answer(pair: &Pair, address: SocketAddr) -> io::Result<String> {
    let mut stream = connect(&connector(pair, &TLS13, b"http/1.1"), address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn both_versions_speak_http_1_1() {
    let pair = pair();
    let server = served(Place::with(&pair).load().unwrap()).await;
    assert!(answer(&pair, server.address).await.unwrap().ends_with("over TLS"));
    for (version, is) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let stream = connect(&connector(&pair, version, b"http/1.1"), server.address).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!((session.protocol_version(), session.alpn_protocol()), (Some(is), Some(&b"http/1.1"[..])));
    }
    assert!(connect(&connector(&pair, &TLS13, b"h2"), server.address).await.is_err(), "HTTP/2 is not spoken");
    server.stop.cancel();
    server.task.await.unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_and_a_bad_one_is_not() {
    let (old, new) = (pair(), pair());
    let place = Place::with(&old);
    let tls = place.load().unwrap();
    let server = served(tls.clone()).await;
    let look = |seen: &Seen| tls.look(seen, false);
    let mut seen = look(&tls.0.first);
    assert_eq!(seen, tls.0.first);
    for (cert, key) in [
        (new.cert.pem(), old.key.serialize_pem()),
        (String::new(), new.key.serialize_pem()),
        (new.cert.pem(), "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n".to_owned()),
    ] {
        place.write(&cert, &key);
        seen = look(&seen);
        assert!(answer(&old, server.address).await.is_ok(), "the one before stays");
    }
    std::fs::remove_file(place.key()).unwrap();
    seen = look(&seen);
    assert!(seen.is_err() && answer(&old, server.address).await.is_ok());
    place.write(&new.cert.pem(), &new.key.serialize_pem());
    assert!(look(&seen).is_ok());
    assert!(answer(&old, server.address).await.is_err());
    assert!(answer(&new, server.address).await.unwrap().ends_with("over TLS"));
}

#[tokio::test]
async fn files_are_looked_at_by_the_clock() {
    let (old, new) = (pair(), pair());
    let place = Place::with(&old);
    let tls = place.load().unwrap();
    place.write(&new.cert.pem(), &new.key.serialize_pem());
    let server = served(tls).await;
    // The first look is at once.
    while answer(&new, server.address).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_handshake_holds_up_nobody_and_ends() {
    let pair = pair();
    let tls = Place::with(&pair).load().unwrap();
    let server = served(tls).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    assert!(answer(&pair, server.address).await.is_ok(), "others are answered meanwhile");
    tokio::time::pause();
    // Paused time goes on only while nothing else happens.
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(slow.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn plain_http_is_told_so_and_nonsense_ends() {
    let server = served(Place::with(&pair()).load().unwrap()).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 400 ") && head.contains(&format!("content-length: {}\r\n", body.len())),
        "{head}"
    );
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["type"], "urn:webhook-relay:problem:bad-request");
    assert!(problem["detail"].as_str().unwrap().contains("https://"));

    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&[0; 64]).await.unwrap();
    let mut rest = Vec::new();
    // An alert, or a reset.
    let _ = client.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP"));
}

#[tokio::test]
async fn handshakes_under_way_do_not_hold_up_the_end() {
    let server = served(Place::with(&pair()).load().unwrap()).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    server.stop.cancel();
    server.task.await.unwrap();
    let _ = silent.read(&mut [0; 1]).await;
}

#[test]
fn errors_say_which_file_and_what_is_wrong() {
    let (one, other) = (pair(), pair());
    for (cert, key, says) in [
        ("", &*one.key.serialize_pem(), "cert.pem: a certificate chain in PEM is needed"),
        (&*one.cert.pem(), "", "key.pem: a private key in PEM is needed"),
        (&*one.cert.pem(), &*other.key.serialize_pem(), "can't be used together"),
    ] {
        let place = Place::with(&one);
        place.write(cert, key);
        let Err(error) = place.load() else { panic!("{says}") };
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains("PRIVATE KEY-----\nMI"), "{error}");
    }
}
