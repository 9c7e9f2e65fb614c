//! The table at the end.

use crate::check::Verdict;
use crate::quiesce::Quiesced;

/// How many examples of each wrong are shown.
const EXAMPLES: usize = 10;

/// Prints the table, and examples of what went wrong.
pub fn print(verdict: &Verdict, quiesced: &Quiesced, counts: &[(&str, u64)]) {
    let row = |name: &str, value: String| println!("  {name:<34} {value:>12}");
    println!("\nfaults{:>41} {:>12} {:>12}", "times", "duplicates", "allowed");
    for (kind, toll) in &verdict.tolls {
        println!("  {kind:<34} {:>10} {:>12} {:>12}", toll.faults, toll.duplicates, toll.allowed);
    }
    println!("ledger");
    for (name, count) in counts {
        row(name, count.to_string());
    }
    row("deliveries owed", verdict.owed.to_string());
    row("  delivered", verdict.delivered.to_string());
    row("  dead-lettered", verdict.dead_lettered.to_string());
    row("  lost", verdict.lost.len().to_string());
    row("duplicates", verdict.duplicates.to_string());
    row("  allowed by the faults", verdict.allowed.to_string());
    row("  at no fault", verdict.unexplained.len().to_string());
    row("unexpected receipts", verdict.unexpected.len().to_string());
    row("other status in the interface", verdict.mismatches.len().to_string());
    let ends = |share: usize| verdict.healthy.get((verdict.healthy.len() * share / 1000).saturating_sub(1));
    let seconds = |share| ends(share).map_or(0.0, |d| d.as_secs_f64());
    row("accepted to taken, healthy: median", format!("{:.3} s", seconds(500)));
    row("  99 of 100", format!("{:.1} s", seconds(990)));
    row("  slowest", format!("{:.1} s", seconds(1000)));
    row("quiet after", format!("{:.1} s", quiesced.took.as_secs_f64()));
    let wrongs = [
        ("lost", &verdict.lost),
        ("duplicate at no fault", &verdict.unexplained),
        ("unexpected", &verdict.unexpected),
        ("other status", &verdict.mismatches),
    ];
    for (name, list) in wrongs {
        for text in list.iter().take(EXAMPLES) {
            println!("{name}: {text}");
        }
        if list.len() > EXAMPLES {
            println!("{name}: … and {} more", list.len() - EXAMPLES);
        }
    }
    if let Some(open) = &quiesced.open {
        println!("not quiet: {open}");
    }
}
