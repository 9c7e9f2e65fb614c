//! A minute of everything as part of the suite: the program itself says whether its books agree.

use std::process::Command;

/// Another one is a `make chaos SEED=…` away.
const SEED: &str = "8";

#[test]
fn a_minute_of_faults_loses_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--seconds", "60", "--seed", SEED, "--faults", "all", "--rate", "60"])
        .output()
        .expect("the program was built with its test");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
}
