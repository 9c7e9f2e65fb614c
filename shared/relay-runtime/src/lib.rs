//! What every service has, whatever it does: settings, logs, metrics, health, an HTTP server with the habits of
//! our REST interface, the corrected clock, randomness, reconnecting, shutdown.
//!
//! Called by the services and the command line. It knows none of the adapters: what they check or connect comes
//! in as closures. In the order of a service's life: [`flags`], [`telemetry`], [`metrics`], [`reconnect`],
//! [`clock`], [`health`], [`http`] with [`auth`], [`extract`], [`list`], [`problem`] and [`openapi`], [`shutdown`].

mod allocator;
pub mod auth;
pub mod clock;
pub mod extract;
pub mod failpoint;
pub mod flags;
pub mod health;
pub mod http;
pub mod list;
pub mod metrics;
pub mod openapi;
pub mod pod;
pub mod problem;
pub mod random;
pub mod reconnect;
pub mod shutdown;
pub mod telemetry;
