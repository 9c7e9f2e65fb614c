//! The routes of tenants, for operators. A tenant is never removed: its events and their history are its own.

pub mod create;
pub mod list;
