//! Step 5, second half: which endpoints get an event, and which of those get a job at once. Pure: the
//! directory's snapshot and what is known of each endpoint come in.
//!
//! A plan names the directory version that it was made with; the dispatch statement refuses it where the
//! tenant's version has moved on (the fence), so an endpoint created before the event was sent is never missed.

use relay_core::delivery::DeadReason;
use relay_core::endpoint::Endpoint;
use relay_core::event::Event;
use relay_core::protocol::{FoldedEvent, PlannedDead, PlannedDelivery, PlannedEvent};
use relay_core::subject::Lane;
use relay_store::DirectorySnapshot;

/// Plans one event with the directory version of its tenant. `holds` says whether work for an endpoint waits in the
/// table instead of getting a job.
fn plan(
    folded: FoldedEvent,
    directory_version: i64,
    directory: &DirectorySnapshot,
    holds: &mut dyn FnMut(&Endpoint) -> bool,
) -> PlannedEvent {
    let mut deliveries = Vec::new();
    let mut dead = None;
    match folded.event.endpoint {
        None => {
            for endpoint in directory.matching(&folded.event.tenant, folded.event.event_type.as_str()) {
                deliveries.push(deliver(endpoint, holds));
            }
        }
        Some(id) => match directory.endpoint(id).filter(|e| e.tenant == folded.event.tenant) {
            None => {
                dead = Some(PlannedDead {
                    endpoint: id,
                    reason: DeadReason::UnknownEndpoint,
                    error: "Endpoint not found".to_owned(),
                });
            }
            Some(endpoint) if !endpoint.is_active => {
                dead = Some(PlannedDead {
                    endpoint: id,
                    reason: DeadReason::EndpointInactive,
                    error: "Endpoint is inactive".to_owned(),
                });
            }
            Some(endpoint) if endpoint.takes(folded.event.event_type.as_str()) => {
                deliveries.push(deliver(endpoint, holds));
            }
            // The endpoint doesn't want this type: stored as unmatched, so it is seen.
            Some(_) => {}
        },
    }
    PlannedEvent { event: folded.event, aliases: folded.aliases, directory_version, deliveries, dead }
}

fn deliver(endpoint: &Endpoint, holds: &mut dyn FnMut(&Endpoint) -> bool) -> PlannedDelivery {
    PlannedDelivery { endpoint: endpoint.id, leased: !holds(endpoint), lease: endpoint.lease(), lane: Lane::Fresh }
}

/// Plans many events, those of unknown tenants apart.
pub fn plan_all(
    events: impl IntoIterator<Item = FoldedEvent>,
    directory: &DirectorySnapshot,
    holds: &mut dyn FnMut(&Endpoint) -> bool,
) -> (Vec<PlannedEvent>, Vec<Event>) {
    let (mut planned, mut unknown) = (Vec::new(), Vec::new());
    for folded in events {
        match directory.version(&folded.event.tenant) {
            Some(version) => planned.push(plan(folded, version, directory, holds)),
            None => unknown.push(folded.event),
        }
    }
    (planned, unknown)
}
