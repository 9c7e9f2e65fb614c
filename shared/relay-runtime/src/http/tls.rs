//! TLS of a listener: a certificate and its key from two files, read again when they change, so that a renewal needs no
//! restart. Used by `serve`, which runs each handshake in the task of its connection: none holds up another.
//!
//! Invariants: a pair of files that can't be used never replaces one that can. The key is in memory only, and in no log.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use relay_core::problem::{Problem, ProblemType};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long a client may take for its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The TLS of a listener. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    cert: PathBuf,
    key: PathBuf,
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    /// What the first certificate was made of.
    first: Seen,
}

/// The certificate that handshakes are answered with, whatever name a client asks for.
struct Current(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// What was found in the files: a digest of both, or why they can't be read. The same again is no news.
type Seen = Result<[u8; 32], String>;

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate in its file.
    #[error("{}: a certificate chain in PEM is needed (-----BEGIN CERTIFICATE-----): {why}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What was found.
        why: String,
    },
    /// No private key in its file.
    #[error("{}: a private key in PEM is needed (-----BEGIN PRIVATE KEY-----, without a pass phrase): {why}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What was found.
        why: String,
    },
    /// They don't fit together, or the key is of a kind that TLS doesn't use.
    #[error("the certificate in {} and the key in {} can't be used together: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The TLS library can't be set up.
    #[error(transparent)]
    Setup(rustls::Error),
}

/// Both files as they are.
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |file: &Path| std::fs::read(file).map_err(|source| TlsError::File { file: file.to_owned(), source });
        Ok(Self { cert: read(cert)?, key: read(key)? })
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((self.cert.len() as u64).to_be_bytes());
        hash.update(&self.cert);
        hash.update(&self.key);
        hash.finalize().into()
    }

    fn pair(&self, cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
        let wrong = |why: &dyn fmt::Display| TlsError::Certificate { file: cert.to_owned(), why: why.to_string() };
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&self.cert).collect::<Result<_, _>>().map_err(|e| wrong(&e))?;
        if chain.is_empty() {
            return Err(wrong(&pem::Error::NoItemsFound));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|why| TlsError::Key { file: key.to_owned(), why: why.to_string() })?;
        CertifiedKey::from_der(chain, private, &provider()).map_err(|source| TlsError::Pair {
            cert: cert.to_owned(),
            key: key.to_owned(),
            source,
        })
    }
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

impl Tls {
    /// Reads the files: TLS 1.2 and 1.3, and HTTP/1.1 within.
    ///
    /// # Errors
    /// A file can't be read, or what is in them can't be used.
    pub fn load(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let files = Files::read(&cert, &key)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(files.pair(&cert, &key)?))));
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self(Arc::new(Inner { cert, key, acceptor, current, first: Ok(files.digest()) })))
    }

    /// Takes a new certificate where the files have one, until `stop` fires: they are looked at every five seconds, and
    /// at once on SIGHUP.
    pub(super) async fn follow(self, stop: CancellationToken) {
        let hangups = signal(SignalKind::hangup());
        let mut hangups = hangups
            .map_err(|error| tracing::warn!(%error, "SIGHUP can't be listened to; the certificate's files are looked at by the clock"))
            .ok();
        let mut seen = self.0.first.clone();
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_asked = tokio::select! {
                _ = ticks.tick() => false,
                () = hangup(hangups.as_mut()) => true,
                () = stop.cancelled() => return,
            };
            let (this, before) = (self.clone(), seen.clone());
            // Reading files blocks.
            match tokio::task::spawn_blocking(move || this.look(&before, is_asked)).await {
                Ok(found) => seen = found,
                Err(error) => tracing::error!(%error, "looking at the certificate's files ended badly"),
            }
        }
    }

    /// Looks at the files; what is in them that wasn't `seen` before becomes the certificate, or is logged.
    fn look(&self, seen: &Seen, is_asked: bool) -> Seen {
        let Inner { cert, key, current, .. } = &*self.0;
        let files = Files::read(cert, key);
        let found = files.as_ref().map(Files::digest).map_err(ToString::to_string);
        if found == *seen && !is_asked {
            return found;
        }
        match files.and_then(|files| files.pair(cert, key)) {
            Ok(pair) => {
                *current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
                tracing::info!(cert = %cert.display(), "the TLS certificate was read again");
            }
            Err(error) => tracing::warn!(%error, "the new TLS certificate can't be used; the one before stays"),
        }
        found
    }

    /// The handshake with a client; `None` where none came about, which says more of the client than of us.
    pub(super) async fn accept(&self, stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let (reason, error) = match timeout(HANDSHAKE_MAX, self.handshake(stream)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(NoHandshake::Plain)) => ("plain_http", "plain HTTP".to_owned()),
            Ok(Err(NoHandshake::Failed(error))) => ("failed", error.to_string()),
            Err(_) => ("timeout", format!("not done within {} s", HANDSHAKE_MAX.as_secs())),
        };
        metrics::counter!("relay_tls_handshakes_failed_total", "reason" => reason).increment(1);
        tracing::debug!(client = %peer.ip(), error, "no TLS handshake");
        None
    }

    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, NoHandshake> {
        let mut first = [0];
        stream.peek(&mut first).await?;
        // A handshake begins with the byte 22, a request with a letter.
        if first[0].is_ascii_alphabetic() {
            // Waits no longer than for the first bytes, and is not interested in what they say.
            let _ = turn_away(stream).await;
            return Err(NoHandshake::Plain);
        }
        Ok(self.0.acceptor.accept(stream).await?)
    }
}

async fn hangup(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Why no handshake came about.
enum NoHandshake {
    /// The client sent a plain request.
    Plain,
    Failed(io::Error),
}

impl From<io::Error> for NoHandshake {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Says that this port speaks TLS.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    // What was not read when a connection is closed makes it a reset, which can overtake the answer.
    stream.read_buf(&mut Vec::with_capacity(16 * 1024)).await?;
    let problem = Problem::new(ProblemType::BadRequest, "this port speaks TLS: use https://");
    let body = serde_json::to_string(&problem).expect("a problem has only texts and numbers");
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests;
