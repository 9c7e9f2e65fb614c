//! How much the scheduler may claim for an endpoint in one pass, and when it may claim lapsed leases.

use std::collections::HashMap;

use crate::ids::EndpointId;

const START: usize = 256;
const LEAST: usize = 4;
const MOST: usize = 2000;
/// A budget grows when nothing has bounced for this long.
const QUIET_MS: u64 = 1000;
/// An endpoint that nobody asked about for this long is forgotten.
const FORGET_MS: u64 = 60_000;
/// Leases that lapsed are left alone for this long after a leader's start and after a failed pass: pods that hold
/// results flush first.
pub const LAPSED_GRACE_MS: u64 = 8000;

struct Budget {
    rows: usize,
    changed_ms: u64,
    used_ms: u64,
}

/// Budgets per endpoint: halved when work bounces, doubled while it doesn't.
#[derive(Default)]
pub struct Budgets {
    by_endpoint: HashMap<EndpointId, Budget>,
    swept_ms: u64,
}

impl Budgets {
    /// Rows that may be claimed for the endpoint now.
    pub fn budget(&mut self, endpoint: EndpointId, now_ms: u64) -> usize {
        self.sweep(now_ms);
        let budget =
            self.by_endpoint.entry(endpoint).or_insert(Budget { rows: START, changed_ms: now_ms, used_ms: now_ms });
        budget.used_ms = now_ms;
        budget.rows
    }

    /// Notes that `n` rows were claimed. A budget that was used up whole and kept quiet grows.
    pub fn claimed(&mut self, endpoint: EndpointId, n: usize, now_ms: u64) {
        if let Some(budget) = self.by_endpoint.get_mut(&endpoint)
            && n >= budget.rows
            && now_ms.saturating_sub(budget.changed_ms) >= QUIET_MS
        {
            budget.rows = (budget.rows * 2).min(MOST);
            budget.changed_ms = now_ms;
        }
    }

    /// Notes that work of this endpoint was handed back because there was no room.
    pub fn bounced(&mut self, endpoint: EndpointId, now_ms: u64) {
        let budget =
            self.by_endpoint.entry(endpoint).or_insert(Budget { rows: START, changed_ms: now_ms, used_ms: now_ms });
        budget.rows = (budget.rows / 2).max(LEAST);
        budget.changed_ms = now_ms;
    }

    fn sweep(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) >= FORGET_MS {
            self.by_endpoint.retain(|_, b| now_ms.saturating_sub(b.used_ms) < FORGET_MS);
            self.swept_ms = now_ms;
        }
    }
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
        b.bounced(e, 0);
        assert_eq!(b.budget(e, 0), START / 2);
        b.claimed(e, START / 2, 10);
        assert_eq!(b.budget(e, 10), START / 2, "not yet quiet");
        b.claimed(e, START / 2, QUIET_MS);
        assert_eq!(b.budget(e, QUIET_MS), START);
        for _ in 0..20 {
            b.bounced(e, QUIET_MS);
        }
        assert_eq!(b.budget(e, QUIET_MS), LEAST);
    }

    #[test]
    fn lapsed_leases_wait_for_quiet() {
        assert!(!may_claim_lapsed(0, None, LAPSED_GRACE_MS - 1));
        assert!(may_claim_lapsed(0, None, LAPSED_GRACE_MS));
        assert!(!may_claim_lapsed(0, Some(9000), 9001));
    }
}
