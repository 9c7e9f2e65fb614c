//! The way of deliveries that leave without a proxy: hyper's client, below reqwest, which takes half as much of a processor for
//! a request (docs/performance.md). Connects through the guarded resolver only. Used by `client`.

use std::io;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tower::Layer;

use crate::connect::{IDLE_TIMEOUT, TimeConnects, TimedConnect};
use crate::resolver::GuardedResolver;

/// Makes connections; clones share what TLS knows.
pub type Connector = TimedConnect<HttpsConnector<HttpConnector<GuardedResolver>>>;

/// Connections to endpoints. Cheap to clone.
#[derive(Clone)]
pub struct Direct {
    client: Client<Connector, Full<Bytes>>,
}

/// Connects where `resolver` leads. Certificates are checked as the system does.
pub fn connector(resolver: GuardedResolver) -> io::Result<Connector> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.set_nodelay(true);
    // The scheme decides about TLS, one layer above.
    tcp.enforce_http(false);
    let tls = HttpsConnectorBuilder::new()
        .with_provider_and_platform_verifier(aws_lc_rs::default_provider())?
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(TimeConnects.layer(tls))
}

impl Direct {
    /// Connections of `connector`; so many idle ones are kept for each host.
    pub fn new(connector: Connector, idle_per_host: usize) -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is one of the two clients that the rule points to")]
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(idle_per_host)
            .build(connector);
        Self { client }
    }

    /// Sends a request; redirects are not followed.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Incoming>, Error> {
        self.client.request(request.map(Full::new)).await
    }
}
