//! Folding before the statements: copies of one event become one, results of one delivery become one change.

use std::collections::HashMap;

use crate::delivery::{DeliveryResult, Outcome};
use crate::event::Event;
use crate::ids::{EndpointId, EventId};

/// An event with the ids of its copies.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedEvent {
    /// The first frame.
    pub event: Event,
    /// Neighbouring days' ids of the same key, accepted in the same batch: they become aliases.
    pub aliases: Vec<EventId>,
}

/// Folds copies of one id (the first frame wins), and neighbouring days' ids of one key into aliases of the first
/// that is an event. As in the table, an alias has no neighbours of its own: the key of three days in one batch
/// gives two events.
pub fn fold_events(events: Vec<Event>) -> Vec<FoldedEvent> {
    let mut folded: Vec<FoldedEvent> = Vec::with_capacity(events.len());
    let mut seen: HashMap<EventId, Option<usize>> = HashMap::with_capacity(events.len());
    for event in events {
        if seen.contains_key(&event.id) {
            continue;
        }
        let neighbour = event.key.as_ref().and_then(|key| {
            let ids = EventId::keyed_neighbours(&event.tenant, key, event.id.time());
            ids.iter().find_map(|id| seen.get(id).copied().flatten())
        });
        match neighbour {
            Some(first) => {
                seen.insert(event.id, None);
                folded[first].aliases.push(event.id);
            }
            None => {
                seen.insert(event.id, Some(folded.len()));
                folded.push(FoldedEvent { event, aliases: Vec::new() });
            }
        }
    }
    folded
}

/// The results of one delivery: one decides, of the others only the evidence is written.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedResult {
    /// The one that changes the delivery.
    pub decisive: DeliveryResult,
    /// The rest.
    pub others: Vec<DeliveryResult>,
}

/// Folds results by delivery: a 2xx wins, else the highest claim. Sorted by delivery, so that statements of
/// several writers take their locks in one order.
pub fn fold_results(results: Vec<DeliveryResult>) -> Vec<FoldedResult> {
    let mut by_delivery: HashMap<(EventId, EndpointId), FoldedResult> = HashMap::with_capacity(results.len());
    for result in results {
        match by_delivery.entry((result.event, result.endpoint)) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(FoldedResult { decisive: result, others: Vec::new() });
            }
            std::collections::hash_map::Entry::Occupied(mut place) => {
                let folded = place.get_mut();
                if rank(&result) > rank(&folded.decisive) {
                    folded.others.push(std::mem::replace(&mut folded.decisive, result));
                } else {
                    folded.others.push(result);
                }
            }
        }
    }
    let mut folded: Vec<FoldedResult> = by_delivery.into_values().collect();
    folded.sort_unstable_by_key(|f| (f.decisive.event, f.decisive.endpoint));
    folded
}

/// Among 2xx the highest number counts (one above the row's base), else the highest claim.
fn rank(result: &DeliveryResult) -> (bool, i32, i32) {
    match result.outcome {
        Outcome::Delivered => (true, result.attempts, result.claim),
        _ => (false, result.claim, result.attempts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{DeadReason, HandBack};
    use crate::event::EventType;
    use crate::ids::{IdempotencyKey, TenantId};
    use bytes::Bytes;
    use chrono::{DateTime, Duration, TimeZone, Utc};
    use uuid::Uuid;

    fn keyed(key: &str, at: DateTime<Utc>, payload: &'static [u8]) -> Event {
        let tenant = TenantId::default_tenant();
        let key = IdempotencyKey::parse(key).unwrap();
        Event {
            id: EventId::keyed(&tenant, &key, at),
            tenant,
            event_type: EventType::trusted("a"),
            endpoint: None,
            key: Some(key),
            accepted_at: at,
            trace: None,
            payload: Bytes::from_static(payload),
        }
    }

    #[test]
    fn copies_fold_and_the_first_wins() {
        let noon = Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        let folded = fold_events(vec![keyed("k", noon, b"1"), keyed("j", noon, b"3"), keyed("k", noon, b"2")]);
        assert_eq!(folded.len(), 2);
        assert_eq!(&folded[0].event.payload[..], b"1");
        assert!(folded[0].aliases.is_empty());
    }

    #[test]
    fn a_neighbouring_days_id_becomes_an_alias_in_either_order() {
        let noon = Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        let next = noon + Duration::days(1);
        for (a, b) in [(noon, next), (next, noon)] {
            let (first, second) = (keyed("k", a, b"1"), keyed("k", b, b"2"));
            let folded = fold_events(vec![first.clone(), second.clone(), second.clone()]);
            assert_eq!(folded, vec![FoldedEvent { event: first, aliases: vec![second.id] }]);
        }
        let far = keyed("k", noon + Duration::days(2), b"3");
        assert_eq!(fold_events(vec![keyed("k", noon, b"1"), far.clone()]).len(), 2);
        let three = fold_events(vec![keyed("k", noon, b"1"), keyed("k", next, b"2"), far]);
        assert_eq!(three.iter().map(|f| f.aliases.len()).collect::<Vec<_>>(), [1, 0]);
    }

    fn result(claim: i32, attempts: i32, outcome: Outcome) -> DeliveryResult {
        DeliveryResult {
            event: EventId(Uuid::from_u128(1)),
            endpoint: EndpointId(Uuid::from_u128(2)),
            tenant: TenantId::default_tenant(),
            claim,
            attempts,
            outcome,
            evidence: None,
        }
    }

    #[test]
    fn a_2xx_decides_else_the_highest_claim() {
        let dead = Outcome::Dead { reason: DeadReason::Permanent, deactivate: false };
        let back = Outcome::HandedBack { delay: std::time::Duration::ZERO, reason: HandBack::Full };
        let folded = fold_results(vec![
            result(3, 1, dead.clone()),
            result(2, 1, Outcome::Delivered),
            result(4, 1, back.clone()),
        ]);
        assert_eq!(folded.len(), 1);
        assert_eq!(folded[0].decisive.outcome, Outcome::Delivered);
        assert_eq!(folded[0].others.len(), 2);
        let folded = fold_results(vec![result(3, 1, dead), result(4, 1, back.clone())]);
        assert_eq!(folded[0].decisive.outcome, back);
    }
}
