//! The commands, one file each.

mod access;
pub mod fsck;
mod history;
pub mod keys;
pub mod migrate;
pub mod private;
pub mod recover;
pub mod secrets;
pub mod servers;
pub mod tenants;
pub mod up;
