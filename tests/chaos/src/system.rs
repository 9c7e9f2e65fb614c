//! The system under test: three private servers, a proxy before each, and every role as processes of its own behind the
//! proxies. Whoever ends by itself is started again, as any supervisor would do, and that is counted.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use it::process::{Process, ServiceFlags, binary, metric};
use it::{Api, Proxy};
use relay_servers::{Memory, NATS_ACCOUNTS, ServerKind, Servers, ServersConfig};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::faults::Role;

/// A user of the private nats-server who may do everything in the services' account: it deletes and looks.
const ADMIN: &str = "chaos";
/// Results of a deliverer that says nothing of them.
pub const BATCH: u64 = 64;

/// A process of ours: how it is started, and the running one.
pub struct Pod {
    /// What it is.
    pub role: Role,
    /// Its name, and that of its log.
    pub name: String,
    args: Vec<String>,
    health: String,
    process: Option<Process>,
}

/// The running system.
pub struct System {
    /// The directory of everything: data, logs, ledger, receipts.
    pub dir: PathBuf,
    /// All processes of ours.
    pub pods: Vec<Arc<Mutex<Pod>>>,
    /// Interfaces of the ingests.
    pub ingests: Vec<Api>,
    /// Processes that ended without being told to.
    pub ended_by_themselves: AtomicU64,
    servers: Arc<StdMutex<Servers>>,
    proxies: Vec<(ServerKind, Proxy)>,
    env: Vec<(String, String)>,
    /// Encrypts the secrets in the database; only who takes or uses secrets gets it.
    secrets_key: String,
    database_url: String,
    redis_url: String,
    nats_url: String,
    admin: async_nats::Client,
}

impl System {
    /// Starts everything below `dir` and waits until it is ready.
    pub async fn start(dir: &Path, broken: Option<&str>) -> anyhow::Result<Self> {
        let data = dir.join("data");
        let servers = tokio::task::spawn_blocking(move || start_servers(&data)).await??;
        let mut proxies = Vec::new();
        for kind in ServerKind::ALL {
            let port = servers.port(kind).context("every server has a port")?;
            proxies.push((kind, Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?));
        }
        let database_url = servers.database_url().context("PostgreSQL was started")?;
        let redis_url = servers.redis_url().context("Redis was started")?;
        let nats_url = servers.nats_url().context("nats-server was started")?;
        migrate(&database_url)?;
        let nats_port = servers.port(ServerKind::Nats).context("nats-server was started")?;
        let admin = async_nats::ConnectOptions::with_user_and_password(ADMIN.to_owned(), ADMIN.to_owned())
            .connect(format!("nats://127.0.0.1:{nats_port}"))
            .await?;
        let mut system = Self {
            dir: dir.to_owned(),
            pods: Vec::new(),
            ingests: Vec::new(),
            ended_by_themselves: AtomicU64::new(0),
            env: Vec::new(),
            secrets_key: secrets_key()?,
            servers: Arc::new(StdMutex::new(servers)),
            proxies,
            database_url,
            redis_url,
            nats_url,
            admin,
        };
        let through = |kind, url: &str| -> anyhow::Result<String> {
            let mut url = split_port(url)?;
            url.1 = system.proxy(kind).address().port();
            Ok(format!("{}:{}{}", url.0, url.1, url.2))
        };
        let env = vec![
            ("DATABASE_URL".to_owned(), through(ServerKind::Postgres, &system.database_url)?),
            ("REDIS_URL".to_owned(), through(ServerKind::Redis, &system.redis_url)?),
            ("NATS_URL".to_owned(), through(ServerKind::Nats, &system.nats_url)?),
        ];
        system.env = env;
        system.env.extend(broken.map(|safety| ("RELAY_BREAK".to_owned(), safety.to_owned())));
        let roles = [(Role::Dispatcher, 2), (Role::Deliverer, 3), (Role::Ingest, 2), (Role::DlqManager, 1)];
        for (role, count) in roles {
            for i in 1..=count {
                system.add(role, i)?;
            }
        }
        for pod in &system.pods {
            pod.lock().await.wait_ready().await?;
        }
        Ok(system)
    }

    fn add(&mut self, role: Role, number: usize) -> anyhow::Result<()> {
        let name = format!("{}-{number}", role.binary());
        let ServiceFlags { args, health, interface } = ServiceFlags::new(role.binary(), &self.dir, None);
        if role == Role::Ingest {
            self.ingests.extend(interface.map(|address| Api::new(&format!("http://{address}"))));
        }
        let mut pod = Pod { role, name, args, health, process: None };
        self.launch(&mut pod)?;
        self.pods.push(Arc::new(Mutex::new(pod)));
        Ok(())
    }

    /// Starts a process that doesn't run, where the one before it listened.
    pub fn launch(&self, pod: &mut Pod) -> anyhow::Result<()> {
        let mut env = self.env.clone();
        if matches!(pod.role, Role::Ingest | Role::Deliverer) {
            env.push(("RELAY_SECRETS_KEY".to_owned(), self.secrets_key.clone()));
        }
        let process = Process::start(&self.dir, &pod.name, &binary(pod.role.binary())?, &pod.args, &env)?;
        pod.process = Some(process);
        Ok(())
    }

    /// Starts again whoever ended by itself. Runs until dropped.
    pub async fn supervise(&self) {
        loop {
            for pod in &self.pods {
                // Somebody who holds it is just ending or starting it.
                let Ok(mut pod) = pod.try_lock() else { continue };
                if let Some(status) = pod.process.as_mut().and_then(Process::ended) {
                    self.ended_by_themselves.fetch_add(1, Ordering::Relaxed);
                    println!("      {} ended by itself ({status}); starting it again", pod.name);
                    if let Err(error) = self.launch(&mut pod) {
                        println!("      {}: {error:#}", pod.name);
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The processes of a role.
    pub async fn of_role(&self, role: Role) -> Vec<Arc<Mutex<Pod>>> {
        let mut found = Vec::new();
        for pod in &self.pods {
            if pod.lock().await.role == role {
                found.push(Arc::clone(pod));
            }
        }
        found
    }

    /// The proxy before a server.
    pub fn proxy(&self, kind: ServerKind) -> &Proxy {
        let found = self.proxies.iter().find(|(k, _)| *k == kind);
        &found.expect("each server has a proxy").1
    }

    /// NATS as a producer sees it, through the proxy.
    pub fn producer_nats(&self) -> String {
        format!("nats://127.0.0.1:{}", self.proxy(ServerKind::Nats).address().port())
    }

    /// Does something that blocks with the servers.
    pub async fn servers<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Servers) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let servers = Arc::clone(&self.servers);
        tokio::task::spawn_blocking(move || work(&mut servers.lock().expect("nothing panics while it holds this lock")))
            .await?
    }

    /// The one value that a query gives, as the services' user, not through the proxy.
    pub async fn sql(&self, query: &str) -> anyhow::Result<String> {
        let output = tokio::process::Command::new("psql")
            .args(["-XqAt", "-c", query, &self.database_url])
            .kill_on_drop(true)
            .output()
            .await
            .context("running psql")?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// How many of these secrets are plain to see where endpoints are stored. All of them, if nothing there is encrypted.
    pub async fn readable_secrets(&self, secrets: &[String]) -> anyhow::Result<usize> {
        if self.sql("select bool_and(e::text like '%sealed:%') from endpoints e").await? != "t" {
            return Ok(secrets.len());
        }
        let mut readable = 0;
        for secret in secrets {
            let plain = format!(
                "select exists (select from endpoints e where strpos(e::text, '{secret}') > 0
                    or strpos(e::text, encode(convert_to('{secret}', 'UTF8'), 'hex')) > 0)"
            );
            readable += usize::from(self.sql(&plain).await? == "t");
        }
        Ok(readable)
    }

    /// What `webhook-relay fsck` says, not through the proxies; `None`: all is sound.
    pub async fn fsck(&self) -> anyhow::Result<Option<String>> {
        let output = tokio::process::Command::new(binary("webhook-relay")?)
            .arg("fsck")
            .env("DATABASE_URL", &self.database_url)
            .env("NATS_URL", &self.nats_url)
            .kill_on_drop(true)
            .output()
            .await
            .context("running webhook-relay fsck")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&said).into_owned()))
    }

    /// FLUSHALL.
    pub async fn flush_redis(&self) -> anyhow::Result<()> {
        let (_, port, _) = split_port(&self.redis_url)?;
        let password = self.redis_url.split([':', '@']).nth(2).context("Redis has a password")?;
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let words = format!("AUTH {password}\r\nFLUSHALL\r\nQUIT\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, words.as_bytes()).await?;
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await?;
        ensure!(!answer.contains('-'), "Redis: {answer}");
        Ok(())
    }

    /// Asks JetStream's own interface.
    pub async fn jetstream(&self, subject: &str, body: &Value) -> anyhow::Result<Value> {
        let ask = self.admin.request(format!("$JS.API.{subject}"), body.to_string().into());
        let answer = tokio::time::timeout(Duration::from_secs(5), ask).await.context("JetStream doesn't answer")??;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        ensure!(answer["error"].is_null(), "JetStream: {subject}: {}", answer["error"]);
        Ok(answer)
    }
}

impl Pod {
    /// `kill -9`.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// SIGTERM, and the end waited for.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if !process.terminate().await? {
            bail!("{} does not end with success on SIGTERM", self.name);
        }
        Ok(())
    }

    /// Results that a deliverer has not recorded yet, by its own word; of one that says nothing, a batch.
    pub async fn unrecorded(&self) -> u64 {
        let said = metric(&format!("http://{}/metrics", self.health), "relay_deliverer_unrecorded").await;
        said.unwrap_or(BATCH)
    }

    /// The local ports of its connections.
    pub fn ports(&self) -> anyhow::Result<HashSet<u16>> {
        let Some(process) = &self.process else { return Ok(HashSet::new()) };
        let mut sockets = HashSet::new();
        for file in std::fs::read_dir(format!("/proc/{}/fd", process.pid()))? {
            // A file may be closed meanwhile.
            if let Ok(target) = std::fs::read_link(file?.path()) {
                sockets.extend(socket(&target.to_string_lossy()));
            }
        }
        let table = std::fs::read_to_string("/proc/net/tcp")?;
        Ok(table.lines().skip(1).filter_map(connection).filter(|(_, s)| sockets.contains(s)).map(|(p, _)| p).collect())
    }

    /// Any signal.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(name))
    }

    /// Waits until it says that it is ready.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{}/health/ready", self.health);
        self.process.as_mut().context("it was not started")?.wait_ready(&url).await
    }
}

/// A new key, as an operator makes it.
fn secrets_key() -> anyhow::Result<String> {
    let key = it::tools::run(std::process::Command::new(binary("webhook-relay")?).args(["secrets", "generate"]))?;
    Ok(key.trim().to_owned())
}

fn start_servers(data: &Path) -> anyhow::Result<Servers> {
    let mut config = ServersConfig::new(data);
    config.memory = Memory::Small;
    let beside = std::env::current_exe()?;
    config.tools_dirs.extend(beside.ancestors().map(|dir| dir.join(".tools")).filter(|dir| dir.is_dir()));
    let user = format!("users = [\n      {{ user: {ADMIN}, password: \"{ADMIN}\" }}");
    let (before, after) = NATS_ACCOUNTS.split_once("users = [").context("the services' account comes first")?;
    config.nats_accounts = format!("{before}{user}{after}").into();
    Ok(Servers::start(&config)?)
}

fn migrate(database_url: &str) -> anyhow::Result<()> {
    let output = Command::new(binary("webhook-relay")?).args(["migrate", "--database-url", database_url]).output()?;
    ensure!(output.status.success(), "migrating: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The number in `socket:[4711]`.
fn socket(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Local port and socket number of a line of `/proc/net/tcp` (proc_pid_net(5)).
fn connection(line: &str) -> Option<(u16, u64)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, port) = words.get(1)?.split_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, words.get(9)?.parse().ok()?))
}

/// A URL of ours around its port.
fn split_port(url: &str) -> anyhow::Result<(String, u16, String)> {
    let (before, rest) = url.rsplit_once(':').context("a URL with a port")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Ok((before.to_owned(), rest[..digits].parse()?, rest[digits..].to_owned()))
}
