//! How much the scheduler may claim for an endpoint in one pass, and when it may claim lapsed leases.

use std::collections::HashMap;

use crate::ids::EndpointId;
use crate::rate::RateLimit;

const START: usize = 256;
const LEAST: usize = 4;
const MOST: usize = 2000;
/// A budget grows when nothing has bounced for this long, and is halved once in this time: the pods' words about one burst
/// are one bounce, however many they are and however often the scheduler looks at them.
const QUIET_MS: u64 = 1000;
/// An endpoint that nobody asked about for this long is forgotten.
const FORGET_MS: u64 = 60_000;
/// Leases that lapsed are left alone for this long after a leader's start and after a failed pass: pods that hold
/// results flush first.
pub const LAPSED_GRACE_MS: u64 = 8000;

/// How much faster than its rate limit an endpoint's work is claimed: its queues in the pods never run dry, and what is
/// too much for them bounces.
const AHEAD: f64 = 1.25;
/// After a recovery the budget doubles in this time.
const RAMP_MS: u64 = 500;

struct Budget {
    rows: usize,
    changed_ms: u64,
    /// The word that it was halved for.
    bounced_ms: Option<u64>,
    used_ms: u64,
}

impl Budget {
    fn new(now_ms: u64) -> Self {
        Self { rows: START, changed_ms: now_ms, bounced_ms: None, used_ms: now_ms }
    }
}

struct Credit {
    rows: f64,
    at_ms: u64,
}

/// Budgets per endpoint: halved when work bounces, doubled while it doesn't; for endpoints with a rate limit what it
/// lets through.
#[derive(Default)]
pub struct Budgets {
    by_endpoint: HashMap<EndpointId, Budget>,
    limited: HashMap<EndpointId, Credit>,
    swept_ms: u64,
}

impl Budgets {
    /// Rows that may be claimed for the endpoint now.
    pub fn budget(&mut self, endpoint: EndpointId, now_ms: u64) -> usize {
        self.sweep(now_ms);
        let budget = self.by_endpoint.entry(endpoint).or_insert_with(|| Budget::new(now_ms));
        budget.used_ms = now_ms;
        budget.rows
    }

    /// Rows that may be claimed for an endpoint with a rate limit now: some more than it lets through, so that the
    /// rest stays in the table, the oldest first in turn.
    pub fn limited(&mut self, endpoint: EndpointId, limit: &RateLimit, now_ms: u64) -> usize {
        self.sweep(now_ms);
        let most = limit.per_second.max(1.0) + f64::from(limit.burst);
        let credit = self.limited.entry(endpoint).or_insert(Credit { rows: most, at_ms: now_ms });
        let passed = now_ms.saturating_sub(credit.at_ms) as f64 / 1000.0;
        credit.rows = (credit.rows + passed * limit.per_second * AHEAD).min(most);
        credit.at_ms = now_ms;
        // A float that is cast saturates.
        credit.rows as usize
    }

    /// Notes that `n` rows were claimed. A budget that was used up whole and kept quiet grows.
    pub fn claimed(&mut self, endpoint: EndpointId, n: usize, now_ms: u64) {
        if let Some(credit) = self.limited.get_mut(&endpoint) {
            credit.rows -= n as f64;
        }
        if let Some(budget) = self.by_endpoint.get_mut(&endpoint)
            && n >= budget.rows
            && now_ms.saturating_sub(budget.changed_ms) >= QUIET_MS
        {
            budget.rows = (budget.rows * 2).min(MOST);
            budget.changed_ms = now_ms;
        }
    }

    /// Notes that a pod said, at `said_ms`, that work of this endpoint was handed back because there was no room.
    pub fn bounced(&mut self, endpoint: EndpointId, said_ms: u64, now_ms: u64) {
        let budget = self.by_endpoint.entry(endpoint).or_insert_with(|| Budget::new(now_ms));
        if budget.bounced_ms.is_none_or(|at| said_ms >= at + QUIET_MS) {
            budget.bounced_ms = Some(said_ms);
            budget.rows = (budget.rows / 2).max(LEAST);
            budget.changed_ms = now_ms;
        }
    }

    fn sweep(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) >= FORGET_MS {
            self.by_endpoint.retain(|_, b| now_ms.saturating_sub(b.used_ms) < FORGET_MS);
            self.limited.retain(|_, c| now_ms.saturating_sub(c.at_ms) < FORGET_MS);
            self.swept_ms = now_ms;
        }
    }
}

/// Rows that may be claimed in one pass for an endpoint that recovered so long ago: 1, 2, 4 … The pods keep to the
/// answers they see; this keeps the backlog in the table until they are there.
pub fn ramp_rows(recovered_for_ms: u64) -> usize {
    let doublings = u32::try_from(recovered_for_ms / RAMP_MS).unwrap_or(u32::MAX);
    1usize.checked_shl(doublings).unwrap_or(MOST).clamp(1, MOST)
}

/// Whether a leader may claim leases that lapsed: not in its first seconds, nor right after a failed pass or a
/// reconnect.
pub fn may_claim_lapsed(leader_since_ms: u64, last_failed_pass_ms: Option<u64>, now_ms: u64) -> bool {
    let quiet = |since: u64| now_ms.saturating_sub(since) >= LAPSED_GRACE_MS;
    quiet(leader_since_ms) && last_failed_pass_ms.is_none_or(quiet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn budgets_halve_on_bounces_and_grow_when_used_quietly() {
        let e = EndpointId(Uuid::from_u128(1));
        let mut b = Budgets::default();
        assert_eq!(b.budget(e, 0), START);
        b.bounced(e, 0, 0);
        assert_eq!(b.budget(e, 0), START / 2);
        b.claimed(e, START / 2, 10);
        assert_eq!(b.budget(e, 10), START / 2, "not yet quiet");
        b.claimed(e, START / 2, QUIET_MS);
        assert_eq!(b.budget(e, QUIET_MS), START);
        for said in (1..=20).map(|n| n * QUIET_MS) {
            b.bounced(e, said, said);
        }
        assert_eq!(b.budget(e, QUIET_MS), LEAST);
    }

    /// The scheduler looks ten times a second, and the pods say it twice a second each: still it is one burst, and what it
    /// left behind is claimed fast as soon as there is room.
    #[test]
    fn one_burst_halves_a_budget_once() {
        let e = EndpointId(Uuid::from_u128(1));
        let mut b = Budgets::default();
        for now in (0..QUIET_MS).step_by(100) {
            b.bounced(e, now / 500 * 500, now);
        }
        assert_eq!(b.budget(e, QUIET_MS), START / 2);
    }

    #[test]
    fn a_limited_endpoint_is_claimed_for_at_its_rate() {
        let (e, limit) = (EndpointId(Uuid::from_u128(1)), RateLimit { per_second: 20.0, burst: 5 });
        let mut b = Budgets::default();
        let mut claimed = 0;
        for now_ms in (0..10_000).step_by(50) {
            let n = b.limited(e, &limit, now_ms);
            b.claimed(e, n, now_ms);
            claimed += n;
        }
        assert!((270..=276).contains(&claimed), "{claimed}");
        assert_eq!(b.limited(e, &limit, 60_000), 25, "no more than a second's worth and the burst after a silence");
        let slow = RateLimit { per_second: 0.1, burst: 1 };
        let mut b = Budgets::default();
        assert_eq!(b.limited(e, &slow, 0), 2);
        b.claimed(e, 2, 0);
        assert_eq!((b.limited(e, &slow, 7900), b.limited(e, &slow, 8100)), (0, 1));
    }

    #[test]
    fn a_recovered_endpoint_gets_its_backlog_by_and_by() {
        assert_eq!([0, 499, 500, 1000, 1500].map(ramp_rows), [1, 1, 2, 4, 8]);
        assert_eq!([10_000, u64::MAX].map(ramp_rows), [MOST, MOST]);
    }

    #[test]
    fn lapsed_leases_wait_for_quiet() {
        assert!(!may_claim_lapsed(0, None, LAPSED_GRACE_MS - 1));
        assert!(may_claim_lapsed(0, None, LAPSED_GRACE_MS));
        assert!(!may_claim_lapsed(0, Some(9000), 9001));
    }
}
