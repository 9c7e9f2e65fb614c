//! The routes of events, one file each.

pub mod attempts;
pub mod get;
pub mod list;
pub mod post;
