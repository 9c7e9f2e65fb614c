//! What this pod has to tell Redis of one endpoint: gathered between two flushes, kept until Redis has it. Pure.

use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::breaker::{CircuitRule, Observation};

use crate::local::CircuitTransition;

/// What was seen of one endpoint since the last flush.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub rule: CircuitRule,
    pub calls: u32,
    pub failures: u32,
    pub had_success: bool,
    /// Failures after the last success.
    pub trailing: u32,
    /// This pod opened it.
    pub opens: bool,
    /// How long an opening lasts, drawn once so that pod and Redis agree.
    pub open_time: Duration,
    /// What a probe showed.
    pub probe: Option<Observation>,
    /// The endpoint asked to wait until then.
    pub wait_until: Option<DateTime<Utc>>,
    /// This pod knows it to be open until then, and Redis seems to have forgotten.
    pub restore_until: Option<DateTime<Utc>>,
    /// The change that this pod has made on its own; on record once Redis confirms it, or can't be asked.
    pub transition: Option<CircuitTransition>,
}

impl Report {
    /// Adds a call.
    pub fn count(&mut self, what: Observation) {
        self.calls = self.calls.saturating_add(1);
        match what {
            Observation::Success => {
                self.had_success = true;
                self.trailing = 0;
            }
            Observation::Failure => {
                self.failures = self.failures.saturating_add(1);
                self.trailing = self.trailing.saturating_add(1);
            }
        }
    }

    /// A probe showed this: counting begins anew with it.
    pub fn decide_by_probe(&mut self, what: Observation) {
        (self.calls, self.failures, self.trailing, self.had_success) = (0, 0, 0, false);
        self.opens = false;
        self.probe = Some(what);
    }

    /// This report, which Redis didn't take, followed by a newer one.
    pub fn followed_by(mut self, newer: Self) -> Self {
        if let Some(what) = newer.probe {
            self.decide_by_probe(what);
        }
        let trailing = if newer.had_success { newer.trailing } else { self.trailing.saturating_add(newer.trailing) };
        // What opens it after a probe closed it says nothing about the probe any longer.
        let probe = if newer.opens { None } else { self.probe };
        Self {
            rule: newer.rule,
            calls: self.calls.saturating_add(newer.calls),
            failures: self.failures.saturating_add(newer.failures),
            had_success: self.had_success || newer.had_success,
            trailing,
            opens: self.opens || newer.opens,
            open_time: newer.open_time,
            probe,
            wait_until: newer.wait_until.max(self.wait_until),
            restore_until: newer.restore_until.or(self.restore_until),
            transition: newer.transition.or(self.transition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(calls: &[Observation]) -> Report {
        let mut report = Report::default();
        calls.iter().for_each(|what| report.count(*what));
        report
    }

    #[test]
    fn joined_reports_say_what_one_would_have_said() {
        use Observation::{Failure as F, Success as S};
        let calls = [F, S, F, F, F, S, S, F];
        for cut in 0..calls.len() {
            let (first, second) = calls.split_at(cut);
            assert_eq!(of(first).followed_by(of(second)), of(&calls));
        }
    }

    #[test]
    fn the_newest_decision_counts() {
        let mut opened = Report { opens: true, ..Report::default() };
        opened.count(Observation::Failure);
        let probed = Report { probe: Some(Observation::Success), ..Report::default() };
        let joined = opened.clone().followed_by(probed);
        assert_eq!((joined.opens, joined.probe, joined.calls), (false, Some(Observation::Success), 0));
        assert!(opened.followed_by(Report::default()).opens);
    }
}
