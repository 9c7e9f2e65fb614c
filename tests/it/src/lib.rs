//! What the black-box tests share: the system as a user starts it, a client of its interface, and receivers whose
//! answers a test scripts. Nothing here knows the inside of the system.

pub mod api;
pub mod cluster;
pub mod disk;
pub mod process;
pub mod proxy;
pub mod sink;
pub mod tools;
pub mod world;

pub use api::{Answer, Api};
pub use proxy::Proxy;
pub use sink::{Received, Reply, Sink};
pub use world::World;
