//! Step 12 of an event's way: claims what is due and publishes it as jobs. One dispatcher leads.
//!
//! Nothing that can end early is written into `due_at`: pause, circuit and fullness are looked at here, when
//! claiming, with a budget per endpoint. So resuming is instant, and held rows cost nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use relay_bus::Bus;
use relay_circuit::Decision;
use relay_core::protocol::{Budgets, may_claim_lapsed};
use relay_core::subject::{HINT_DUE, Lane};
use relay_store::{ClaimBudget, DueEndpoint, Leader, StoreError};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::meters::Meters;
use crate::room::Room;
use crate::{Links, jobs};

/// Time between two passes when nothing wakes the scheduler earlier.
const PERIOD: Duration = Duration::from_millis(100);
/// A pass may use this share of the time at most: long passes (many endpoints) are spaced out.
const DUTY: u32 = 5;
/// Least time between two passes.
const GAP: Duration = Duration::from_millis(10);
/// Rows claimed by one statement at most.
const CLAIM_ROWS_MAX: i32 = 2000;

/// The scheduler's memory.
pub struct Scheduler {
    links: Links,
    room: Arc<Room>,
    meters: Arc<Meters>,
    budgets: Budgets,
    started: Instant,
    failed_at: Option<Instant>,
}

/// What a pass did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Rows claimed and published.
    pub claimed: usize,
    /// Some endpoint had more due than was claimed.
    pub more: bool,
}

impl Scheduler {
    /// Nothing is known yet.
    pub fn new(links: Links, room: Arc<Room>, meters: Arc<Meters>) -> Self {
        Self { links, room, meters, budgets: Budgets::default(), started: Instant::now(), failed_at: None }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// One pass: looks at what is due, claims what may be sent, publishes it.
    pub async fn step(&mut self, leads_since: Instant) -> Result<Pass, StoreError> {
        let due = self.links.store.due().await?;
        let lapsed = may_claim_lapsed(
            self.millis(leads_since),
            self.failed_at.map(|at| self.millis(at)),
            self.millis(Instant::now()),
        );
        let mut pass = Pass::default();
        let mut budgets = Vec::new();
        let mut rows = 0;
        for endpoint in due {
            let Some(budget) = self.budget(&endpoint) else { continue };
            rows += budget.limit;
            budgets.push(budget);
            if rows >= CLAIM_ROWS_MAX {
                pass.claimed += self.claim(std::mem::take(&mut budgets), lapsed, &mut pass.more).await?;
                rows = 0;
            }
        }
        if !budgets.is_empty() {
            pass.claimed += self.claim(budgets, lapsed, &mut pass.more).await?;
        }
        Ok(pass)
    }

    /// How much may be claimed for an endpoint; `None` where it is held.
    fn budget(&mut self, due: &DueEndpoint) -> Option<ClaimBudget> {
        let directory = self.links.directory.snapshot();
        let endpoint = directory.endpoint(due.endpoint)?;
        if endpoint.paused || !endpoint.is_active || self.room.is_deep(Lane::Retry) {
            return None;
        }
        let now = self.links.clock.now();
        let now_ms = self.millis(Instant::now());
        if self.room.is_full(endpoint.id) {
            self.budgets.bounced(endpoint.id, now_ms);
            return None;
        }
        let (limit, probe) = match self.links.circuits.decide(endpoint.id, &endpoint.circuit, now) {
            Decision::Refuse { .. } => return None,
            Decision::Probe => (1, true),
            Decision::Allow => (self.budgets.budget(endpoint.id, now_ms), false),
        };
        Some(ClaimBudget {
            endpoint: endpoint.id,
            limit: i32::try_from(limit).unwrap_or(CLAIM_ROWS_MAX).min(CLAIM_ROWS_MAX),
            lease: endpoint.lease(),
            version: directory.version(&endpoint.tenant).unwrap_or(endpoint.version),
            probe,
        })
    }

    async fn claim(&mut self, budgets: Vec<ClaimBudget>, lapsed: bool, more: &mut bool) -> Result<usize, StoreError> {
        let claimed = self.links.store.claim(&budgets, lapsed).await?;
        let mut per_endpoint = BTreeMap::new();
        let mut lanes: BTreeMap<Lane, Vec<_>> = BTreeMap::new();
        for (lane, job) in claimed {
            *per_endpoint.entry(job.endpoint).or_insert(0usize) += 1;
            lanes.entry(lane).or_default().push(job);
        }
        let now_ms = self.millis(Instant::now());
        for budget in budgets {
            let n = per_endpoint.get(&budget.endpoint).copied().unwrap_or(0);
            self.budgets.claimed(budget.endpoint, n, now_ms);
            *more |= !budget.probe && n > 0 && i32::try_from(n).is_ok_and(|n| n == budget.limit);
        }
        let mut published = 0;
        for (lane, jobs) in lanes {
            published += jobs::publish(&self.links.bus, lane, jobs).await;
        }
        Ok(published)
    }
}

/// Passes while this process leads, woken by hints and by circuits that close.
pub async fn run(mut scheduler: Scheduler, mut leader: Leader, stop: CancellationToken) {
    let hinted = Arc::new(Notify::new());
    let listener = listen(scheduler.links.bus.clone(), Arc::clone(&hinted));
    let passes = async {
        let mut circuits = scheduler.links.circuits.changes();
        let mut disruption = scheduler.links.bus.disruption();
        let mut wait = PERIOD;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = hinted.notified() => {}
                _ = circuits.changed() => {}
                Ok(()) = disruption.changed() => scheduler.failed_at = Some(Instant::now()),
            }
            let Some(leads_since) = leader.leads_since().await else {
                wait = Duration::from_secs(1);
                continue;
            };
            let begun = Instant::now();
            match scheduler.step(leads_since).await {
                Ok(pass) => {
                    scheduler.meters.claimed(pass.claimed);
                    wait = if pass.more { Duration::ZERO } else { PERIOD.max(begun.elapsed() * DUTY) };
                }
                Err(error) => {
                    tracing::warn!(%error, "a pass over what is due failed; trying again");
                    scheduler.failed_at = Some(Instant::now());
                    wait = Duration::from_secs(1);
                }
            }
            // However many hints come, passes keep this distance.
            tokio::time::sleep(GAP).await;
        }
    };
    tokio::select! {
        // A pass that has claimed is not cut off before it has published.
        () = passes => {}
        () = listener => {}
    }
    leader.resign().await;
}

/// Turns hints into one wake-up, however many come.
async fn listen(bus: Bus, hinted: Arc<Notify>) {
    let mut hints = bus.subscribe_hints(HINT_DUE);
    while hints.recv().await.is_some() {
        hinted.notify_one();
    }
}
