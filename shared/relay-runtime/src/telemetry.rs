//! Logs: to standard error, for people or as one JSON object a line. The mains call [`init`] once.
//!
//! Libraries that talk much are held at `warn` unless the filter names them.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Libraries whose own information is noise in ours.
const QUIET: &str =
    "async_nats=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,sqlx=warn,redis=warn,tower_http=warn";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Pretty,
    /// One JSON object a line
    Json,
}

/// Why logging can't begin.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter can't be read.
    #[error("bad log filter {filter:?}: {why}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody installed another subscriber.
    #[error("logging is set up already")]
    Twice,
}

/// Begins logging. `filter` is a level or a list as in RUST_LOG: `info`, `warn,dispatcher=debug`, `off`.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let subscriber = tracing_subscriber::fmt().with_env_filter(parse(filter)?).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Pretty => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            subscriber.with_ansi(ansi).try_init()
        }
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(false).try_init(),
    };
    installed.map_err(|_| TelemetryError::Twice)
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    // What comes last wins, so that the user's own words hold.
    let silent = filter.trim().eq_ignore_ascii_case("off");
    let whole = if silent { filter.to_owned() } else { format!("{QUIET},{filter}") };
    EnvFilter::try_new(whole)
        .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_lists() {
        for good in ["info", "warn,dispatcher=debug", "off", "sqlx=debug"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        assert!(parse("info,=,=x=y").is_err());
        let kept = parse("info,sqlx=debug").unwrap().to_string();
        assert!(kept.contains("sqlx=debug") && !kept.contains("sqlx=warn"), "{kept}");
    }
}
