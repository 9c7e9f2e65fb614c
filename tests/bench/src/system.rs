//! The system under test, in a directory of its own: `webhook-relay up` as a user starts it, or each service as
//! processes of its own beside `webhook-relay servers`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(60);
/// How long an end may take.
const STOP_MAX: Duration = Duration::from_secs(20);

/// The header by which an operator acts in a tenant.
pub const TENANT_HEADER: &str = "X-Relay-Tenant";

/// How its services run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All in one process.
    AllInOne,
    /// One process each, and so many deliverers.
    Separate(usize),
}

/// A running system; ended when dropped.
pub struct System {
    /// In the order in which they end.
    children: Vec<Child>,
    listen: SocketAddr,
    data: tempdir::Dir,
}

mod tempdir {
    //! A directory that is removed at the end.
    use std::path::PathBuf;

    /// The directory.
    pub struct Dir(pub PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Whether the interface at an address answers with more than that it is starting.
fn serves(listen: SocketAddr) -> std::io::Result<bool> {
    let mut stream = std::net::TcpStream::connect(listen)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")?;
    let mut start = [0; 12];
    stream.read_exact(&mut start)?;
    Ok(start == *b"HTTP/1.1 200")
}

impl System {
    /// Starts it all in one and waits until its interface listens.
    pub fn start(binary: &Path) -> anyhow::Result<Self> {
        Self::start_as(binary, Layout::AllInOne)
    }

    /// Starts it and waits until its interface listens.
    pub fn start_as(binary: &Path, layout: Layout) -> anyhow::Result<Self> {
        if !binary.exists() {
            bail!("{} does not exist: run `make build` first", binary.display());
        }
        let data = tempdir::Dir(std::env::temp_dir().join(format!("relay-bench-{}", std::process::id())));
        std::fs::create_dir_all(&data.0)?;
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let interface = listen.to_string();
        let mut system = Self { children: Vec::new(), listen, data };
        let servers = ["--postgres-port", "0", "--redis-port", "0", "--nats-port", "0"];
        let root = system.data.0.join("data").display().to_string();
        match layout {
            Layout::AllInOne => {
                let arguments = [&["up", "--data-dir", &root, "--listen", &interface][..], &servers[..]].concat();
                system.children.push(system.spawn(binary, "up", &arguments, &[])?);
            }
            Layout::Separate(deliverers) => {
                let arguments = [&["servers", "--data-dir", &root][..], &servers[..]].concat();
                system.children.push(system.spawn(binary, "servers", &arguments, &[])?);
                system.await_that("the private servers", |s| s.addresses().is_ok())?;
                let env = system.addresses()?;
                let mut start = |name: &str, more: &[&str]| -> anyhow::Result<()> {
                    let health = format!("127.0.0.1:{}", free_port()?);
                    let arguments = [&[name, "--health-listen", &health][..], more].concat();
                    let child = system.spawn(binary, name, &arguments, &env)?;
                    system.children.insert(0, child);
                    Ok(())
                };
                start("dispatcher", &[])?;
                for _ in 0..deliverers.max(1) {
                    start("deliverer", &["--allow-network", "127.0.0.0/8"])?;
                }
                start("ingest", &["--listen", &interface, "--allow-network", "127.0.0.0/8"])?;
            }
        }
        system.await_that("the interface", |s| serves(s.listen).unwrap_or(false))?;
        Ok(system)
    }

    fn spawn(&self, binary: &Path, name: &str, arguments: &[&str], env: &[(String, String)]) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(self.data.0.join(format!("{name}.log")))?;
        Command::new(binary)
            .args(arguments)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))
    }

    fn await_that(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        while !is_so(self) {
            for child in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    bail!("a part of the system ended with {status}:\n{}", self.logs());
                }
            }
            if Instant::now() > deadline {
                bail!("{what} is not there after a minute:\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let files = std::fs::read_dir(&self.data.0).into_iter().flatten().filter_map(|f| Some(f.ok()?.path()));
        let logs = files.filter(|f| f.extension().is_some_and(|e| e == "log"));
        logs.filter_map(|f| std::fs::read_to_string(f).ok()).collect()
    }

    /// Its processes that have no parent among them.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Its interface.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// The same as an address.
    pub fn interface(&self) -> SocketAddr {
        self.listen
    }

    /// The addresses of its servers, as its services take them from their environment.
    fn addresses(&self) -> anyhow::Result<Vec<(String, String)>> {
        let links = std::fs::read_to_string(self.data.0.join("data").join("servers.env"))?;
        // Written for a shell: what needs it stands in quotes.
        let pairs = links.lines().filter_map(|l| l.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect())
    }

    fn address(&self, name: &str) -> anyhow::Result<String> {
        let found = self.addresses()?.into_iter().find(|(n, _)| n == name);
        Ok(found.with_context(|| format!("servers.env has no {name}"))?.1)
    }

    /// Its ledger.
    pub fn database_url(&self) -> anyhow::Result<String> {
        self.address("DATABASE_URL")
    }

    /// Its nats-server, for a producer: without the services' user.
    pub fn producer_nats_url(&self) -> anyhow::Result<String> {
        let url = self.address("NATS_URL")?;
        let host = url.rsplit_once('@').map_or(url.as_str(), |(_, host)| host);
        Ok(format!("nats://{}", host.trim_start_matches("nats://")))
    }

    /// Registers `n` endpoints, the i-th at `url(i)`, with `settings` beside name and address.
    pub async fn register(
        &self,
        n: usize,
        url: impl Fn(usize) -> String,
        settings: &serde_json::Value,
    ) -> anyhow::Result<Vec<String>> {
        self.register_in(None, n, url, settings).await
    }

    /// The same in a tenant; `None`: the default one.
    pub async fn register_in(
        &self,
        tenant: Option<&str>,
        n: usize,
        url: impl Fn(usize) -> String,
        settings: &serde_json::Value,
    ) -> anyhow::Result<Vec<String>> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut ids = Vec::new();
        for i in 0..n {
            let mut body = settings.clone();
            body["name"] = format!("bench {i}").into();
            body["url"] = url(i).into();
            let created = self.create(&client, "endpoints", tenant, &body).await?;
            ids.push(created["id"].as_str().context("the answer has no id")?.to_owned());
        }
        Ok(ids)
    }

    /// Makes a tenant.
    pub async fn create_tenant(&self, name: &str) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        self.create(&client, "tenants", None, &serde_json::json!({"id": name})).await.map(|_| ())
    }

    async fn create(
        &self,
        client: &reqwest::Client,
        what: &str,
        tenant: Option<&str>,
        body: &serde_json::Value,
    ) -> anyhow::Result<serde_json::Value> {
        let mut request = client.post(format!("{}/api/v1/{what}", self.url()));
        if let Some(tenant) = tenant {
            request = request.header(TENANT_HEADER, tenant);
        }
        let answer = request.header("content-type", "application/json").body(body.to_string()).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if status.as_u16() != 201 {
            bail!("making one of {what}: {status} {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // SIGTERM first, so that services finish and the servers below them end cleanly; one after the other, the
        // servers last.
        for child in &mut self.children {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let deadline = Instant::now() + STOP_MAX;
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
