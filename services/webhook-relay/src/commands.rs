//! The commands, one file each.

pub mod migrate;
pub mod private;
pub mod servers;
pub mod up;
