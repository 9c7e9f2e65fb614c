//! Black-box tests: the system as its users have it, on real servers. Each test has servers, ports and data of its own.

mod circuit;
mod dead_letters;
mod direct;
mod fan_out;
mod idempotency;
mod interface;
mod journeys;
mod libraries;
mod restarts;
mod services;
mod start;
