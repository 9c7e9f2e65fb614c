//! The figures: collected over the runs, printed as a table of medians, written as JSON.

use std::collections::BTreeMap;

use crate::cpu::Snapshot;
use crate::load::Outcome;

/// Everything measured: each figure with one value a run.
#[derive(Debug, serde::Serialize)]
pub struct Figures {
    setting: String,
    values: BTreeMap<String, Vec<f64>>,
}

/// The value at `share` of sorted microseconds, in milliseconds; NaN where there is none.
pub fn percentile(sorted: &[u64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    sorted.get(at).map_or(f64::NAN, |us| *us as f64 / 1000.0)
}

impl Figures {
    /// None yet; `setting` says what was run.
    pub fn new(setting: String) -> Self {
        Self { setting, values: BTreeMap::new() }
    }

    /// One more value of a figure.
    pub fn add(&mut self, name: String, value: f64) {
        self.values.entry(name).or_default().push(value);
    }

    /// A closed-loop run.
    pub fn throughput(&mut self, in_flight: usize, baseline: f64, outcome: &Outcome, cpu: &Snapshot) {
        let of = |name: &str| format!("closed loop, {in_flight} in flight: {name}");
        let delivered = outcome.delivered.max(1) as f64;
        let e2e = outcome.delivered_per_second();
        self.add("plain POSTs to the sink, 64 in flight, per second".to_owned(), baseline);
        self.add(of("accepted per second"), outcome.accepted as f64 / outcome.accept_seconds);
        self.add(of("delivered end to end per second"), e2e);
        self.add(of("ratio to plain POSTs"), e2e / baseline);
        self.add(of("refused"), outcome.refused as f64);
        self.add(of("lost"), outcome.lost as f64);
        self.add(of("duplicates"), outcome.duplicates as f64);
        self.add(of("accept p50 ms"), percentile(&outcome.accept_us, 0.5));
        self.add(of("accept p99 ms"), percentile(&outcome.accept_us, 0.99));
        self.add(of("e2e p50 ms"), percentile(&outcome.e2e_us, 0.5));
        self.add(of("e2e p99 ms"), percentile(&outcome.e2e_us, 0.99));
        for (role, us) in &cpu.cpu_us {
            self.add(of(&format!("CPU us per delivery, {role}")), *us as f64 / delivered);
        }
        for (role, bytes) in &cpu.pss_bytes {
            self.add(of(&format!("memory MB (PSS), {role}")), *bytes as f64 / 1e6);
        }
    }

    /// An open-loop run.
    pub fn latency(&mut self, rate: &str, outcome: &Outcome) {
        let of = |name: &str| format!("open loop, {rate}: {name}");
        self.add(of("lost"), outcome.lost as f64);
        self.add(of("duplicates"), outcome.duplicates as f64);
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            self.add(of(&format!("accept {name} ms")), percentile(&outcome.accept_us, share));
            self.add(of(&format!("e2e {name} ms")), percentile(&outcome.e2e_us, share));
        }
    }
}

/// Prints medians.
pub fn print(figures: &Figures) {
    println!("{}", figures.setting);
    println!("{:<68} {:>12}   runs", "figure", "median");
    for (name, values) in &figures.values {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let runs: Vec<String> = values.iter().map(|v| format!("{v:.2}")).collect();
        println!("{name:<68} {median:>12.2}   {}", runs.join(" "));
    }
}
