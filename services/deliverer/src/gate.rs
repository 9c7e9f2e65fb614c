//! Whether a job may be sent now, by what is known of its endpoint: asked just before the send. Pure.

use relay_circuit::Decision;
use relay_core::delivery::{DeadReason, HandBack};
use relay_core::endpoint::Endpoint;
use relay_core::rate::RateLimit;

/// What is to be done with a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// Send it.
    Send,
    /// Send it with a token of the endpoint's rate limit.
    Paced(RateLimit),
    /// Send it when one of its endpoint's requests in flight is over: it has just recovered.
    AfterOne,
    /// Send it if it becomes the circuit's one probe.
    Probe,
    /// Not now: back to the table. What holds it may end at any moment, so it is due at once and the scheduler
    /// looks at what holds it; only a secret's missing key is nothing that the scheduler sees.
    HandBack(HandBack),
    /// Never: a dead letter without an attempt.
    Dead(DeadReason),
}

/// What the circuit says.
#[derive(Clone, Copy, Debug)]
pub struct Circuit {
    /// Its word.
    pub decision: Decision,
    /// Requests in flight that an endpoint may have which has just recovered.
    pub ramp: Option<u32>,
}

/// Decides. `endpoint` is `None` where the directory, up to date, doesn't know it; `in_flight` are this pod's
/// requests to it with this one; the circuit is asked only where it matters. A probe needs no token: it is one request.
pub fn gate(endpoint: Option<&Endpoint>, in_flight: usize, circuit: impl FnOnce(&Endpoint) -> Circuit) -> Gate {
    let Some(endpoint) = endpoint else { return Gate::Dead(DeadReason::UnknownEndpoint) };
    if !endpoint.is_active {
        return Gate::Dead(DeadReason::EndpointInactive);
    }
    if endpoint.paused {
        return Gate::HandBack(HandBack::Paused);
    }
    if endpoint.secrets.is_err() {
        return Gate::HandBack(HandBack::Withheld);
    }
    let Circuit { decision, ramp } = circuit(endpoint);
    match decision {
        Decision::Allow if ramp.is_some_and(|ramp| in_flight > ramp as usize) => Gate::AfterOne,
        Decision::Allow => endpoint.rate_limit.map_or(Gate::Send, Gate::Paced),
        Decision::Probe => Gate::Probe,
        Decision::Refuse { .. } => Gate::HandBack(HandBack::CircuitOpen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::endpoint;
    use chrono::DateTime;
    use relay_core::sealing::Withheld;

    fn of(decision: Decision, ramp: Option<u32>) -> impl Fn(&Endpoint) -> Circuit {
        move |_| Circuit { decision, ramp }
    }

    #[test]
    fn the_endpoint_decides_before_its_circuit() {
        let refuse = || of(Decision::Refuse { until: DateTime::UNIX_EPOCH }, None);
        let active = endpoint("http://127.0.0.1/");
        assert_eq!(gate(None, 1, refuse()), Gate::Dead(DeadReason::UnknownEndpoint));
        let inactive = Endpoint { is_active: false, paused: true, ..active.clone() };
        assert_eq!(gate(Some(&inactive), 1, refuse()), Gate::Dead(DeadReason::EndpointInactive));
        let paused = Endpoint { paused: true, ..active.clone() };
        assert_eq!(gate(Some(&paused), 1, of(Decision::Allow, None)), Gate::HandBack(HandBack::Paused));
        let withheld = Endpoint { secrets: Err(Withheld::NotRead), ..active.clone() };
        assert_eq!(gate(Some(&withheld), 1, of(Decision::Allow, None)), Gate::HandBack(HandBack::Withheld));
        assert_eq!(gate(Some(&active), 1, refuse()), Gate::HandBack(HandBack::CircuitOpen));
        assert_eq!(gate(Some(&active), 1, of(Decision::Probe, None)), Gate::Probe);
        assert_eq!(gate(Some(&active), 1, of(Decision::Allow, None)), Gate::Send);
    }

    #[test]
    fn a_limited_endpoint_needs_tokens_but_for_its_probe() {
        let limit = RateLimit { per_second: 3.0, burst: 1 };
        let limited = Endpoint { rate_limit: Some(limit), ..endpoint("http://127.0.0.1/") };
        assert_eq!(gate(Some(&limited), 1, of(Decision::Allow, None)), Gate::Paced(limit));
        assert_eq!(gate(Some(&limited), 1, of(Decision::Probe, None)), Gate::Probe);
    }

    #[test]
    fn a_recovered_endpoint_gets_its_ramp_and_no_more() {
        let active = endpoint("http://127.0.0.1/");
        assert_eq!(gate(Some(&active), 2, of(Decision::Allow, Some(2))), Gate::Send);
        assert_eq!(gate(Some(&active), 3, of(Decision::Allow, Some(2))), Gate::AfterOne);
    }
}
