use super::*;
use crate::faults::Role;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn receipt(number: u64, hook: Hook, at: u64, status: u16) -> Receipt {
    Receipt {
        came: secs(at),
        answered: Some(secs(at)),
        status,
        hook: Some(hook),
        number: Some(number),
        id: format!("id-{number}"),
        signed: true,
        port: 7,
    }
}

/// Event 0 goes to one endpoint, 50 to three, 92 is refused.
fn clean() -> Evidence {
    let accepted = |number| Accepted { number, id: Some(format!("id-{number}")), at: secs(9) };
    let accepted = [0, 50, 92].map(accepted).to_vec();
    let mut evidence = Evidence { accepted, sent: 100, ..Evidence::default() };
    for number in [0, 50, 92] {
        let mut statuses = Statuses::new();
        for hook in plan::hooks(number) {
            evidence.receipts.push(receipt(number, hook, 10, if hook.refuses() { 400 } else { 200 }));
            statuses.insert(hook, if hook.refuses() { "dead_lettered" } else { "delivered" }.to_owned());
        }
        evidence.statuses.insert(format!("id-{number}"), statuses);
    }
    evidence
}

fn fault(fault: Fault, from: u64, to: u64) -> Done {
    Done { fault, from: secs(from), to: secs(to), cost: fault.cost(secs(to - from)), in_flight: 5, ports: None }
}

#[test]
fn a_clean_run_is_good() {
    let verdict = judge(&clean());
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!((verdict.owed, verdict.delivered, verdict.dead_lettered), (5, 4, 1));
    assert_eq!(verdict.healthy, [secs(1); 3]);
}

#[test]
fn an_event_without_a_receipt_is_lost_and_an_unaccepted_one_is_not() {
    let mut evidence = clean();
    evidence.receipts.retain(|r| r.number != Some(0));
    let verdict = judge(&evidence);
    assert_eq!(verdict.lost.len(), 1);
    assert!(!verdict.is_good());
    evidence.accepted.retain(|a| a.number != 0);
    assert!(judge(&evidence).is_good());
}

#[test]
fn an_answer_that_nobody_waited_for_is_no_delivery() {
    let mut evidence = clean();
    evidence.receipts[0].answered = None;
    assert_eq!(judge(&evidence).lost.len(), 1);
}

#[test]
fn a_duplicate_needs_a_kill_at_the_time_of_the_first() {
    let mut evidence = clean();
    evidence.receipts.push(receipt(0, Hook::Plain, 20, 200));
    let verdict = judge(&evidence);
    assert_eq!((verdict.duplicates, verdict.unexplained.len(), verdict.is_good()), (1, 1, false));
    evidence.faults = vec![fault(Fault::Kill(Role::Deliverer), 11, 11)];
    assert!(judge(&evidence).is_good());
    let toll = judge(&evidence).tolls.remove("kill-deliverer");
    assert_eq!(toll, Some(Toll { faults: 1, allowed: 5, duplicates: 1 }));
    evidence.faults[0].in_flight = 0;
    assert!(!judge(&evidence).is_good(), "more than were in flight");
    evidence.faults[0].in_flight = 1;
    evidence.faults[0].ports = Some([7].into());
    assert!(judge(&evidence).is_good());
    evidence.faults[0].ports = Some([8].into());
    assert!(!judge(&evidence).is_good(), "another deliverer had sent it");
    evidence.faults = vec![fault(Fault::Kill(Role::Deliverer), 15, 15)];
    assert!(!judge(&evidence).is_good());
    evidence.faults = vec![fault(Fault::Restart, 5, 25)];
    assert!(!judge(&evidence).is_good(), "an orderly restart allows none");
}

#[test]
fn an_outage_explains_only_with_a_kill_in_it() {
    let away = fault(Fault::Away(relay_servers::ServerKind::Postgres), 8, 30);
    let mut evidence = clean();
    evidence.receipts.push(receipt(0, Hook::Plain, 40, 200));
    evidence.faults = vec![away.clone()];
    assert!(!judge(&evidence).is_good());
    evidence.faults = vec![away, fault(Fault::Kill(Role::Deliverer), 25, 26)];
    assert!(judge(&evidence).is_good());
}

#[test]
fn strange_receipts_and_other_statuses_are_seen() {
    let mut evidence = clean();
    evidence.receipts[0].signed = false;
    assert_eq!(judge(&evidence).unexpected.len(), 1);
    let mut evidence = clean();
    evidence.receipts.push(receipt(0, Hook::First, 10, 200));
    evidence.receipts.push(receipt(100, Hook::Plain, 10, 200));
    assert_eq!(judge(&evidence).unexpected.len(), 2);
    let mut evidence = clean();
    evidence.receipts[1].id = "another".to_owned();
    assert!(!judge(&evidence).unexpected.is_empty());
    let mut evidence = clean();
    evidence.statuses.insert("id-0".to_owned(), Statuses::from([(Hook::Plain, "pending".to_owned())]));
    assert_eq!(judge(&evidence).mismatches.len(), 1);
}
