//! A whole system for one test: private servers with their own ports and data, and either everything in one process
//! or each service on its own.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::api::Api;
use crate::disk::Disk;
use crate::process::{Process, ServiceFlags, binary, free_port};
use crate::proxy::Proxy;
use crate::sink::Sink;

/// The system, a client, and a receiver.
pub struct World {
    /// A client of the interface.
    pub api: Api,
    /// A receiver.
    pub sink: Sink,
    /// NATS for producers, without credentials.
    pub nats_url: String,
    /// The all-in-one, or the servers alone.
    pub up: Process,
    /// How the all-in-one, or the servers, are started.
    up_args: Vec<String>,
    /// `--flag value` pairs by which services of their own find the servers.
    links: Vec<String>,
    dir: Dir,
}

/// A service that was started, ready or not.
pub struct Launched {
    /// The process.
    pub process: Process,
    /// Where its health is.
    pub health: String,
    /// Where its interface is, if it has one.
    pub interface: Option<String>,
}

impl Launched {
    /// Waits until it is ready. Returns it and where it listens: its interface, or else its health.
    pub async fn ready(mut self) -> anyhow::Result<(Process, String)> {
        self.process.wait_ready(&format!("http://{}/health/ready", self.health)).await?;
        Ok((self.process, self.interface.unwrap_or(self.health)))
    }
}

/// The directory of one test; removed when everything in it has ended, kept where the test failed.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl World {
    /// Everything in one process, as `webhook-relay up` starts it.
    pub async fn start() -> anyhow::Result<Self> {
        Self::with("up", &[], None, [0, 0]).await
    }

    /// Everything in one process, closed by an operator's key, which [`World::api`] sends. It can't be revoked.
    pub async fn closed(key: &str) -> anyhow::Result<Self> {
        let mut world = Self::with("up", &[], Some(key), [0, 0]).await?;
        world.api = world.api.with_key(key);
        Ok(world)
    }

    /// Everything in one process, with further flags.
    pub async fn start_with(args: &[&str]) -> anyhow::Result<Self> {
        Self::with("up", args, None, [0, 0]).await
    }

    /// Private servers only: `webhook-relay servers`. `service` starts services; [`World::api`] points nowhere until
    /// [`World::use_api`].
    pub async fn servers() -> anyhow::Result<Self> {
        Self::with("servers", &[], None, [0, 0]).await
    }

    /// Private servers that were set up and ended: [`World::bring_back`] starts them, where services look for them.
    pub async fn absent() -> anyhow::Result<Self> {
        let mut world = Self::with("servers", &[], None, [free_port(), free_port()]).await?;
        anyhow::ensure!(world.up.terminate().await?, "the servers don't end in order:\n{}", world.up.output());
        Ok(world)
    }

    /// Starts the servers of [`World::absent`].
    pub async fn bring_back(&mut self) -> anyhow::Result<()> {
        std::fs::remove_file(self.data("servers.env"))?;
        self.up = Process::start(&self.dir.0, "servers-again", &binary("webhook-relay")?, &self.up_args, &[])?;
        wait_for_file(&self.data("servers.env"), &mut self.up).await
    }

    /// Private servers, one of which (`postgres`, `nats`) has its data on a disk of its own.
    pub async fn on_a_small_disk(server: &str) -> anyhow::Result<(Self, Disk)> {
        let mut world = Self::absent().await?;
        let dir = world.data(server);
        let args = Disk::arguments(&dir, &binary("webhook-relay")?, &world.up_args)?;
        std::fs::remove_file(world.data("servers.env"))?;
        world.up = Process::start(&world.dir.0, "servers-again", std::path::Path::new("unshare"), &args, &[])?;
        wait_for_file(&world.data("servers.env"), &mut world.up).await?;
        let disk = Disk::of(dir, world.up.pid());
        Ok((world, disk))
    }

    async fn with(command: &str, more: &[&str], key: Option<&str>, ports: [u16; 2]) -> anyhow::Result<Self> {
        let sink = Sink::start().await?;
        let dir = std::env::temp_dir().join(format!("relay-it-{}-{}", std::process::id(), free_port()));
        std::fs::create_dir_all(&dir)?;
        let nats_port = free_port();
        let listen = format!("127.0.0.1:{}", free_port());
        let data = dir.join("data").to_string_lossy().into_owned();
        let mut args: Vec<String> = [
            command,
            "--data-dir",
            &data,
            "--postgres-port",
            &ports[0].to_string(),
            "--redis-port",
            &ports[1].to_string(),
            "--nats-port",
            &nats_port.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        if command == "up" {
            args.extend(["--listen".to_owned(), listen.clone()]);
        }
        args.extend(more.iter().map(|a| (*a).to_owned()));
        let key: Vec<_> = key.map(|key| ("RELAY_API_KEY".to_owned(), key.to_owned())).into_iter().collect();
        let mut up = Process::start(&dir, command, &binary("webhook-relay")?, &args, &key)?;
        let base = format!("http://{listen}");
        let links = dir.join("data").join("servers.env");
        if command == "up" {
            up.wait_ready(&format!("{base}/health/ready")).await?;
        } else {
            wait_for_file(&links, &mut up).await?;
        }
        let links = read_links(&links)?;
        let nats_url = format!("nats://127.0.0.1:{nats_port}");
        Ok(Self { api: Api::new(&base), sink, nats_url, up, up_args: args, links, dir: Dir(dir) })
    }

    /// Starts everything in one process on the servers of [`World::servers`], with further flags. [`World::api`] is its
    /// interface.
    pub async fn all(&mut self, name: &str, more: &[&str]) -> anyhow::Result<Process> {
        let (mut up, address) = self.launch_all(name, more)?;
        up.wait_ready(&format!("http://{address}/health/ready")).await?;
        self.use_api(&address);
        Ok(up)
    }

    /// The same without waiting for it. Returns it and where its interface is to be.
    pub fn launch_all(&self, name: &str, more: &[&str]) -> anyhow::Result<(Process, String)> {
        let address = format!("127.0.0.1:{}", free_port());
        let data = self.dir.0.join("all").to_string_lossy().into_owned();
        let args = [&["up", "--data-dir", &data, "--listen", &address], more].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        Ok((Process::start(&self.dir.0, name, &binary("webhook-relay")?, &args, &self.env(&[]))?, address))
    }

    /// Starts a service of its own on these servers. Returns it and the address that it listens on: that of its
    /// interface where it has one, else that of its health.
    pub async fn service(&self, name: &str, binary_name: &str) -> anyhow::Result<(Process, String)> {
        self.launch(name, binary_name, None, &[], &[])?.ready().await
    }

    /// The same with further flags and variables.
    pub async fn service_with(
        &self,
        name: &str,
        binary_name: &str,
        more: &[String],
        env: &[(String, String)],
    ) -> anyhow::Result<(Process, String)> {
        self.launch(name, binary_name, None, more, env)?.ready().await
    }

    /// An ingest that listens where another one did.
    pub async fn ingest_at(&self, name: &str, address: &str) -> anyhow::Result<Process> {
        Ok(self.launch(name, "ingest", Some(address.to_owned()), &[], &[])?.ready().await?.0)
    }

    /// Starts a service of its own with further flags and variables, and waits for nothing.
    pub fn launch(
        &self,
        name: &str,
        binary_name: &str,
        listen: Option<String>,
        more: &[String],
        variables: &[(String, String)],
    ) -> anyhow::Result<Launched> {
        let ServiceFlags { mut args, health, interface } = ServiceFlags::new(binary_name, &self.dir.0, listen);
        args.extend_from_slice(more);
        let process = Process::start(&self.dir.0, name, &binary(binary_name)?, &args, &self.env(variables))?;
        Ok(Launched { process, health, interface })
    }

    /// Where the servers are, and further variables.
    fn env(&self, variables: &[(String, String)]) -> Vec<(String, String)> {
        let pairs = self.links.iter().filter_map(|l| l.split_once('='));
        let links = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        links.chain(variables.iter().cloned()).collect()
    }

    /// Sets a variable of the environment of services that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.links.retain(|l| !l.starts_with(&format!("{name}=")));
        self.links.push(format!("{name}={value}"));
    }

    /// Puts a proxy between one of the servers (`DATABASE_URL`, `REDIS_URL`, `NATS_URL`) and the services that are
    /// started from now on.
    pub async fn proxy(&mut self, name: &str) -> anyhow::Result<Proxy> {
        let mut url = reqwest::Url::parse(&self.link(name)?)?;
        let (host, port) = (url.host_str().context("no host")?, url.port().context("no port")?);
        let proxy = Proxy::start(format!("{host}:{port}").parse()?).await?;
        url.set_port(Some(proxy.address().port())).map_err(|()| anyhow::anyhow!("no port can be set"))?;
        self.set(name, url.as_str());
        Ok(proxy)
    }

    /// What `webhook-relay` prints for these arguments, with the database of this system.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = std::process::Command::new(binary("webhook-relay")?);
        command.args(args).arg("--data-dir").arg(self.dir.0.join("data")).env_remove("DATABASE_URL");
        command.env_remove("RELAY_SECRETS_KEY").env_remove("RELAY_SECRETS_KEY_FILE");
        let output = command.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{args:?}: {error}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// A new API key of a tenant.
    pub fn key(&self, tenant: &str, scope: &str, more: &[&str]) -> anyhow::Result<String> {
        let args = ["keys", "create", "--name", "test", "--tenant", tenant, "--scope", scope];
        self.command(&[&args, more].concat())
    }

    /// Lets [`World::api`] speak to another listener.
    pub fn use_api(&mut self, address: &str) {
        self.api = Api::new(&format!("http://{address}"));
    }

    /// A file of the data directory.
    pub fn data(&self, file: &str) -> PathBuf {
        self.dir.0.join("data").join(file)
    }

    /// The URL of one of the servers, from the links file: `DATABASE_URL`, `REDIS_URL`, `NATS_URL`.
    pub fn link(&self, name: &str) -> anyhow::Result<String> {
        let prefix = format!("{name}=");
        self.links.iter().find_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).with_context(|| format!("no {name}"))
    }
}

async fn wait_for_file(path: &std::path::Path, servers: &mut Process) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + crate::api::PATIENCE;
    while !path.exists() {
        let is_fine = servers.ended().is_none() && tokio::time::Instant::now() < deadline;
        anyhow::ensure!(is_fine, "the servers don't come up:\n{}", servers.output());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}

fn read_links(path: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.lines().filter(|l| l.contains('=')).map(|l| l.replace('\'', "")).collect())
}
