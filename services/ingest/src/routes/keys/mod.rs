//! The routes of API keys, one file each. Every change is known to this pod's directory before it is answered, and the
//! other pods are told.

pub mod create;
pub mod list;
pub mod revoke;
