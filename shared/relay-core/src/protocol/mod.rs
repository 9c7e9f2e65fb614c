//! The decisions of dispatcher, scheduler, deliverer and recorder: what goes into a statement together, which job
//! must be checked before it is sent, what an error means, how much may be claimed. Pure functions, run by the
//! services and by the simulation alike.

mod budgets;
mod fold;
mod plan;
pub mod rows;
mod shares;
mod suspect;

pub use budgets::{Budgets, may_claim_lapsed, ramp_rows};
pub use fold::{FoldedEvent, FoldedResult, fold_events, fold_results};
pub use plan::{
    DISPATCH_BYTES_MAX, DISPATCH_DELIVERIES_MAX, DISPATCH_EVENTS_MAX, PlannedDead, PlannedDelivery, PlannedEvent, split,
};
pub use shares::deal;
pub use suspect::{AGE_MAX, DISRUPTION, Sighting, StatementFailure, classify_sqlstate, is_stale, is_suspect};
