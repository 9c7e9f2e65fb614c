//! The guard against requests to addresses that are nobody's business: the resolver that the HTTP connector
//! itself uses returns permitted addresses only, so a name that changes its address between a check and the
//! connect gains nothing. Used by `client`.

use std::net::SocketAddr;
use std::sync::Arc;

use relay_core::address::AddressPolicy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("resolving {host}: {reason}")]
pub struct LookupFailed {
    host: String,
    reason: String,
}

/// Resolves by the system's resolver and drops what the policy refuses. Where nothing is left, the error is the
/// [`RefusedAddress`](relay_core::address::RefusedAddress) of the last one.
pub struct GuardedResolver {
    policy: Arc<AddressPolicy>,
}

impl GuardedResolver {
    /// A resolver under `policy`.
    pub fn new(policy: Arc<AddressPolicy>) -> Self {
        Self { policy }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            let host = name.as_str();
            let failed = |reason: String| LookupFailed { host: host.to_owned(), reason };
            let found = tokio::net::lookup_host((host, 0)).await.map_err(|e| failed(e.to_string()))?;
            let mut permitted: Vec<SocketAddr> = Vec::new();
            let mut refused = None;
            for address in found {
                match policy.check(address.ip()) {
                    Ok(()) => permitted.push(address),
                    Err(why) => refused = Some(why),
                }
            }
            match (permitted.is_empty(), refused) {
                (false, _) => Ok(Box::new(permitted.into_iter()) as Addrs),
                (true, Some(why)) => Err(why.into()),
                (true, None) => Err(failed("it has no addresses".to_owned()).into()),
            }
        })
    }
}
