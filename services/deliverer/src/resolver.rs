//! The guard against requests to addresses that are nobody's business: the resolver that the HTTP connector
//! itself uses returns addresses that were checked, and the connector goes to no others; so a name that changes its
//! address between two lookups gains nothing. Used by `direct` and `egress`.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns;
use relay_core::address::{AddressPolicy, RefusedAddress, is_localhost};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tower::{BoxError, Service};

use crate::own::OwnAddresses;

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("resolving {host}: {reason}")]
pub struct LookupFailed {
    host: String,
    reason: String,
}

/// What a lookup is waited for with.
pub type LookingUp = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
/// Asks for all addresses of a name.
pub type Lookup = Arc<dyn Fn(String) -> LookingUp + Send + Sync>;

/// Asks the system's resolver.
pub fn system() -> Lookup {
    Arc::new(|host| {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|found| found.ip()).collect()) })
    })
}

/// Says which addresses may be called from this machine.
#[derive(Clone, Debug)]
pub struct Guard {
    policy: AddressPolicy,
    own: OwnAddresses,
}

impl Guard {
    /// What `policy` permits, without this machine's own addresses; what it allows by name stays allowed.
    pub fn new(policy: AddressPolicy) -> Self {
        Self { policy, own: OwnAddresses::detect() }
    }

    /// Whether `ip` may be called, and why not.
    pub fn check(&self, ip: IpAddr) -> Result<(), RefusedAddress> {
        self.policy.check(ip)?;
        // The kernel is asked last: this is done for each request to an address.
        if !self.policy.names(ip) && self.own.contains(ip) {
            return Err(RefusedAddress { ip, why: "an address of the machine that delivers" });
        }
        Ok(())
    }
}

/// Resolves names to permitted addresses. One refused address refuses the whole name: whoever answers with both
/// kinds wants the connector to try one after the other. Only of `localhost`, whose addresses nobody chooses, the
/// permitted ones are taken.
#[derive(Clone)]
pub struct GuardedResolver {
    guard: Arc<Guard>,
    lookup: Lookup,
    /// The host of the proxy, which an operator chose: it may lie anywhere.
    proxy: Option<String>,
}

impl GuardedResolver {
    /// A resolver under `guard` that asks `lookup`; the addresses of `proxy` are not guarded.
    pub fn new(guard: Arc<Guard>, lookup: Lookup, proxy: Option<String>) -> Self {
        Self { guard, lookup, proxy }
    }
}

impl GuardedResolver {
    async fn permitted(self, name: String) -> Result<Vec<SocketAddr>, BoxError> {
        let failed = |reason: String| LookupFailed { host: name.clone(), reason };
        let found = (self.lookup)(name.clone()).await.map_err(|e| failed(e.to_string()))?;
        let is_proxy = self.proxy.as_deref().is_some_and(|proxy| proxy.eq_ignore_ascii_case(&name));
        let mut permitted = Vec::with_capacity(found.len());
        let mut refused = None;
        for ip in found {
            match self.guard.check(ip) {
                _ if is_proxy => permitted.push(SocketAddr::new(ip, 0)),
                Ok(()) => permitted.push(SocketAddr::new(ip, 0)),
                Err(why) => refused = Some(why),
            }
        }
        if let Some(why) = refused.filter(|_| permitted.is_empty() || !is_localhost(&name)) {
            return Err(why.into());
        }
        if permitted.is_empty() {
            return Err(failed("it has no addresses".to_owned()).into());
        }
        Ok(permitted)
    }
}

/// For hyper's client.
impl Service<dns::Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        let permitted = self.clone().permitted(name.as_str().to_owned());
        Box::pin(async move { Ok(permitted.await?.into_iter()) })
    }
}

/// For reqwest's client.
impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let permitted = self.clone().permitted(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(permitted.await?.into_iter()) as Addrs) })
    }
}
