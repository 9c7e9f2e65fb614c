//! The judge: what was accepted, what arrived and what the interface says, compared. Pure; the words *lost*, *duplicate*
//! and *allowed* are those of docs/chaos.md.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::faults::{Cost, DELIVERERS, Done, Fault};
use crate::ledger::Accepted;
use crate::plan::{self, Hook};
use crate::receivers::Receipt;

/// A batch of results that a deliverer had not recorded, beyond what receivers can see.
const BATCH: u64 = 64;
/// What was answered so long before a fault may have been unrecorded.
const BEFORE: Duration = Duration::from_secs(1);
/// A kill is carried out within so long.
const KILLING: Duration = Duration::from_secs(1);
/// So long after its end a fault still has its effects: reconnecting.
const AFTER: Duration = Duration::from_secs(2);

/// What the interface says of one event: each delivery's endpoint and status.
pub type Statuses = BTreeMap<Hook, String>;

/// The evidence.
#[derive(Debug, Default)]
pub struct Evidence {
    /// From the ledger.
    pub accepted: Vec<Accepted>,
    /// Numbers below this one were sent, accepted or not.
    pub sent: u64,
    /// From the receivers.
    pub receipts: Vec<Receipt>,
    /// From the interface, by event id; what it doesn't know is absent.
    pub statuses: HashMap<String, Statuses>,
    /// From the nemesis.
    pub faults: Vec<Done>,
}

/// The judgement.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Deliveries that were owed.
    pub owed: u64,
    /// Those with a 2xx.
    pub delivered: u64,
    /// Those that were refused for good and are dead letters.
    pub dead_lettered: u64,
    /// From acceptance to the first 2xx at endpoints that always take what comes, sorted.
    pub healthy: Vec<Duration>,
    /// Owed, and neither.
    pub lost: Vec<String>,
    /// Receipts answered 2xx beyond the first of their event and endpoint.
    pub duplicates: u64,
    /// Most that the faults allow.
    pub allowed: u64,
    /// Duplicates whose first receipt was in flight at no fault that allows them.
    pub unexplained: Vec<String>,
    /// Receipts that nobody can have sent, unsigned ones, second ids of one event.
    pub unexpected: Vec<String>,
    /// Where the interface says something else.
    pub mismatches: Vec<String>,
}

impl Verdict {
    /// Whether all promises were kept.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty()
            && self.unexpected.is_empty()
            && self.mismatches.is_empty()
            && self.unexplained.is_empty()
            && self.duplicates <= self.allowed
    }
}

/// Compares.
pub fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { allowed: allowed(&evidence.faults), ..Verdict::default() };
    let mut of_pair: HashMap<(u64, Hook), Vec<&Receipt>> = HashMap::new();
    let mut ids: HashMap<u64, BTreeSet<&str>> = HashMap::new();
    for receipt in &evidence.receipts {
        let (Some(number), Some(hook)) = (receipt.number, receipt.hook) else {
            verdict.unexpected.push(format!("a request that is no event: {receipt:?}"));
            continue;
        };
        if number >= evidence.sent || !plan::hooks(number).any(|h| h == hook) || !receipt.signed {
            verdict.unexpected.push(format!("event {number} at {}, signed: {}", hook.name(), receipt.signed));
        }
        ids.entry(number).or_default().insert(&receipt.id);
        of_pair.entry((number, hook)).or_default().push(receipt);
    }
    let several = ids.iter().filter(|(_, ids)| ids.len() > 1);
    verdict.unexpected.extend(several.map(|(number, ids)| format!("event {number} came with several ids: {ids:?}")));
    for event in &evidence.accepted {
        let known = ids.get(&event.number).and_then(|ids| ids.first().copied());
        if let (Some(told), Some(known)) = (&event.id, known)
            && told != known
        {
            verdict.unexpected.push(format!("event {} was accepted as {told} and came as {known}", event.number));
        }
        let id = event.id.as_deref().or(known);
        owed(&mut verdict, evidence, event.number, id, &of_pair);
        for hook in plan::hooks(event.number).filter(|hook| matches!(hook, Hook::Plain | Hook::First | Hook::Slow)) {
            let receipts = of_pair.get(&(event.number, hook)).into_iter().flatten();
            verdict.healthy.extend(receipts.filter_map(|r| r.taken()).min().map(|at| at.saturating_sub(event.at)));
        }
    }
    for ((number, hook), receipts) in &of_pair {
        duplicates(&mut verdict, evidence, *number, *hook, receipts);
    }
    verdict.healthy.sort();
    for list in [&mut verdict.lost, &mut verdict.unexplained, &mut verdict.unexpected, &mut verdict.mismatches] {
        list.sort();
    }
    verdict
}

fn owed(
    verdict: &mut Verdict,
    evidence: &Evidence,
    number: u64,
    id: Option<&str>,
    of_pair: &HashMap<(u64, Hook), Vec<&Receipt>>,
) {
    let statuses = id.and_then(|id| evidence.statuses.get(id));
    for hook in plan::hooks(number) {
        verdict.owed += 1;
        let receipts = of_pair.get(&(number, hook)).map_or(&[][..], |r| r);
        let shown = statuses.and_then(|s| s.get(&hook)).map_or("unknown", |s| s);
        let taken = receipts.iter().any(|r| r.taken().is_some());
        let refused = hook.refuses() && receipts.iter().any(|r| r.status == 400);
        let wanted = if hook.refuses() { "dead_lettered" } else { "delivered" };
        let what = || format!("event {number} ({}) at {}: shown as {shown}", id.unwrap_or("-"), hook.name());
        match (taken, refused) {
            (true, _) => verdict.delivered += 1,
            (false, true) => verdict.dead_lettered += 1,
            (false, false) => {
                verdict.lost.push(format!("{}, {} requests", what(), receipts.len()));
                continue;
            }
        }
        if shown != wanted {
            verdict.mismatches.push(what());
        }
    }
    let more = statuses.into_iter().flatten().filter(|(hook, _)| !plan::hooks(number).any(|h| h == **hook));
    let more: Vec<String> = more.map(|(hook, status)| format!("event {number}: {status} at {}", hook.name())).collect();
    verdict.mismatches.extend(more);
}

fn duplicates(verdict: &mut Verdict, evidence: &Evidence, number: u64, hook: Hook, receipts: &[&Receipt]) {
    let mut taken: Vec<(Duration, Duration)> = receipts.iter().filter_map(|r| Some((r.came, r.taken()?))).collect();
    taken.sort_by_key(|(_, answered)| *answered);
    for pair in taken.windows(2) {
        verdict.duplicates += 1;
        if !is_explained(&evidence.faults, pair[0].0, pair[0].1) {
            let times: Vec<u128> = taken.iter().map(|(_, at)| at.as_millis()).collect();
            verdict.unexplained.push(format!("event {number} at {}: taken at {times:?} ms", hook.name()));
        }
    }
}

/// The sum over the faults that count as kills: what was in flight, and a batch for each deliverer that they hit.
fn allowed(faults: &[Done]) -> u64 {
    let of = |done: &Done| match done.cost {
        Cost::Kill(pods) => done.in_flight + BATCH * pods.min(DELIVERERS),
        Cost::Nothing | Cost::Outage => 0,
    };
    faults.iter().map(of).sum()
}

/// Was a request that came and was answered then in flight at a kill, or waiting for its record in an outage with one?
fn is_explained(faults: &[Done], came: Duration, answered: Duration) -> bool {
    let covers = |done: &Done| {
        // A killed process sends nothing more; servers and stopped processes have their effects until they are back.
        let end =
            if matches!(done.fault, Fault::Kill(_) | Fault::KillAll) { done.from + KILLING } else { done.to + AFTER };
        answered + BEFORE >= done.from && came <= end
    };
    let kills: HashSet<usize> =
        faults.iter().enumerate().filter(|(_, f)| matches!(f.cost, Cost::Kill(_))).map(|(i, _)| i).collect();
    let meets = |outage: &Done| {
        kills.iter().any(|i| faults[*i].from <= outage.to + AFTER && faults[*i].to + BEFORE >= outage.from)
    };
    faults.iter().any(|done| match done.cost {
        Cost::Kill(_) => covers(done),
        Cost::Outage => covers(done) && meets(done),
        Cost::Nothing => false,
    })
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
