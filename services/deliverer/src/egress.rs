//! The proxy through which deliveries leave, where an operator sets one: its address, the client that leaves through it
//! (reqwest's, which knows proxies), and what still can't be asked of it.
//! Used by `client`.
//!
//! With a proxy it is the proxy that resolves names and connects, so it is the proxy that must refuse inner addresses.
//! What can be seen from here is still refused here: addresses, names of loopback, and the proxy itself. Only the proxy
//! is connected to, wherever it lies.

use std::net::Ipv4Addr;

use relay_core::address::{RefusedAddress, is_localhost};
use relay_runtime::flags::{ExposeSecret, FlagError, SecretString, secret_from};
use url::{Host, Url};

use crate::connect::{IDLE_TIMEOUT, TimeConnects};
use crate::resolver::{Guard, GuardedResolver};

/// The variable with the proxy's URL (or `RELAY_EGRESS_PROXY_FILE`).
pub const EGRESS_PROXY_VARIABLE: &str = "RELAY_EGRESS_PROXY";

/// A proxy for deliveries. User and password stay in it: `Debug` shows neither.
#[derive(Clone, Debug)]
pub struct EgressProxy {
    url: SecretString,
    host: String,
    shown: String,
}

/// Why a proxy can't be used. The URL is not repeated: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// Not a URL.
    #[error("--egress-proxy (or {EGRESS_PROXY_VARIABLE}) is not a URL: {0}")]
    Syntax(#[from] url::ParseError),
    /// Another kind of proxy.
    #[error(
        "--egress-proxy (or {EGRESS_PROXY_VARIABLE}) must be an HTTP proxy: http://host:port or https://host:port, without a path"
    )]
    Kind,
    /// The file with the URL.
    #[error(transparent)]
    Flag(#[from] FlagError),
}

/// Why a host is not asked of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedHost {
    /// Its address may not be called.
    #[error(transparent)]
    Address(#[from] RefusedAddress),
    /// It is the proxy.
    #[error("the egress proxy itself may not be called")]
    Proxy,
}

impl EgressProxy {
    /// The proxy that was given by flag, else in the environment.
    pub fn of(flag: Option<&SecretString>) -> Result<Option<Self>, EgressError> {
        match flag {
            Some(url) => Ok(Some(Self::new(url)?)),
            None => secret_from(EGRESS_PROXY_VARIABLE)?.map(|url| Self::new(&url)).transpose(),
        }
    }

    /// A proxy by its URL.
    pub fn new(url: &SecretString) -> Result<Self, EgressError> {
        let parsed = Url::parse(url.expose_secret())?;
        let plain = parsed.path() == "/" && parsed.query().is_none() && parsed.fragment().is_none();
        let host = parsed.host_str().filter(|_| plain && matches!(parsed.scheme(), "http" | "https"));
        let host = host.ok_or(EgressError::Kind)?.to_owned();
        let port = parsed.port_or_known_default().ok_or(EgressError::Kind)?;
        let shown = format!("{}://{host}:{port}", parsed.scheme());
        Ok(Self { url: SecretString::from(String::from(parsed)), host, shown })
    }

    /// A client that leaves through it alone, whatever the environment says about exceptions; so many idle connections are kept for
    /// each host. `resolver` is asked for the proxy only.
    pub(crate) fn client(
        &self,
        resolver: GuardedResolver,
        idle_per_host: usize,
    ) -> Result<reqwest::Client, reqwest::Error> {
        #[expect(clippy::disallowed_methods, reason = "this is one of the two clients that the rule points to")]
        reqwest::Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // Before `proxy`, which it would forget.
            .no_proxy()
            .proxy(self.client_proxy()?)
            .referer(false)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(idle_per_host)
            .dns_resolver(resolver)
            .connector_layer(TimeConnects)
            .build()
    }

    fn client_proxy(&self) -> Result<reqwest::Proxy, reqwest::Error> {
        reqwest::Proxy::all(self.url.expose_secret())
    }

    /// The name that is looked up to reach it.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Its address without user and password.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether an endpoint at `host` is asked of the proxy.
    pub(crate) fn check(&self, host: &Host, guard: &Guard) -> Result<(), RefusedHost> {
        if host.to_string().eq_ignore_ascii_case(&self.host) {
            return Err(RefusedHost::Proxy);
        }
        match host {
            // Loopback would be the proxy's.
            Host::Domain(name) if is_localhost(name) => guard.check(Ipv4Addr::LOCALHOST.into())?,
            Host::Domain(_) => {}
            Host::Ipv4(ip) => guard.check((*ip).into())?,
            Host::Ipv6(ip) => guard.check((*ip).into())?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_core::address::AddressPolicy;

    fn proxy(url: &str) -> Result<EgressProxy, EgressError> {
        EgressProxy::new(&SecretString::from(url))
    }

    #[test]
    fn its_password_is_not_shown() {
        let proxy = proxy("http://me:sesame@proxy.internal:3128").unwrap();
        assert_eq!((proxy.shown(), proxy.host()), ("http://proxy.internal:3128", "proxy.internal"));
        assert!(!format!("{proxy:?}").contains("sesame"));
        assert_eq!(self::proxy("https://proxy/").unwrap().shown(), "https://proxy:443");
        assert_eq!(self::proxy("http://[fd00::1]:8080").unwrap().shown(), "http://[fd00::1]:8080");
        for bad in [
            "",
            "proxy:3128",
            "socks5://sesame@proxy:1080",
            "http://u:sesame@proxy/path",
            "http://proxy?sesame",
            "http://",
        ] {
            let error = self::proxy(bad).unwrap_err().to_string();
            assert!(error.contains("RELAY_EGRESS_PROXY") && !error.contains("sesame"), "{bad}: {error}");
        }
    }

    #[test]
    fn fuzz_urls() {
        let seeds =
            ["http://me:sesame@proxy.internal:3128", "https://[fd00::1]/", "socks5://sesame@x", "http://sesame"];
        let words: &[&[u8]] = &[b"sesame", b"@", b":", b"//", b"[", b"%73"];
        relay_fuzz::fuzz("egress proxies", &seeds, words, |input| {
            Some(match proxy(relay_fuzz::text(input)?) {
                Ok(proxy) => {
                    let (shown, debug) = (proxy.shown(), format!("{proxy:?}"));
                    let public = proxy.host().contains("sesame");
                    assert!(public || !shown.contains("sesame") && !debug.contains("sesame"), "{debug}");
                    assert!(proxy.client_proxy().is_ok());
                    "ok".to_owned()
                }
                Err(why) => {
                    assert!(!why.to_string().contains("sesame"), "{why}");
                    why.to_string()
                }
            })
        });
    }

    #[test]
    fn what_can_be_seen_from_here_is_refused_here() {
        let proxy = proxy("http://proxy.internal:3128").unwrap();
        let check = |url: &str, allow: &[&str]| {
            let guard = Guard::new(AddressPolicy::new(allow.iter().map(|n| n.parse().unwrap()).collect()));
            proxy.check(&Url::parse(url).unwrap().host().unwrap().to_owned(), &guard)
        };
        for inner in ["http://10.0.0.1", "https://[::1]", "http://0x7f.1", "http://localhost", "https://a.localhost"] {
            assert!(matches!(check(inner, &[]), Err(RefusedHost::Address(_))), "{inner}");
        }
        assert_eq!(check("https://PROXY.internal:22", &[]), Err(RefusedHost::Proxy));
        assert_eq!(check("http://127.0.0.1", &["127.0.0.0/8"]), Ok(()));
        assert_eq!(check("http://localhost", &["127.0.0.0/8"]), Ok(()));
        for outer in ["https://hooks.example.com", "http://93.184.216.34"] {
            assert_eq!(check(outer, &[]), Ok(()), "{outer}");
        }
    }
}
