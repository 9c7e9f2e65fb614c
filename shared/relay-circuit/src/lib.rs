//! The circuit breakers of all endpoints: this pod's own counting, and the opinion that pods share in Redis (the one
//! crate that speaks Redis). Deliverers ask before each send and say what came of it; the dispatcher's scheduler
//! asks before it claims. Besides, the rate limits that pods keep together: tokens are leased here.
//!
//! Invariants: asking never waits and never fails; without Redis the pod goes on by its own counts, by the same
//! rules; across pods exactly one probe is out while its lease runs and Redis answers.

mod circuits;
mod error;
mod listen;
mod local;
mod report;
mod run;
mod shared;
mod snapshot;

pub use circuits::Circuits;
pub use error::CircuitError;
pub use local::CircuitTransition;
pub use snapshot::{CircuitView, Decision};
