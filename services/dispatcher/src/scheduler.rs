//! Step 12 of an event's way: claims what is due and publishes it as jobs. One dispatcher leads.
//!
//! Nothing that can end early is written into `due_at`: pause, circuit and fullness are looked at here, when
//! claiming, with a budget per endpoint. So resuming is instant, and held rows cost nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_circuit::Decision;
use relay_core::endpoint::Endpoint;
use relay_core::protocol::{self, Budgets, may_claim_lapsed, ramp_rows};
use relay_core::subject::Lane;
use relay_runtime::failpoint::{self, Point};
use relay_store::{ClaimBudget, Due, DueEndpoint, Leader, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::meters::Meters;
use crate::room::Room;
use crate::{Links, jobs};

/// Time between two passes when nothing wakes the scheduler earlier.
const PERIOD: Duration = Duration::from_millis(100);
/// Looking for what is due takes one part in this many of the time at most: where many endpoints have open work,
/// the looks are spaced out. Time spent on claiming is not idle and doesn't count.
const LOOK_SHARE: u32 = 6;
/// Time between two looks for lapsed leases: they are rare, and have waited for long when they lapse.
const LAPSED_PERIOD: Duration = Duration::from_secs(1);
/// These looks take one part in this many of the time at most.
const LAPSED_SHARE: u32 = 20;
/// Least time between two passes.
const GAP: Duration = Duration::from_millis(10);
/// Rows claimed by one pass at most: what a flood has more waits for the next, in which all others have their share.
const PASS_ROWS_MAX: usize = 8000;
/// Rows claimed by one statement at most.
const CLAIM_ROWS_MAX: i32 = 2000;
/// An endpoint whose budget of at least this many rows was used up is looked at again at once; smaller ones are those
/// of probes, ramps and rate limits, where only time brings more.
const MORE_FROM: i32 = 4;
/// Endpoints that one statement claims for at most.
const CLAIM_ENDPOINTS_MAX: usize = 500;

/// The scheduler's memory.
pub struct Scheduler {
    links: Links,
    room: Arc<Room>,
    meters: Arc<Meters>,
    budgets: Budgets,
    started: Instant,
    failed_at: Option<Instant>,
    /// When lapsed leases are looked for again; `None`: at once.
    next_lapsed: Option<Instant>,
}

/// What a pass did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Rows claimed and published.
    pub claimed: usize,
    /// Some endpoint had more due than was claimed.
    pub more: bool,
    /// What it took to look for endpoints with rows that waited.
    pub looked: Duration,
}

impl Scheduler {
    /// Nothing is known yet.
    pub fn new(links: Links, room: Arc<Room>, meters: Arc<Meters>) -> Self {
        Self {
            links,
            room,
            meters,
            budgets: Budgets::default(),
            started: Instant::now(),
            failed_at: None,
            next_lapsed: None,
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// One pass: looks at what is due, claims what may be sent, publishes it.
    pub async fn step(&mut self, leads_since: Instant) -> Result<Pass, StoreError> {
        let mut pass = self.work_off(Due::Waiting).await?;
        let lapsed = may_claim_lapsed(
            self.millis(leads_since),
            self.failed_at.map(|at| self.millis(at)),
            self.millis(Instant::now()),
        );
        if lapsed && self.next_lapsed.is_none_or(|at| at <= Instant::now()) {
            let found = self.work_off(Due::Lapsed).await?;
            let rest = LAPSED_PERIOD.max(found.looked * (LAPSED_SHARE - 1));
            self.next_lapsed = (!found.more).then(|| Instant::now() + rest);
            pass.claimed += found.claimed;
            pass.more |= found.more;
        }
        Ok(pass)
    }

    /// The part of a pass for one kind of what is due.
    async fn work_off(&mut self, kind: Due) -> Result<Pass, StoreError> {
        let begun = Instant::now();
        let due = self.links.store.due(kind).await?;
        let mut pass = Pass { looked: begun.elapsed(), ..Pass::default() };
        let budgets = self.shares(&due, &mut pass);
        for chunk in budgets.chunks(CLAIM_ENDPOINTS_MAX) {
            let mut left = chunk;
            while !left.is_empty() {
                let used = self.claim(left, kind, &mut pass).await?;
                left = left.get(used..).unwrap_or_default();
            }
        }
        Ok(pass)
    }

    /// How much is claimed for each endpoint, in this order: fair shares of what one pass claims.
    fn shares(&mut self, due: &[DueEndpoint], pass: &mut Pass) -> Vec<ClaimBudget> {
        let (wants, budgets): (Vec<_>, Vec<_>) = due
            .iter()
            .filter_map(|endpoint| self.budget(endpoint).map(|budget| (&endpoint.tenant, budget)))
            .map(|(tenant, budget)| ((tenant, usize::try_from(budget.limit).unwrap_or(0)), budget))
            .unzip();
        let dealt = protocol::deal(&wants, PASS_ROWS_MAX);
        pass.more |= dealt.len() < wants.len();
        let budgets = dealt.into_iter().map(|(at, rows)| {
            let budget = budgets[at];
            ClaimBudget { limit: i32::try_from(rows).unwrap_or(budget.limit), ..budget }
        });
        budgets.collect()
    }

    /// How much may be claimed for an endpoint; `None` where it is held.
    fn budget(&mut self, due: &DueEndpoint) -> Option<ClaimBudget> {
        let directory = self.links.directory.snapshot();
        let endpoint = directory.endpoint(due.endpoint)?;
        let lane = self.room.lane(endpoint.id, Lane::Retry);
        if endpoint.paused || !endpoint.is_active || self.room.is_deep(lane) {
            return None;
        }
        let now = self.links.clock.now();
        let now_ms = self.millis(Instant::now());
        if let Some(said) = self.room.full_since(endpoint.id) {
            if endpoint.rate_limit.is_none() {
                self.budgets.bounced(endpoint.id, self.millis(said), now_ms);
            }
            return None;
        }
        let (limit, probe) = match self.links.circuits.decide(endpoint.id, &endpoint.circuit, now) {
            Decision::Refuse { .. } => return None,
            Decision::Probe => (1, true),
            Decision::Allow => (self.allowance(endpoint, now, now_ms), false),
        };
        if limit == 0 {
            return None;
        }
        Some(ClaimBudget {
            endpoint: endpoint.id,
            limit: i32::try_from(limit).unwrap_or(CLAIM_ROWS_MAX).min(CLAIM_ROWS_MAX),
            lease: endpoint.lease(),
            version: directory.version(&endpoint.tenant).unwrap_or(endpoint.version),
            probe,
        })
    }

    /// Rows for an endpoint that may be sent to: by its rate limit where it has one, else by what bounced; few at first
    /// after a recovery.
    fn allowance(&mut self, endpoint: &Endpoint, now: DateTime<Utc>, now_ms: u64) -> usize {
        let rows = match &endpoint.rate_limit {
            Some(limit) => self.budgets.limited(endpoint.id, limit, now_ms),
            None => self.budgets.budget(endpoint.id, now_ms),
        };
        let recovered = self.links.circuits.recovered_at(endpoint.id);
        let recovered_for = recovered.map(|at| u64::try_from((now - at).num_milliseconds()).unwrap_or(0));
        recovered_for.map_or(rows, |ms| rows.min(ramp_rows(ms)))
    }

    /// Claims for the first of these endpoints, and returns for how many: fewer than given where they had more rows
    /// than one statement takes.
    async fn claim(&mut self, budgets: &[ClaimBudget], kind: Due, pass: &mut Pass) -> Result<usize, StoreError> {
        let claimed = self.links.store.claim(budgets, kind, CLAIM_ROWS_MAX).await?;
        if !claimed.is_empty() {
            failpoint::pass(Point::ScheduleClaimed).await;
        }
        let full = i32::try_from(claimed.len()).is_ok_and(|n| n >= CLAIM_ROWS_MAX);
        // The jobs come in the order of the budgets; the last endpoint may have more than there was room for.
        let last = claimed.last().and_then(|(_, job)| budgets.iter().position(|b| b.endpoint == job.endpoint));
        let used = if full { last.map_or(budgets.len(), |at| at + 1) } else { budgets.len() };
        pass.more |= full;
        let mut per_endpoint = BTreeMap::new();
        for (_, job) in &claimed {
            *per_endpoint.entry(job.endpoint).or_insert(0usize) += 1;
        }
        let now_ms = self.millis(Instant::now());
        for budget in budgets.iter().take(used) {
            let n = per_endpoint.get(&budget.endpoint).copied().unwrap_or(0);
            self.budgets.claimed(budget.endpoint, n, now_ms);
            pass.more |= budget.limit >= MORE_FROM && i32::try_from(n).is_ok_and(|n| n == budget.limit);
        }
        for (lane, jobs) in self.room.by_lane(claimed) {
            pass.claimed += jobs::publish(&self.links.bus, lane, jobs).await;
        }
        Ok(used)
    }
}

/// Passes while this process leads, woken by hints and by circuits that close.
pub async fn run(mut scheduler: Scheduler, mut leader: Leader, stop: CancellationToken) {
    let room = Arc::clone(&scheduler.room);
    let mut circuits = scheduler.links.circuits.changes();
    let mut disruption = scheduler.links.bus.disruption();
    let mut wait = PERIOD;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
            () = room.heard_due() => {}
            _ = circuits.changed() => {}
            Ok(()) = disruption.changed() => scheduler.failed_at = Some(Instant::now()),
        }
        let Some(leads_since) = leader.leads_since().await else {
            wait = Duration::from_secs(1);
            continue;
        };
        let mut rest = GAP;
        match scheduler.step(leads_since).await {
            Ok(pass) => {
                scheduler.meters.claimed(pass.claimed);
                rest = GAP.max(pass.looked);
                wait = if pass.more { Duration::ZERO } else { PERIOD.max(pass.looked * (LOOK_SHARE - 1)) };
            }
            Err(error) => {
                tracing::warn!(%error, "a pass over what is due failed; trying again");
                scheduler.failed_at = Some(Instant::now());
                wait = Duration::from_secs(1);
            }
        }
        // However many hints come, passes keep a distance, and looking takes half of the time at most.
        tokio::time::sleep(rest).await;
    }
    leader.resign().await;
}
