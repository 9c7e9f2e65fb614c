//! The ledger test is worth something only if it notices: one safety is broken on purpose (see `relay_core::mutation`;
//! builds with debug assertions only), and the program has to say so, and why.

#![cfg(debug_assertions)]

use std::process::Command;

/// Runs with a safety broken; asserts that the run is bad for the reason whose words these are.
#[track_caller]
fn is_noticed(safety: &str, args: &[&str], words: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--break", safety])
        .args(args)
        .output()
        .expect("the program was built with its test");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "nobody notices a broken {safety}:\n{text}");
    assert!(text.lines().any(|line| line.starts_with(words)), "a broken {safety} shows otherwise:\n{text}");
    let dir = text.lines().find_map(|line| line.strip_prefix("data, logs and books: "));
    std::fs::remove_dir_all(dir.expect("a bad run leaves its data")).expect("they can be removed");
}

#[test]
fn events_acknowledged_before_the_commit_are_lost_with_their_dispatcher() {
    let faults = ["--seconds", "25", "--faults", "kill-dispatcher,postgres-away", "--quiesce-seconds", "40"];
    is_noticed("events-acked-late", &faults, "lost: ");
}

#[test]
fn jobs_acknowledged_before_the_record_come_back_late() {
    // Pods of over 30 s: younger ones check each job, and then only its lease brings it back.
    // Several kills: one may hit a deliverer that has nothing of a healthy endpoint in its hands.
    let faults = ["--calm-seconds", "33", "--seconds", "65", "--faults", "kill-deliverer", "--slowest-seconds", "20"];
    is_noticed("jobs-acked-late", &faults, "too slow: ");
}

#[test]
fn without_leases_a_lost_job_is_lost() {
    let faults = ["--seconds", "20", "--faults", "kill-deliverer,jobs-delete", "--quiesce-seconds", "50"];
    is_noticed("lease", &faults, "lost: ");
}

#[test]
fn a_full_log_that_drops_loses_what_was_accepted() {
    let faults = ["--seconds", "20", "--faults", "events-full", "--quiesce-seconds", "20"];
    is_noticed("refuse-when-full", &faults, "lost: ");
}
