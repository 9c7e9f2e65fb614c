//! The routes of events, one file each.

pub mod attempts;
pub mod batch;
pub mod explain;
pub mod get;
pub mod list;
pub mod post;
pub mod retry;
