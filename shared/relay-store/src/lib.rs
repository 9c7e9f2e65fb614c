//! The ledger: everything that this system keeps in Postgres. The only crate that names sqlx.
//!
//! To read in the order of an event's way: [`directory`] and [`snapshot`](DirectorySnapshot) (whom it is for),
//! [`dispatch`] (stored), [`check`] (looked at before it is sent), [`record`] (what became of it), [`claim`] (due
//! again), [`replay`], [`jobs`], [`close`] and [`resume`] (operators and leaders). `connect`, `run` and [`bisect`] carry all
//! of them; [`events`], [`attempts`], [`dead_letters`], [`endpoints`], [`keys`], [`stats`], [`series`], [`backlog`] and
//! [`circuit_history`] serve the interface; [`audit`] and [`mend`] the check of a running
//! system; `partitions`, [`leader`] and `retention` the leaders.
//!
//! To add a query: write it with `sqlx::query!` (or a file in `src/sql` when it is long) in the file of its
//! purpose, hand it to one of the three runners of [`Store`], and refresh the offline data: with a database that
//! has the migrations, `SQLX_OFFLINE_DIR=$PWD/shared/relay-store/.sqlx cargo check -p relay-store`. Look-ups by
//! key belong on `keyed`, where partitions are pruned while the statement runs; lists on `queries`.
//!
//! What producers and receivers send is bound as `bytea`: a NUL in a text column fails a whole batch.

pub mod attempts;
pub mod audit;
pub mod backlog;
pub mod bisect;
pub mod check;
pub mod circuit_history;
pub mod claim;
pub mod close;
mod connect;
pub mod dead_letters;
pub mod directory;
pub mod dispatch;
mod endpoint_row;
pub mod endpoints;
mod error;
mod event_lists;
pub mod events;
pub mod jobs;
pub mod keys;
pub mod leader;
pub mod letter_groups;
mod letters;
pub mod mend;
pub mod new_event;
mod partitions;
pub mod record;
pub mod replay;
pub mod reseal;
pub mod resume;
mod retention;
mod run;
mod sealer;
pub mod series;
mod snapshot;
mod state_file;
pub mod stats;
#[cfg(debug_assertions)]
mod unguarded;
mod window;

#[cfg(test)]
mod tests;

pub use attempts::AttemptView;
pub use audit::{Doubled, Leaders, LetterAudit, OpenFault, OpenPart, Overdue, WrongFigures};
pub use backlog::{Backlog, DUE_MAX};
pub use check::{TakeKey, Taken};
pub use circuit_history::{CircuitChange, CircuitEventRow};
pub use claim::{ClaimBudget, Due, DueEndpoint};
pub use connect::{Durability, Store, StoreOptions};
pub use dead_letters::{DeadLetter, LetterFilter, LetterState};
pub use directory::{Directory, DirectorySnapshot};
pub use dispatch::{DispatchOutcome, Dispatched, VersionLock};
pub use endpoints::{EndpointChange, NewEndpoint};
pub use error::{ErrorKind, StoreError};
pub use event_lists::EventFilter;
pub use events::{DeliveryView, EventSummary, EventView, KnownEvent};
pub use jobs::{JobError, JobSpec, LetterJob, Published, Stepped};
pub use keys::{KeyCreation, KeyView, KeyWish, NewKey, TenantView};
pub use leader::Leader;
pub use letter_groups::LetterGroup;
pub use letters::RawLetter;
pub use new_event::LetterEvent;
pub use partitions::{DAYS_AHEAD, DAYS_AHEAD_MAX, DAYS_BACK_MAX};
pub use record::{Recorded, RecordedBatch};
pub use replay::{ReplayOutcome, ResendOutcome};
pub use reseal::{Resealed, Unsealable};
pub use resume::{ResumeStep, Resuming};
pub use sealer::Sealer;
pub use series::SeriesPoint;
pub use stats::{Counters, Folded};
pub use window::{Listed, TOTAL_MAX, Window};
