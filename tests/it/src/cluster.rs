//! Three NATS servers that are one cluster, with the accounts that are shipped. Each can be killed and started again.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{Process, free_port};
use crate::world::World;

/// Servers of a cluster: the least that goes on without one.
pub const SIZE: usize = 3;
/// The users of accounts.conf, by the name of the variable that has their password.
const USERS: [&str; 6] = ["INGEST", "DISPATCHER", "DELIVERER", "DLQ_MANAGER", "RELAY", "PRODUCER"];
const PASSWORD: &str = "of-all-users-in-this-test";

/// The cluster.
pub struct Cluster {
    dir: PathBuf,
    ports: [u16; SIZE],
    /// In the order of their numbers.
    servers: Vec<Process>,
}

impl Cluster {
    /// Starts it beside the servers of a world, and lets the services that are started from now on use it.
    pub fn start(w: &mut World) -> anyhow::Result<Self> {
        let dir = w.data("cluster");
        fs::create_dir_all(&dir)?;
        fs::copy(w.data("nats/accounts.conf"), dir.join("accounts.conf"))?;
        let ports: [u16; SIZE] = std::array::from_fn(|_| free_port());
        let routes: [u16; SIZE] = std::array::from_fn(|_| free_port());
        let all = routes.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        for n in 0..SIZE {
            let conf = format!(
                "server_name: \"nats-{n}\"\nlisten: \"127.0.0.1:{}\"\nmax_payload: 8MB\n\
                 jetstream {{ store_dir: \"{}\", sync_interval: always, max_file: 2GB, max_mem: 1GB }}\n\
                 cluster {{ name: \"relay\", listen: \"127.0.0.1:{}\", routes: [{all}] }}\n\
                 include \"accounts.conf\"\n",
                ports[n],
                dir.join(format!("streams-{n}")).display(),
                routes[n],
            );
            fs::write(dir.join(format!("nats-{n}.conf")), conf)?;
        }
        let servers = (0..SIZE).map(|n| server(&dir, n)).collect::<anyhow::Result<_>>()?;
        w.set("NATS_URL", &ports.map(url).join(","));
        Ok(Self { dir, ports, servers })
    }

    /// One of its servers, for a service.
    pub fn url(&self, n: usize) -> String {
        url(self.ports[n])
    }

    /// `kill -9` of a server.
    pub fn kill(&mut self, n: usize) -> anyhow::Result<()> {
        self.servers[n].kill()
    }

    /// Starts a server that was killed.
    pub fn start_again(&mut self, n: usize) -> anyhow::Result<()> {
        self.servers[n] = server(&self.dir, n)?;
        Ok(())
    }
}

fn url(port: u16) -> String {
    format!("nats://relay:{PASSWORD}@127.0.0.1:{port}")
}

fn server(dir: &Path, n: usize) -> anyhow::Result<Process> {
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/nats-server");
    let program = if pinned.exists() { pinned } else { PathBuf::from("nats-server") };
    let args = ["-c".to_owned(), dir.join(format!("nats-{n}.conf")).to_string_lossy().into_owned()];
    let passwords = USERS.map(|user| (format!("RELAY_NATS_{user}_PASSWORD"), PASSWORD.to_owned()));
    Process::start(dir, &format!("nats-{n}"), &program, &args, &passwords)
}
