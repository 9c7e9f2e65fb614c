//! Prometheus metrics. The mains call [`install`] once; whoever counts uses the `metrics` macros, and makes its
//! counters when it starts, so that they are shown as 0 before the first event.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// How often recorded samples are folded into histograms; without it they would pile up until a scrape.
const UPKEEP: Duration = Duration::from_secs(5);
/// Bounds of histograms whose name ends in `_seconds`.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Bounds of all other histograms: sizes of batches.
const SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0];

/// The recorder's other end: what `/metrics` shows.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

/// Why metrics can't be recorded.
#[derive(Debug, thiserror::Error)]
#[error("installing the metrics recorder: {0}")]
pub struct InstallError(String);

/// Installs the recorder of this process; a second call gives the same one.
pub fn install() -> Result<Metrics, InstallError> {
    static INSTALLED: OnceLock<Metrics> = OnceLock::new();
    if let Some(metrics) = INSTALLED.get() {
        return Ok(metrics.clone());
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|builder| builder.set_buckets(SIZES))
        .map_err(|e| InstallError(e.to_string()))?
        .build_recorder();
    let metrics = Metrics(recorder.handle());
    metrics::set_global_recorder(recorder).map_err(|e| InstallError(e.to_string()))?;
    Ok(INSTALLED.get_or_init(|| metrics).clone())
}

impl Metrics {
    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds samples into histograms until `stop` fires. [`crate::health::Health::serve`] does it; a process
    /// that shows the health routes elsewhere runs it itself.
    pub async fn upkeep(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(UPKEEP) => self.0.run_upkeep(),
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Makes a counter, shown as 0 from now on.
pub fn counter(name: &'static str) -> metrics::Counter {
    let counter = metrics::counter!(name);
    counter.increment(0);
    counter
}

/// Makes one counter for each value of a label, shown as 0 from now on.
pub fn counters<const N: usize>(
    name: &'static str,
    label: &'static str,
    values: [&'static str; N],
) -> [metrics::Counter; N] {
    values.map(|value| {
        let counter = metrics::counter!(name, label => value);
        counter.increment(0);
        counter
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_there_before_the_first_event() {
        install().unwrap();
        drop(counter("relay_test_total"));
        drop(counters("relay_test_outcomes_total", "outcome", ["good", "bad"]));
        metrics::histogram!("relay_test_seconds").record(0.003);
        let text = install().unwrap().render();
        for line in [
            "relay_test_total 0",
            "relay_test_outcomes_total{outcome=\"bad\"} 0",
            "relay_test_seconds_bucket{le=\"0.005\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
