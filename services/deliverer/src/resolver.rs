//! The guard against requests to addresses that are nobody's business: the resolver that the HTTP connector
//! itself uses returns addresses that were checked, and the connector goes to no others; so a name that changes its
//! address between two lookups gains nothing. Used by `client`.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use relay_core::address::{AddressPolicy, RefusedAddress, is_localhost};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

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

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, looking_up) = (Arc::clone(&self.guard), (self.lookup)(name.as_str().to_owned()));
        let is_proxy = self.proxy.as_deref().is_some_and(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let failed = |reason: String| LookupFailed { host: name.as_str().to_owned(), reason };
            let found = looking_up.await.map_err(|e| failed(e.to_string()))?;
            let mut permitted = Vec::with_capacity(found.len());
            let mut refused = None;
            for ip in found {
                match guard.check(ip) {
                    _ if is_proxy => permitted.push(ip),
                    Ok(()) => permitted.push(ip),
                    Err(why) => refused = Some(why),
                }
            }
            if let Some(why) = refused.filter(|_| permitted.is_empty() || !is_localhost(name.as_str())) {
                return Err(why.into());
            }
            if permitted.is_empty() {
                return Err(failed("it has no addresses".to_owned()).into());
            }
            Ok(Box::new(permitted.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}
