//! Private servers for the tests of one crate: PostgreSQL, Redis, nats-server, or some of them, on free ports with data
//! of their own, ended and removed when dropped.
//!
//! Used by tests of adapters, which speak to one server each; the black-box tests in `tests/it` start the servers through
//! the program that users start. Invariant: two tests share nothing but the template that a database cluster is copied
//! from (making a cluster takes seconds, copying one a moment).

mod template;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use relay_servers::{Memory, Servers, ServersConfig};
pub use relay_servers::{ServerKind, Signal};
use tempfile::TempDir;

/// Running servers of one test; everything else comes from [`Servers`]: URLs, kill, start again on the same port.
#[derive(Debug)]
pub struct TestServers {
    // Ended before their directory is removed: fields are dropped in this order.
    servers: Servers,
    _dir: TempDir,
}

impl TestServers {
    /// Starts these servers with fsync on and little memory. Blocks for a moment: a test may call it in its own function,
    /// also in an async one.
    pub fn start(kinds: &[ServerKind]) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("relay-test-").tempdir().context("making a directory for servers")?;
        let data_dir = dir.path().join("data");
        if kinds.contains(&ServerKind::Postgres) {
            template::copy_to(&data_dir)?;
        }
        let servers = Servers::start(&config(&data_dir).only(kinds)).context("starting servers for a test")?;
        Ok(Self { servers, _dir: dir })
    }

    /// URL of PostgreSQL, with password; the role may make databases.
    pub fn database(&self) -> String {
        self.servers.database_url().expect("the test asked for PostgreSQL")
    }

    /// URL of Redis, with password.
    pub fn redis(&self) -> String {
        self.servers.redis_url().expect("the test asked for Redis")
    }

    /// URL of nats-server for user `relay`, who may do what all services may.
    pub fn nats(&self) -> String {
        self.servers.nats_url().expect("the test asked for nats-server")
    }

    /// Ends a server without a word and starts it again on the same port.
    pub fn kill_and_restart(&mut self, kind: ServerKind) -> anyhow::Result<()> {
        self.servers.stop_server(kind, Signal::Kill)?;
        self.servers.start_server(kind)?;
        Ok(())
    }
}

impl Deref for TestServers {
    type Target = Servers;

    fn deref(&self) -> &Servers {
        &self.servers
    }
}

impl DerefMut for TestServers {
    fn deref_mut(&mut self) -> &mut Servers {
        &mut self.servers
    }
}

fn config(data_dir: &Path) -> ServersConfig {
    ServersConfig { tools_dirs: vec![tools_dir()], memory: Memory::Small, ..ServersConfig::new(data_dir) }
}

/// `.tools` of this checkout, where `make` puts nats-server.
fn tools_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}
