//! Circuits of several pods against a real Redis: each test starts its own server and pins one behaviour.

mod away;
mod pods;
mod rates;
mod shared;
