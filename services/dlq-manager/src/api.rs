//! What the routes share: the links to the outside and the counters. Cheap to clone.

use std::sync::Arc;

use metrics::Counter;
use relay_links::Links;
use relay_runtime::metrics::counter;

/// State of the routes.
#[derive(Clone)]
pub struct Api {
    /// The outside.
    pub links: Links,
    /// Counters of what operators did.
    pub counters: Arc<Counters>,
}

/// What operators did.
pub struct Counters {
    /// Letters replayed.
    pub replayed: Counter,
    /// Letters discarded.
    pub discarded: Counter,
}

impl Api {
    /// The state around `links`.
    pub fn new(links: Links) -> Self {
        let counters =
            Counters { replayed: counter("relay_dlq_replayed_total"), discarded: counter("relay_dlq_discarded_total") };
        Self { links, counters: Arc::new(counters) }
    }
}
