//! The judge: what was accepted, what arrived and what the interface says, compared. Pure; the words *lost*, *duplicate*
//! and *allowed* are those of docs/chaos.md.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::faults::{Cost, Done, Fault};
use crate::ledger::Accepted;
use crate::plan::{self, Hook};
use crate::receivers::Receipt;

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
    /// Most that the faults allow: the sum of what was in flight at each that counts as a kill.
    pub allowed: u64,
    /// The same by kind of fault.
    pub tolls: BTreeMap<String, Toll>,
    /// Duplicates of which neither request was in flight at a fault that allows them.
    pub unexplained: Vec<String>,
    /// Receipts that nobody can have sent, unsigned ones, second ids of one event.
    pub unexpected: Vec<String>,
    /// Where the interface says something else.
    pub mismatches: Vec<String>,
}

/// What the faults of a kind did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Toll {
    /// Their number.
    pub faults: u64,
    /// Most duplicates that they allow.
    pub allowed: u64,
    /// Duplicates that were in flight at one of them.
    pub duplicates: u64,
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
    let mut verdict = Verdict::default();
    for done in &evidence.faults {
        let allowed = if done.cost == Cost::Kill { done.in_flight } else { 0 };
        let toll = verdict.tolls.entry(done.fault.to_string()).or_default();
        toll.faults += 1;
        toll.allowed += allowed;
        verdict.allowed += allowed;
    }
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
    let mut taken: Vec<(Duration, &Receipt)> = receipts.iter().filter_map(|r| Some((r.taken()?, *r))).collect();
    taken.sort_by_key(|(answered, _)| *answered);
    for pair in taken.windows(2) {
        verdict.duplicates += 1;
        // A stopped pod's request may be the one that is answered last.
        match pair.iter().find_map(|(answered, r)| explanation(&evidence.faults, r.came, *answered, r.port)) {
            Some(fault) => verdict.tolls.entry(fault.to_string()).or_default().duplicates += 1,
            None => {
                let times: Vec<u128> = taken.iter().map(|(at, _)| at.as_millis()).collect();
                verdict.unexplained.push(format!("event {number} at {}: taken at {times:?} ms", hook.name()));
            }
        }
    }
}

/// The kill at which a request that came and was answered then was in flight, at the deliverer that sent it; or for which
/// it may have waited unrecorded, in an outage that the kill met (its connection may be gone by then).
fn explanation(faults: &[Done], came: Duration, answered: Duration, port: u16) -> Option<Fault> {
    let covers = |done: &Done| {
        // A killed process sends nothing more; servers and stopped processes have their effects until they are back.
        let end =
            if matches!(done.fault, Fault::Kill(_) | Fault::KillAll) { done.from + KILLING } else { done.to + AFTER };
        answered + BEFORE >= done.from && came <= end
    };
    let meets = |outage: &Done, kill: &Done| kill.from <= outage.to + AFTER && kill.to + BEFORE >= outage.from;
    let outages = || faults.iter().filter(|done| done.cost == Cost::Outage);
    let hit = |kill: &Done| kill.ports.as_ref().is_none_or(|ports| ports.contains(&port));
    let waited_for = |kill: &Done| outages().any(|outage| covers(outage) && meets(outage, kill));
    let kills = || faults.iter().filter(|done| done.cost == Cost::Kill);
    let found = kills().find(|kill| covers(kill) && hit(kill));
    let found = found.or_else(|| kills().find(|kill| waited_for(kill) && hit(kill)));
    found.or_else(|| kills().find(|kill| waited_for(kill))).map(|kill| kill.fault)
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
