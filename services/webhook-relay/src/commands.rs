//! The commands, one file each.

mod access;
pub mod fsck;
pub mod keys;
pub mod migrate;
pub mod private;
pub mod secrets;
pub mod servers;
pub mod tenants;
pub mod up;
