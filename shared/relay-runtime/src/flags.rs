//! Flags that several services share: groups for `#[command(flatten)]`. Every flag can come from the environment;
//! what holds a password can come from a file too (`NAME_FILE`), as container platforms hand secrets over.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

#[cfg(debug_assertions)]
use relay_core::mutation::{self, Safety};
use relay_core::sealing::{InvalidKeys, SealingKeys};
pub use secrecy::{ExposeSecret, SecretString};

#[cfg(debug_assertions)]
use crate::failpoint::{self, Traps};
use crate::telemetry::{self, LogFormat, TelemetryError};

/// Why a setting can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// Neither given, nor in the environment, nor in a file.
    #[error("{flag} is needed (or {env}, or {env}_FILE with the name of a file that holds it)")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// Its variable.
        env: &'static str,
    },
    /// The file with the keys for secrets at rest can't be read.
    #[error("--secrets-key-file {file}: {why}")]
    KeyFile {
        /// The file.
        file: String,
        /// The error.
        why: std::io::Error,
    },
    /// The keys for secrets at rest can't be used.
    #[error("{from}: {why}")]
    Keys {
        /// The file or the variable.
        from: String,
        /// What is wrong, without a word of what stands there.
        why: InvalidKeys,
    },
    /// The file that should hold a secret can't be read.
    #[error("{env}_FILE: {file}: {why}")]
    File {
        /// The variable without `_FILE`.
        env: String,
        /// The file.
        file: String,
        /// The error.
        why: std::io::Error,
    },
}

/// The secret in variable `name`, else in the file that `<name>_FILE` names. White space around it is no part of
/// it; an empty one counts as not given.
#[expect(clippy::disallowed_methods, reason = "clap has no NAME_FILE; --help names these variables in its texts")]
pub fn secret_from(name: &str) -> Result<Option<SecretString>, FlagError> {
    secret_of(name, |variable| std::env::var(variable).ok())
}

fn secret_of(name: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Option<SecretString>, FlagError> {
    let some = |text: String| Some(text.trim().to_owned()).filter(|t| !t.is_empty()).map(SecretString::from);
    if let Some(secret) = variable(name).and_then(some) {
        return Ok(Some(secret));
    }
    let Some(file) = variable(&format!("{name}_FILE")).filter(|file| !file.is_empty()) else { return Ok(None) };
    let text = std::fs::read_to_string(&file).map_err(|why| FlagError::File { env: name.to_owned(), file, why })?;
    Ok(some(text))
}

macro_rules! server {
    ($(#[$doc:meta])* $name:ident, $field:ident, $flag:literal, $env:literal, $help:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, clap::Args)]
        pub struct $name {
            #[doc = $help]
            #[arg(long, value_name = "URL")]
            pub $field: Option<SecretString>,
        }

        impl $name {
            /// The address, with its password, where one is given at all.
            pub fn optional(&self) -> Result<Option<SecretString>, FlagError> {
                match &self.$field {
                    Some(url) => Ok(Some(url.clone())),
                    None => secret_from($env),
                }
            }

            /// The address, with its password.
            pub fn url(&self) -> Result<SecretString, FlagError> {
                self.optional()?.ok_or(FlagError::Missing { flag: $flag, env: $env })
            }
        }
    };
}

server!(
    /// Where Postgres is.
    DatabaseFlags, database_url, "--database-url", "DATABASE_URL",
    "Postgres, e.g. postgres://relay:…@localhost:5432/relay [env: DATABASE_URL or DATABASE_URL_FILE]"
);
server!(
    /// Where Redis is.
    RedisFlags, redis_url, "--redis-url", "REDIS_URL",
    "Redis, e.g. redis://localhost:6379/0 [env: REDIS_URL or REDIS_URL_FILE]"
);
server!(
    /// Where NATS is.
    NatsFlags, nats_url, "--nats-url", "NATS_URL",
    "NATS, e.g. nats://user:…@localhost:4222 [env: NATS_URL or NATS_URL_FILE]"
);

/// The variable with the keys for secrets at rest.
const SECRETS_KEY: &str = "RELAY_SECRETS_KEY";

/// Which keys encrypt the secrets in the database.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SecretsFlags {
    /// File with the keys that encrypt signing secrets and secret headers in the database, one a line, made by
    /// `webhook-relay secrets generate`: the first encrypts, all of them decrypt [env: RELAY_SECRETS_KEY_FILE with the
    /// file, or RELAY_SECRETS_KEY with the keys themselves]
    #[arg(long, value_name = "FILE")]
    pub secrets_key_file: Option<PathBuf>,
}

impl SecretsFlags {
    /// The keys; none where none are given.
    pub fn keys(&self) -> Result<SealingKeys, FlagError> {
        let (from, text) = match &self.secrets_key_file {
            Some(file) => {
                let from = file.display().to_string();
                let read = std::fs::read_to_string(file);
                let text = read.map_err(|why| FlagError::KeyFile { file: from.clone(), why })?;
                (from, SecretString::from(text))
            }
            None => match secret_from(SECRETS_KEY)? {
                Some(text) => (format!("{SECRETS_KEY} (or {SECRETS_KEY}_FILE)"), text),
                None => return Ok(SealingKeys::default()),
            },
        };
        SealingKeys::parse(text.expose_secret()).map_err(|why| FlagError::Keys { from, why })
    }
}

/// Default ports of the health listeners, so that all services can run on one machine.
pub mod health_port {
    /// Of ingest.
    pub const INGEST: u16 = 9101;
    /// Of a dispatcher.
    pub const DISPATCHER: u16 = 9102;
    /// Of a deliverer.
    pub const DELIVERER: u16 = 9103;
    /// Of the dead-letter manager.
    pub const DLQ_MANAGER: u16 = 9104;
}

/// Where health and metrics are shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct HealthFlags {
    /// Address of /health/live, /health/ready and /metrics; port 0 takes a free one [default: 127.0.0.1 and a port
    /// of the service's own: ingest 9101, dispatcher 9102, deliverer 9103, dlq-manager 9104]
    #[arg(long, env = "RELAY_HEALTH_LISTEN", value_name = "ADDRESS")]
    pub health_listen: Option<SocketAddr>,
}

impl HealthFlags {
    /// The address; `port` is the service's own default, of [`health_port`].
    pub fn listen(&self, port: u16) -> SocketAddr {
        self.health_listen.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into())
    }
}

/// How much is logged, and how it looks.
#[derive(Clone, Debug, clap::Args)]
pub struct LogFlags {
    /// Level (error, warn, info, debug, trace, off) or a list such as warn,dispatcher=debug
    #[arg(long, env = "RELAY_LOG", default_value = "info", value_name = "FILTER")]
    pub log_level: String,
    /// Look of the log lines on standard error
    #[arg(long, env = "RELAY_LOG_FORMAT", default_value = "pretty", value_enum)]
    pub log_format: LogFormat,
    /// Log errors only
    #[arg(long, short)]
    pub quiet: bool,
    /// Breaks one safety on purpose, for tests of the ledger test
    #[cfg(debug_assertions)]
    #[arg(long, env = "RELAY_BREAK", hide = true, value_name = "SAFETY")]
    pub break_safety: Option<Safety>,
    /// Stops the process at a point of its work, for tests of what comes after a crash there
    #[cfg(debug_assertions)]
    #[arg(long, env = "RELAY_STOP_AT", hide = true, value_name = "POINT")]
    pub stop_at: Option<Traps>,
}

impl LogFlags {
    /// Begins logging as asked.
    pub fn init(&self) -> Result<(), TelemetryError> {
        telemetry::init(self.log_format, if self.quiet { "error" } else { &self.log_level })?;
        #[cfg(debug_assertions)]
        if let Some(safety) = self.break_safety
            && mutation::break_on_purpose(safety)
        {
            tracing::error!(%safety, "this process breaks a safety on purpose: it loses or repeats events");
        }
        #[cfg(debug_assertions)]
        if let Some(traps) = &self.stop_at {
            failpoint::arm(traps.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        database: DatabaseFlags,
        #[command(flatten)]
        redis: RedisFlags,
        #[command(flatten)]
        nats: NatsFlags,
        #[command(flatten)]
        secrets: SecretsFlags,
        #[command(flatten)]
        health: HealthFlags,
        #[command(flatten)]
        log: LogFlags,
    }

    #[test]
    fn the_groups_fit_together() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["x", "--database-url", "postgres://a:b@c/d", "--log-format", "json", "-q"]);
        assert_eq!(cli.database.url().unwrap().expose_secret(), "postgres://a:b@c/d");
        assert!(!format!("{:?}", cli.database).contains("a:b"));
        assert_eq!(cli.health.listen(health_port::INGEST).port(), 9101);
        assert_eq!(cli.log.log_format, LogFormat::Json);
        assert!(cli.redis.redis_url.is_none() && cli.nats.nats_url.is_none());
        assert!(cli.secrets.secrets_key_file.is_none());
    }

    #[test]
    fn keys_come_from_the_file_that_is_named() {
        let file = std::env::temp_dir().join(format!("relay-keys-{}", crate::pod::name()));
        let flags = SecretsFlags { secrets_key_file: Some(file.clone()) };
        assert!(flags.keys().unwrap_err().to_string().contains("relay-keys"), "it isn't there");
        let key = SealingKeys::generate([7; 32]);
        std::fs::write(&file, format!("# today\n{}\n", key.expose_secret())).unwrap();
        assert_eq!(flags.keys().unwrap().ids().count(), 1);
        std::fs::write(&file, "whek_short\n").unwrap();
        let error = flags.keys().unwrap_err().to_string();
        assert!(error.contains("secrets generate") && !error.contains("short"), "{error}");
        std::fs::write(&file, "# nothing\n").unwrap();
        assert!(flags.keys().is_err(), "a file without a key is a mistake");
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn secrets_come_from_the_variable_or_a_file() {
        let file = std::env::temp_dir().join(format!("relay-flags-{}", crate::pod::name()));
        std::fs::write(&file, "from file\n").unwrap();
        let path = file.to_str().unwrap().to_owned();
        let get = |value: Option<&str>, file: Option<&str>| {
            let (value, file) = (value.map(str::to_owned), file.map(str::to_owned));
            secret_of("KEY", |name| if name == "KEY" { value.clone() } else { file.clone() })
                .map(|s| s.map(|s| s.expose_secret().to_owned()))
        };
        assert_eq!(get(Some(" direct "), Some(&path)).unwrap().unwrap(), "direct");
        assert_eq!(get(Some(""), Some(&path)).unwrap().unwrap(), "from file");
        assert_eq!(get(None, None).unwrap(), None);
        assert!(get(None, Some("/no/such/file")).unwrap_err().to_string().contains("KEY_FILE"));
        std::fs::remove_file(file).unwrap();
    }
}
