//! What the dispatch statement is given, and how much of it at once.

use std::time::Duration;

use crate::delivery::DeadReason;
use crate::event::Event;
use crate::ids::{EndpointId, EventId};
use crate::subject::Lane;

/// Events in one statement at most.
pub const DISPATCH_EVENTS_MAX: usize = 1000;
/// Deliveries in one statement at most, unless one event alone has more.
pub const DISPATCH_DELIVERIES_MAX: usize = 5000;
/// Payload bytes in one statement at most, unless one event alone has more.
pub const DISPATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A delivery to be opened.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedDelivery {
    /// To whom.
    pub endpoint: EndpointId,
    /// With a job at once (`claim = 1`, due at the end of the lease), or held (`claim = 0`, due now).
    pub leased: bool,
    /// How long the claim holds it.
    pub lease: Duration,
    /// The lane of its first job.
    pub lane: Lane,
}

/// An event for one endpoint that can't have it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedDead {
    /// The endpoint that was named.
    pub endpoint: EndpointId,
    /// [`DeadReason::UnknownEndpoint`] or [`DeadReason::EndpointInactive`].
    pub reason: DeadReason,
    /// In words.
    pub error: String,
}

/// An event with everything that the matching gave for it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedEvent {
    /// The event.
    pub event: Event,
    /// Further ids that mean it.
    pub aliases: Vec<EventId>,
    /// The directory version that the matching used: the fence.
    pub directory_version: i64,
    /// To whom it goes.
    pub deliveries: Vec<PlannedDelivery>,
    /// Or why it goes to nobody.
    pub dead: Option<PlannedDead>,
}

/// Splits into statements within the limits. Limits separate events, never the deliveries of one event; of an
/// event with more than [`DISPATCH_DELIVERIES_MAX`] deliveries the rest is held for the scheduler.
pub fn split(planned: Vec<PlannedEvent>) -> Vec<Vec<PlannedEvent>> {
    let mut parts: Vec<Vec<PlannedEvent>> = Vec::new();
    let (mut deliveries, mut bytes) = (0, 0);
    for mut event in planned {
        for held in event.deliveries.iter_mut().skip(DISPATCH_DELIVERIES_MAX) {
            held.leased = false;
        }
        let (d, b) = (event.deliveries.len(), event.event.payload.len());
        match parts.last_mut() {
            Some(part)
                if part.len() < DISPATCH_EVENTS_MAX
                    && deliveries + d <= DISPATCH_DELIVERIES_MAX
                    && bytes + b <= DISPATCH_BYTES_MAX =>
            {
                deliveries += d;
                bytes += b;
                part.push(event);
            }
            _ => {
                (deliveries, bytes) = (d, b);
                parts.push(vec![event]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventType;
    use crate::ids::TenantId;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn planned(id: u128, deliveries: usize, bytes: usize) -> PlannedEvent {
        let delivery = |i: usize| PlannedDelivery {
            endpoint: EndpointId(Uuid::from_u128(i as u128)),
            leased: true,
            lease: Duration::from_secs(60),
            lane: Lane::Fresh,
        };
        PlannedEvent {
            event: Event {
                id: EventId(Uuid::from_u128(id)),
                tenant: TenantId::default_tenant(),
                event_type: EventType::trusted("a"),
                endpoint: None,
                key: None,
                accepted_at: Default::default(),
                trace: None,
                payload: vec![0; bytes].into(),
            },
            aliases: Vec::new(),
            directory_version: 1,
            deliveries: (0..deliveries).map(delivery).collect(),
            dead: None,
        }
    }

    #[test]
    fn a_huge_fan_out_stays_in_one_statement_and_its_rest_is_held() {
        let parts = split(vec![planned(1, 1, 1), planned(2, DISPATCH_DELIVERIES_MAX + 3, 1), planned(3, 1, 1)]);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(parts[1][0].deliveries.iter().filter(|d| !d.leased).count(), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn parts_keep_order_and_limits(sizes in prop::collection::vec((0usize..3000, 0usize..2_000_000), 0..20)) {
            let all: Vec<_> = sizes.iter().enumerate().map(|(i, (d, b))| planned(i as u128, *d, *b)).collect();
            let parts = split(all.clone());
            for part in &parts {
                prop_assert!(part.len() == 1 || part.iter().map(|e| e.deliveries.len()).sum::<usize>() <= DISPATCH_DELIVERIES_MAX);
                prop_assert!(part.len() == 1 || part.iter().map(|e| e.event.payload.len()).sum::<usize>() <= DISPATCH_BYTES_MAX);
            }
            prop_assert_eq!(parts.concat(), all);
        }
    }
}
