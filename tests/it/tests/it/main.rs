//! Black-box tests: the system as its users have it, on real servers. Each test has servers, ports and data of its own.

#![expect(clippy::unwrap_used, reason = "a test that finds something else than it asks for fails")]

mod access;
mod burst;
mod circuit;
mod cluster;
mod contract;
#[cfg(debug_assertions)]
mod crash_points;
mod dead_letters;
mod dependencies;
mod direct;
mod disk_full;
mod egress;
mod endpoints;
mod event_batches;
mod event_lists;
mod fan_out;
mod flow;
mod fsck;
mod hostile_receivers;
mod hostile_requests;
mod idempotency;
mod interface;
mod journeys;
mod letters_in_bulk;
mod libraries;
mod migrations;
mod outages;
mod overload;
mod proxies;
mod recover;
mod restarts;
mod retention;
mod secrets;
mod servers;
mod services;
mod shards;
mod start;
mod statistics;
mod tls;
