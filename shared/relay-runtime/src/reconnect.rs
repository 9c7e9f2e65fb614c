//! Waiting for a server that isn't there yet: the one file that uses the `backoff` crate. Called by the mains when
//! they connect; the adapters keep their own connections alive afterwards.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;
use tokio_util::sync::CancellationToken;

/// First pause between two tries.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// A first try that takes longer is said to wait: some clients try for seconds before they give up.
const SILENT_MAX: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Tries `connect` until it succeeds, for ever; `None` when `stop` fired first. `what` names the server in the
/// log, `url` its address: the password in it is not shown. One line when the server is away, one when it is there.
pub async fn retry<T, E, C, F>(what: &str, url: &str, mut connect: C, stop: &CancellationToken) -> Option<T>
where
    C: FnMut() -> F,
    F: Future<Output = Result<T, E>>,
    E: Display,
{
    let address = address(url);
    let mut pauses = ExponentialBackoffBuilder::new()
        .with_initial_interval(PAUSE_FIRST)
        .with_max_interval(PAUSE_MAX)
        .with_multiplier(2.0)
        .with_max_elapsed_time(None)
        .build();
    let mut waited = false;
    loop {
        let trying = connect();
        tokio::pin!(trying);
        let outcome = loop {
            tokio::select! {
                outcome = trying.as_mut() => break outcome,
                () = tokio::time::sleep(SILENT_MAX), if !waited => {
                    tracing::warn!("{what} at {address} doesn't answer; waiting for it");
                    waited = true;
                }
                () = stop.cancelled() => return None,
            }
        };
        match outcome {
            Ok(link) => {
                if waited {
                    tracing::info!("{what} at {address} is there");
                }
                return Some(link);
            }
            Err(error) if !waited => {
                tracing::warn!(%error, "{what} at {address} can't be reached; waiting for it");
                waited = true;
            }
            Err(error) => tracing::debug!(%error, "{what} at {address} still can't be reached"),
        }
        tokio::select! {
            () = tokio::time::sleep(pauses.next_backoff().unwrap_or(PAUSE_MAX)) => {}
            () = stop.cancelled() => return None,
        }
    }
}

/// `host:port/path` of a URL, or of several with commas between them: fit for logs.
pub fn address(urls: &str) -> String {
    urls.split(',').map(|url| one_address(url.trim())).collect::<Vec<_>>().join(", ")
}

fn one_address(url: &str) -> String {
    let Ok(url) = url::Url::parse(url) else { return "(an address that can't be read)".to_owned() };
    let host = url.host_str().unwrap_or("(local)");
    match url.port() {
        Some(port) => format!("{host}:{port}{}", url.path()),
        None => format!("{host}{}", url.path()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_no_secrets() {
        assert_eq!(address("postgres://me:secret@db:5432/relay?password=x"), "db:5432/relay");
        assert_eq!(address("nats://token@127.0.0.1:4222"), "127.0.0.1:4222");
        assert_eq!(address("nats://a:secret@n1:4222, nats://a:secret@n2:4222"), "n1:4222, n2:4222");
        assert!(!address("secret").contains("secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_until_it_succeeds() {
        let mut left = 5;
        let connect = || {
            left -= 1;
            std::future::ready(if left == 0 { Ok(7) } else { Err("away") })
        };
        assert_eq!(retry("a server", "x://y", connect, &CancellationToken::new()).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_takes_long_goes_on() {
        let connect = async || {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Ok::<_, &str>(7)
        };
        let started = tokio::time::Instant::now();
        assert_eq!(retry("a server", "x://y", connect, &CancellationToken::new()).await, Some(7));
        assert_eq!(started.elapsed(), Duration::from_secs(20), "it is not begun again");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_told() {
        let stop = CancellationToken::new();
        let end = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stop.cancel();
        };
        let tries = retry("a server", "x://y", || std::future::ready(Err::<(), _>("away")), &stop);
        assert_eq!(tokio::join!(tries, end).0, None);
    }
}
