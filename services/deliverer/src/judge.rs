//! Step 10 of an event's way: what the answer means for this delivery, its endpoint's circuit and its endpoint's
//! pace. Pure; called by `attempt`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::answer::{Answer, TransportError, Verdict, classify};
use relay_core::breaker::Observation;
use relay_core::delivery::{DeadReason, Outcome};
use relay_core::endpoint::Endpoint;
use relay_core::lanes::Completion;

/// For this long after a rotation 401 and 403 are retried: a receiver that switched to the new secret at once may
/// have got a request that was signed with the old one only.
const ROTATION_GRACE: Duration = Duration::from_secs(30);

/// What follows from an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// For the delivery.
    pub outcome: Outcome,
    /// For the circuit, where it says something about the endpoint's health.
    pub observation: Option<Observation>,
    /// The whole endpoint waits that long.
    pub wait: Option<Duration>,
    /// For the endpoint's limit of requests in flight.
    pub completion: Completion,
}

/// Judges. `attempt_in_life` counts from the last replay, from 1; `was_probe` says that the attempt was the
/// circuit's probe, which must come to a result; `roll` is uniform in 0..1.
pub fn judge(
    answer: &Answer,
    endpoint: &Endpoint,
    attempt_in_life: u32,
    was_probe: bool,
    now: DateTime<Utc>,
    roll: f64,
) -> Judged {
    let retry = |not_before: Option<Duration>| match endpoint.retry.schedule().delay_after(attempt_in_life, roll) {
        Some(delay) => Outcome::Retry { delay: delay.max(not_before.unwrap_or_default()) },
        None => Outcome::Dead { reason: DeadReason::Exhausted, deactivate: false },
    };
    // An endpoint that answers is alive, whatever it says: enough for a probe, no evidence otherwise.
    let alive = was_probe.then_some(Observation::Success);
    match classify(answer) {
        Verdict::Delivered => Judged {
            outcome: Outcome::Delivered,
            observation: Some(Observation::Success),
            wait: None,
            completion: Completion::Success,
        },
        Verdict::Retry { not_before, counts_for_circuit } => Judged {
            outcome: retry(not_before),
            observation: if counts_for_circuit { Some(Observation::Failure) } else { alive },
            wait: not_before.filter(|wait| !wait.is_zero()),
            completion: match answer {
                Answer::Transport(TransportError::Timeout) => Completion::TimedOut,
                _ => Completion::Failed,
            },
        },
        Verdict::Permanent { gone } => {
            let outcome = if !gone && was_just_rotated(answer, endpoint, now) {
                retry(None)
            } else if gone {
                Outcome::Dead { reason: DeadReason::Gone, deactivate: true }
            } else {
                Outcome::Dead { reason: DeadReason::Permanent, deactivate: false }
            };
            Judged { outcome, observation: alive, wait: None, completion: Completion::Failed }
        }
    }
}

fn was_just_rotated(answer: &Answer, endpoint: &Endpoint, now: DateTime<Utc>) -> bool {
    matches!(answer, Answer::Status { code: 401 | 403, .. })
        && endpoint
            .secrets
            .as_ref()
            .ok()
            .and_then(|s| s.rotated_at)
            .is_some_and(|at| (now - at).to_std().unwrap_or_default() < ROTATION_GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::endpoint;
    use relay_core::endpoint::{RetrySettings, Secrets};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn status(code: u16, retry_after: Option<u64>) -> Answer {
        Answer::Status { code, retry_after: retry_after.map(Duration::from_secs) }
    }

    fn of(answer: &Answer, attempt: u32, probe: bool) -> Judged {
        judge(answer, &endpoint("http://127.0.0.1/"), attempt, probe, now(), 0.0)
    }

    #[test]
    fn a_2xx_delivers() {
        let judged = of(&status(204, None), 1, false);
        assert_eq!((judged.outcome, judged.observation), (Outcome::Delivered, Some(Observation::Success)));
    }

    #[test]
    fn failures_are_retried_until_the_schedule_ends() {
        let judged = of(&status(500, None), 1, false);
        assert_eq!(judged.outcome, Outcome::Retry { delay: Duration::from_secs(30) });
        assert_eq!(judged.observation, Some(Observation::Failure));
        let last = of(&status(500, None), 5, false);
        assert_eq!(last.outcome, Outcome::Dead { reason: DeadReason::Exhausted, deactivate: false });
        let timeout = of(&Answer::Transport(TransportError::Timeout), 2, false);
        assert_eq!(timeout.outcome, Outcome::Retry { delay: Duration::from_secs(60) });
        assert_eq!(timeout.completion, Completion::TimedOut);
    }

    #[test]
    fn retry_after_holds_the_delivery_and_the_whole_endpoint() {
        let judged = of(&status(429, Some(300)), 1, false);
        assert_eq!(judged.outcome, Outcome::Retry { delay: Duration::from_secs(300) });
        assert_eq!(judged.wait, Some(Duration::from_secs(300)));
        assert_eq!(judged.observation, None);
        assert_eq!(of(&status(429, Some(3)), 1, false).outcome, Outcome::Retry { delay: Duration::from_secs(30) });
        assert_eq!(of(&status(503, Some(0)), 1, false).wait, None);
    }

    #[test]
    fn a_refusal_is_final_and_says_nothing_about_health_but_ends_a_probe() {
        let judged = of(&status(404, None), 1, false);
        assert_eq!(judged.outcome, Outcome::Dead { reason: DeadReason::Permanent, deactivate: false });
        assert_eq!(judged.observation, None);
        assert_eq!(of(&status(404, None), 1, true).observation, Some(Observation::Success));
        assert_eq!(of(&status(302, None), 1, true).observation, Some(Observation::Success));
        let gone = of(&status(410, None), 1, false);
        assert_eq!(gone.outcome, Outcome::Dead { reason: DeadReason::Gone, deactivate: true });
    }

    #[test]
    fn just_after_a_rotation_an_unauthorised_answer_is_retried() {
        let base = endpoint("http://127.0.0.1/");
        let rotated = |seconds| Endpoint {
            secrets: base
                .secrets
                .clone()
                .map(|secrets| Secrets { rotated_at: Some(now() - chrono::Duration::seconds(seconds)), ..secrets }),
            ..base.clone()
        };
        let of = |endpoint: &Endpoint, code| judge(&status(code, None), endpoint, 1, false, now(), 0.0).outcome;
        assert_eq!(of(&rotated(10), 401), Outcome::Retry { delay: Duration::from_secs(30) });
        assert_eq!(of(&rotated(10), 403), Outcome::Retry { delay: Duration::from_secs(30) });
        let permanent = Outcome::Dead { reason: DeadReason::Permanent, deactivate: false };
        assert_eq!(of(&rotated(31), 401), permanent);
        assert_eq!(of(&rotated(10), 404), permanent);
        assert_eq!(of(&base, 401), permanent);
    }

    #[test]
    fn explicit_schedules_count_attempts_of_this_life() {
        let retry = RetrySettings { schedule_seconds: Some(vec![1]), ..RetrySettings::default() };
        let short = Endpoint { retry, ..endpoint("http://127.0.0.1/") };
        let of = |n| judge(&status(500, None), &short, n, false, now(), 0.9).outcome;
        assert_eq!(of(1), Outcome::Retry { delay: Duration::from_secs(1) });
        assert_eq!(of(2), Outcome::Dead { reason: DeadReason::Exhausted, deactivate: false });
    }
}
