//! What an operator puts between clients and a listener: TLS, and proxies. The flags of the services that have an interface, and
//! what is made of them. Used by `serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use relay_core::address::Network;
use relay_core::forwarded::{ProxyHeader, TrustedProxies};

use super::tls::{Tls, TlsError};

/// What stands in front of a listener; by default nothing: plain HTTP. Cheap to clone.
#[derive(Clone, Default)]
pub struct Front {
    /// Speaks TLS with clients.
    pub tls: Option<Tls>,
    /// Whose word is taken for a client's address.
    pub proxies: TrustedProxies,
}

/// Why the front can't be made.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The certificate or its key.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
}

/// How clients reach the interface.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct FrontFlags {
    /// File with the certificate chain of the interface (PEM, the server's own first): it then speaks TLS only. The
    /// file and the key's are read again when they change, and on SIGHUP
    #[arg(long, env = "RELAY_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// File with the private key of the certificate (PEM)
    #[arg(long, env = "RELAY_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Networks of the proxies in front of the interface, in CIDR notation: from them the client's address is taken as
    /// they say it, the last one that is no proxy. Wrong keys are counted and logged by it
    #[arg(long, env = "RELAY_TRUSTED_PROXIES", value_delimiter = ',', value_name = "CIDR", value_parser = network)]
    pub trusted_proxies: Vec<Network>,
    /// Header in which they say it: x-forwarded-for or forwarded (RFC 7239). They must write it themselves
    #[arg(long, env = "RELAY_TRUSTED_PROXY_HEADER", default_value = "x-forwarded-for", value_name = "HEADER")]
    pub trusted_proxy_header: ProxyHeader,
}

/// A network, or one address.
fn network(text: &str) -> Result<Network, String> {
    let address = text.parse::<IpAddr>().map(Network::from);
    address.or_else(|_| text.parse()).map_err(|_| "must be a network such as 10.0.0.0/8, or an address".to_owned())
}

impl FrontFlags {
    /// Reads what the flags name.
    ///
    /// # Errors
    /// A file can't be read or used.
    pub fn front(&self) -> Result<Front, FrontError> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Tls::load(cert.clone(), key.clone())?),
            _ => None,
        };
        Ok(Front { tls, proxies: TrustedProxies::new(self.trusted_proxies.clone(), self.trusted_proxy_header) })
    }
}

impl Front {
    /// How the addresses of the interface begin.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        front: FrontFlags,
    }

    #[test]
    fn proxies_are_networks_or_addresses() {
        let flags =
            Cli::parse_from(["x", "--trusted-proxies", "10.0.0.0/8,192.0.2.1", "--trusted-proxies", "fd00::/8"]);
        let proxies = flags.front.front().unwrap().proxies;
        let trusted = ["10.1.2.3", "192.0.2.1", "192.0.2.2", "fd00::1", "2001:db8::1"];
        assert_eq!(trusted.map(|ip| proxies.trusts(ip.parse().unwrap())), [true, true, false, true, false]);
        assert_eq!(proxies.header(), ProxyHeader::XForwardedFor);
        let forwarded = Cli::parse_from(["x", "--trusted-proxy-header", "Forwarded"]).front.front().unwrap().proxies;
        assert_eq!(forwarded.header(), ProxyHeader::Forwarded);
        for bad in [
            ["--trusted-proxies", "10.0.0.0/33"],
            ["--trusted-proxies", "proxy"],
            ["--trusted-proxy-header", "x-real-ip"],
        ] {
            assert!(Cli::try_parse_from(["x"].into_iter().chain(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_certificate_and_its_key_come_together() {
        Cli::command().debug_assert();
        let front = Cli::parse_from(["x"]).front.front().unwrap();
        assert_eq!((front.tls.is_none(), front.scheme()), (true, "http"));
        for alone in ["--tls-cert", "--tls-key"] {
            assert!(Cli::try_parse_from(["x", alone, "/some/file"]).is_err(), "{alone}");
        }
        let flags = Cli::parse_from(["x", "--tls-cert", "/no/such/cert.pem", "--tls-key", "/no/such/key.pem"]).front;
        let Err(error) = flags.front() else { panic!("a file that isn't there was read") };
        assert!(error.to_string().contains("/no/such/cert.pem"), "{error}");
    }
}
