//! A nats-server of one test's own, without users, so that the test may also delete what services may not; killed when
//! dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use relay_bus::{Bus, BusOptions, Topology};
use tempfile::TempDir;
use tokio::time::Instant;

/// Servers start in well under a second; this is for a machine under load.
const READY_WITHIN: Duration = Duration::from_secs(30);

pub struct Server {
    dir: TempDir,
    port: u16,
    child: Child,
}

impl Server {
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// With further settings of JetStream.
    pub async fn start_with(jetstream: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("relay-bus-test-").tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let conf = format!(
            "listen: \"127.0.0.1:{port}\"\nmax_payload: 8MB\njetstream {{ store_dir: \"{}\", sync_interval: always{jetstream} }}\n",
            dir.path().join("streams").display()
        );
        std::fs::write(dir.path().join("nats.conf"), conf)?;
        let child = spawn(dir.path())?;
        let server = Self { dir, port, child };
        server.wait_ready().await?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A client with every right.
    pub async fn raw(&self) -> Result<async_nats::Client> {
        Ok(async_nats::connect(self.url()).await?)
    }

    /// A bus with small streams.
    pub async fn bus(&self) -> Result<Bus> {
        let bus = Bus::connect(BusOptions { url: self.url(), name: "test".to_owned() }).await?;
        bus.declare(&small()).await?;
        Ok(bus)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub async fn start_again(&mut self) -> Result<()> {
        self.child = spawn(self.dir.path())?;
        self.wait_ready().await
    }

    async fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            if let Ok(client) = async_nats::connect(self.url()).await
                && client.request("$JS.API.INFO", "".into()).await.is_ok()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("nats-server is not ready")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// Streams small enough for any disk.
pub fn small() -> Topology {
    Topology { events_bytes_max: 64 << 20, jobs_bytes_max: 64 << 20, dlq_bytes_max: 1 << 20, ..Topology::default() }
}

fn spawn(dir: &Path) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log"))?;
    Command::new(program())
        .arg("-c")
        .arg(dir.join("nats.conf"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("starting nats-server (`make build` puts it into .tools/)")
}

fn program() -> PathBuf {
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/nats-server");
    if pinned.exists() { pinned } else { PathBuf::from("nats-server") }
}
