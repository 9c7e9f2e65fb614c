//! What the checks found, as people and programs read it.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use super::{NOT_CHECKED, VIOLATIONS};

/// Violations of one check that are named; the others are counted.
const NAMED_MAX: usize = 20;

/// One check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Its name, stable.
    name: &'static str,
    /// What must be true.
    promise: &'static str,
    /// What was looked at.
    looked_at: String,
    /// How many things violate.
    violations: u64,
    /// How many of them are repaired.
    repaired: u64,
    /// The first of them that are not repaired.
    examples: Vec<Violation>,
    /// Why it could not be made, or not to its end.
    error: Option<String>,
}

/// Something that violates.
#[derive(Debug, Serialize)]
struct Violation {
    what: String,
    how_to_repair: String,
}

impl Check {
    /// A check that has looked at nothing yet.
    pub fn new(name: &'static str, promise: &'static str) -> Self {
        Self {
            name,
            promise,
            looked_at: "nothing".to_owned(),
            violations: 0,
            repaired: 0,
            examples: Vec::new(),
            error: None,
        }
    }

    /// Notes a violation.
    pub fn found(&mut self, is_repaired: bool, what: impl Into<String>, how: impl Into<String>) {
        self.violations += 1;
        if is_repaired {
            self.repaired += 1;
        } else if self.examples.len() < NAMED_MAX {
            self.examples.push(Violation { what: what.into(), how_to_repair: how.into() });
        }
    }

    /// Ends the check: what it looked at, or why it stopped.
    pub fn ended(mut self, looked_at: anyhow::Result<String>) -> Self {
        match looked_at {
            Ok(looked_at) => self.looked_at = looked_at,
            Err(error) => self.error = Some(format!("{error:#}")),
        }
        self
    }

    fn is_left(&self) -> bool {
        self.violations > self.repaired
    }
}

/// All checks.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Everything was checked, and nothing violates that isn't repaired.
    sound: bool,
    checks: Vec<Check>,
}

impl Report {
    /// Of these checks.
    pub fn new(checks: Vec<Check>) -> Self {
        Self { sound: checks.iter().all(|c| !c.is_left() && c.error.is_none()), checks }
    }

    /// 0 sound, 1 something violates, 2 something could not be checked (and nothing violates).
    pub fn exit_code(&self) -> ExitCode {
        if self.checks.iter().any(Check::is_left) {
            ExitCode::from(VIOLATIONS)
        } else if self.sound {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(NOT_CHECKED)
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let verdict = match (&check.error, check.violations, check.repaired) {
                (Some(_), 0, _) => "NOT CHECKED".to_owned(),
                (None, 0, _) => "sound".to_owned(),
                (_, all, done) if all == done => format!("{all} REPAIRED"),
                (_, all, 0) => format!("{all} VIOLATIONS"),
                (_, all, done) => format!("{all} VIOLATIONS, {done} repaired"),
            };
            writeln!(f, "{:<11} {verdict}: {}", check.name, check.promise)?;
            match &check.error {
                Some(error) => writeln!(f, "            stopped: {error}")?,
                None => writeln!(f, "            looked at {}", check.looked_at)?,
            }
            for violation in &check.examples {
                writeln!(f, "            - {}\n              repair: {}", violation.what, violation.how_to_repair)?;
            }
            let unnamed = check.violations - check.repaired - check.examples.len() as u64;
            if unnamed > 0 {
                writeln!(f, "            … and {unnamed} more")?;
            }
        }
        writeln!(f, "{}", if self.sound { "All is sound." } else { "Not all is sound." })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_decides() {
        let check = || Check::new("events", "all are there");
        let code = |checks| format!("{:?}", Report::new(checks).exit_code());
        let expected = |code: u8| format!("{:?}", ExitCode::from(code));
        let sound = || check().ended(Ok("3 events".to_owned()));
        assert_eq!(code(vec![sound()]), expected(0));
        let mut repaired = sound();
        repaired.found(true, "a", "b");
        assert_eq!(code(vec![repaired]), expected(0));
        let broken = check().ended(Err(anyhow::anyhow!("away")));
        assert_eq!(code(vec![sound(), broken]), expected(NOT_CHECKED));
        let mut left = sound();
        for n in 0..25 {
            left.found(false, format!("event {n}"), "send it again");
        }
        let report = Report::new(vec![check().ended(Err(anyhow::anyhow!("away"))), left]);
        assert_eq!(format!("{:?}", report.exit_code()), expected(VIOLATIONS));
        let shown = report.to_string();
        assert!(shown.contains("25 VIOLATIONS") && shown.contains("… and 5 more"), "{shown}");
        assert!(shown.contains("stopped: away") && shown.contains("repair: send it again"), "{shown}");
    }
}
