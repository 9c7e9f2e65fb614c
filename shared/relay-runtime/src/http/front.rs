//! What an operator puts between clients and a listener: TLS. The flags of the services that have an interface, and
//! what is made of them. Used by `serve`.

use std::path::PathBuf;

use super::tls::{Tls, TlsError};

/// What stands in front of a listener; by default nothing: plain HTTP. Cheap to clone.
#[derive(Clone, Default)]
pub struct Front {
    /// Speaks TLS with clients.
    pub tls: Option<Tls>,
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
        Ok(Front { tls })
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
