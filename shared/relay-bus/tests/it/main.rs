//! The bus against a real nats-server: each test starts its own and pins one behaviour that the system relies on.

mod faults;
mod server;
mod shards;
mod streams;
mod users;
