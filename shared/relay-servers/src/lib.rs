//! Private PostgreSQL, Redis and nats-server as child processes, for `webhook-relay up`, the tests and the benchmark.
//!
//! [`Servers::start`] makes what is missing below a data directory (a database cluster, configurations, passwords), starts
//! the servers that were asked for on loopback, and waits until each answers. Data and passwords stay: the next start finds
//! them. Everything here blocks; call it before the async runtime, or from a test's own thread.
//!
//! Invariants: one process a data directory (a file lock); no server outlives us (parent-death signal, and the next start
//! ends what a killed run left); nothing listens beyond 127.0.0.1; fsync is on everywhere.
//!
//! Reading order: this file, then `process` (children), `postgres`, `redis`, `nats` (what each needs), `leftovers`.

mod credentials;
mod error;
mod leftovers;
mod nats;
mod ports;
mod postgres;
mod probe;
mod process;
mod redis;
mod room;
mod tools;

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use credentials::Credentials;
use process::{Process, Recipe, Spawner};

pub use error::ServersError;
pub use nats::tenants::{TenantUser, add_tenant, tenant_lines};
pub use nats::{ACCOUNTS as NATS_ACCOUNTS, USERS as NATS_USERS, password_variable};
pub use postgres::{DATABASE, ROLE};
pub use process::Signal;

/// How long a server may take until it answers; PostgreSQL replays its log after a crash.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long an orderly end may take.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How long a killed PostgreSQL's backends may hold on to their shared memory.
const ENDING_LIMIT: Duration = Duration::from_secs(20);
/// How often a start is repeated when somebody took the free port that was chosen.
const PORT_TRIES: u32 = 5;

/// The servers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum ServerKind {
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
    /// nats-server with JetStream.
    Nats,
}

impl ServerKind {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::Nats];
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Nats => "nats-server",
        })
    }
}

/// How much memory PostgreSQL and NATS take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// In proportion to the machine.
    Machine,
    /// Little: several run beside each other in tests.
    Small,
}

/// Which servers, where.
#[derive(Clone, Debug)]
pub struct ServersConfig {
    /// Everything is kept below it; it is made when it is not there.
    pub data_dir: PathBuf,
    /// PostgreSQL's port; 0 = any free one, `None` = no PostgreSQL.
    pub postgres_port: Option<u16>,
    /// Redis's port; 0 = any free one, `None` = no Redis.
    pub redis_port: Option<u16>,
    /// The port of nats-server; 0 = any free one, `None` = no nats-server. Its monitoring port is always any free one.
    pub nats_port: Option<u16>,
    /// Searched for programs before PATH, such as `.tools`.
    pub tools_dirs: Vec<PathBuf>,
    /// Memory of PostgreSQL and NATS.
    pub memory: Memory,
    /// Who may do what on the nats-server: [`NATS_ACCOUNTS`], or that with a user of a test's own.
    pub nats_accounts: Cow<'static, str>,
}

impl ServersConfig {
    /// All three servers, on any free ports.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            postgres_port: Some(0),
            redis_port: Some(0),
            nats_port: Some(0),
            tools_dirs: Vec::new(),
            memory: Memory::Machine,
            nats_accounts: Cow::Borrowed(NATS_ACCOUNTS),
        }
    }

    /// Only these servers.
    #[must_use]
    pub fn only(mut self, kinds: &[ServerKind]) -> Self {
        let keep = |kind, port: Option<u16>| port.filter(|_| kinds.contains(&kind));
        self.postgres_port = keep(ServerKind::Postgres, self.postgres_port);
        self.redis_port = keep(ServerKind::Redis, self.redis_port);
        self.nats_port = keep(ServerKind::Nats, self.nats_port);
        self
    }
}

/// A server with its ports.
struct Slot {
    kind: ServerKind,
    port: u16,
    /// Chosen by us, so it may be chosen anew.
    any_port: bool,
    monitor_port: u16,
    process: Option<Process>,
}

/// Running servers. Dropping it ends them in an orderly way.
pub struct Servers {
    data_dir: PathBuf,
    tools_dirs: Vec<PathBuf>,
    memory: Memory,
    nats_accounts: Cow<'static, str>,
    credentials: Credentials,
    cluster: Option<postgres::Cluster>,
    slots: Vec<Slot>,
    spawner: Spawner,
    notices: Vec<String>,
    _lock: File,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Servers {
    /// Makes what is missing, ends left-overs of a killed run, starts the servers and waits until they answer.
    pub fn start(config: &ServersConfig) -> Result<Self, ServersError> {
        let data_dir = make_data_dir(&config.data_dir)?;
        let lock = lock(&data_dir)?;
        let (credentials, new_credentials) = Credentials::load_or_create(&data_dir)?;
        let mut servers = Self {
            tools_dirs: config.tools_dirs.clone(),
            memory: config.memory,
            nats_accounts: config.nats_accounts.clone(),
            credentials,
            cluster: None,
            slots: Vec::new(),
            spawner: Spawner::start()?,
            notices: Vec::new(),
            _lock: lock,
            data_dir,
        };
        if config.postgres_port.is_some() {
            let cluster = postgres::Cluster::locate(&servers.data_dir, &servers.tools_dirs)?;
            servers.notices.extend(cluster.notice.clone());
            servers.cluster = Some(cluster);
        }
        servers.end_leftovers()?;
        if let Some(cluster) = &servers.cluster {
            cluster.ensure(&servers.credentials.postgres, new_credentials)?;
        }
        let ports = [
            (ServerKind::Postgres, config.postgres_port),
            (ServerKind::Redis, config.redis_port),
            (ServerKind::Nats, config.nats_port),
        ];
        for (kind, port) in ports {
            let Some(port) = port else { continue };
            servers.slots.push(Slot { kind, port, any_port: port == 0, monitor_port: 0, process: None });
            servers.start_first(kind)?;
        }
        Ok(servers)
    }

    /// Starts with new ports as long as somebody else takes the chosen one.
    fn start_first(&mut self, kind: ServerKind) -> Result<(), ServersError> {
        let mut tries = 1;
        loop {
            let slot = self.slot_mut(kind)?;
            if slot.any_port {
                slot.port = ports::free(kind)?;
            }
            // nats-server has a second port that is always ours to choose.
            let another_port = slot.any_port || kind == ServerKind::Nats;
            slot.monitor_port = ports::free(kind)?;
            match self.start_server(kind) {
                Err(error) if another_port && tries < PORT_TRIES && is_port_taken(&error) => tries += 1,
                result => return result,
            }
        }
    }

    /// Starts a server that was stopped, on the port that it had; does nothing when it runs.
    pub fn start_server(&mut self, kind: ServerKind) -> Result<(), ServersError> {
        if self.is_running(kind) {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            match self.start_once(kind) {
                Err(error) if postgres::is_still_ending(&error) && started.elapsed() < ENDING_LIMIT => {
                    thread::sleep(Duration::from_millis(100));
                }
                result => return result,
            }
        }
    }

    fn start_once(&mut self, kind: ServerKind) -> Result<(), ServersError> {
        let recipe = self.recipe(kind)?;
        let mut process = Process::spawn(&recipe, &self.spawner)?;
        let slot = self.slot(kind)?;
        let (port, monitor_port) = (slot.port, slot.monitor_port);
        let password = self.credentials.redis.clone();
        let ready = process.wait_ready(READY_LIMIT, || match kind {
            ServerKind::Postgres => probe::postgres(port, ROLE, DATABASE),
            ServerKind::Redis => probe::redis(port, &password),
            ServerKind::Nats => probe::nats(monitor_port),
        });
        if let Err(error) = ready {
            process.end(recipe.end, END_LIMIT);
            return Err(error);
        }
        tracing::debug!(server = %kind, port, pid = process.pid(), "started");
        self.slot_mut(kind)?.process = Some(process);
        Ok(())
    }

    fn recipe(&self, kind: ServerKind) -> Result<Recipe, ServersError> {
        let slot = self.slot(kind)?;
        match kind {
            ServerKind::Postgres => {
                let cluster = self.cluster.as_ref().ok_or(ServersError::NotManaged(kind))?;
                Ok(cluster.recipe(&self.data_dir, slot.port, self.memory))
            }
            ServerKind::Redis => redis::prepare(&self.data_dir, &self.tools_dirs, slot.port, &self.credentials.redis),
            ServerKind::Nats => {
                let passwords = &self.credentials.nats;
                let files =
                    nats::Files { data_dir: &self.data_dir, accounts: &self.nats_accounts, memory: self.memory };
                nats::prepare(&files, &self.tools_dirs, slot.port, slot.monitor_port, passwords)
            }
        }
    }

    /// Ends a server with `signal` (killed when it takes too long) and waits for its end. Clients lose their connections;
    /// [`Servers::start_server`] brings it back on the same port.
    pub fn stop_server(&mut self, kind: ServerKind, signal: Signal) -> Result<(), ServersError> {
        if let Some(mut process) = self.slot_mut(kind)?.process.take() {
            let status = process.end(signal, END_LIMIT);
            tracing::debug!(server = %kind, %signal, %status, "ended");
        }
        Ok(())
    }

    /// Sends a signal and waits for nothing (freeze and go on, in tests).
    pub fn signal(&self, kind: ServerKind, signal: Signal) -> Result<(), ServersError> {
        if let Some(process) = &self.slot(kind)?.process {
            process.signal(signal);
        }
        Ok(())
    }

    /// Does it run?
    pub fn is_running(&mut self, kind: ServerKind) -> bool {
        self.exit_status(kind).is_none() && self.slots.iter().any(|slot| slot.kind == kind && slot.process.is_some())
    }

    /// How a server ended that was not stopped by us; `None` while it runs.
    pub fn exit_status(&mut self, kind: ServerKind) -> Option<ExitStatus> {
        self.slots.iter_mut().find(|slot| slot.kind == kind)?.process.as_mut()?.ended()
    }

    /// Is it ready? Asks the running server now; the text says why not.
    pub fn check(&self, kind: ServerKind) -> Result<(), String> {
        let slot = self.slot(kind).map_err(|error| error.to_string())?;
        match kind {
            ServerKind::Postgres => probe::postgres(slot.port, ROLE, DATABASE),
            ServerKind::Redis => probe::redis(slot.port, &self.credentials.redis),
            ServerKind::Nats => probe::nats(slot.monitor_port),
        }
    }

    /// Whether a server's disk has room for more.
    ///
    /// # Errors
    /// It has less than 16 MiB, or can't be looked at.
    pub fn check_room(&self, kind: ServerKind) -> Result<(), ServersError> {
        let dir = match (kind, &self.cluster) {
            (ServerKind::Postgres, Some(cluster)) => cluster.pgdata.clone(),
            (ServerKind::Postgres, None) => return Err(ServersError::NotManaged(kind)),
            (ServerKind::Redis, _) => redis::dir(&self.data_dir),
            (ServerKind::Nats, _) => nats::dir(&self.data_dir),
        };
        room::check(&dir)
    }

    /// Ends all servers in an orderly way: those who depend on nobody last.
    pub fn stop(mut self) {
        self.stop_all();
    }

    fn stop_all(&mut self) {
        for slot in self.slots.iter_mut().rev() {
            if let Some(mut process) = slot.process.take() {
                process.end(end_signal(slot.kind), END_LIMIT);
            }
        }
    }

    /// URL of the services' database, with password.
    pub fn database_url(&self) -> Option<String> {
        self.database_url_of(DATABASE)
    }

    /// URL of another database on the same server.
    pub fn database_url_of(&self, database: &str) -> Option<String> {
        let slot = self.slot(ServerKind::Postgres).ok()?;
        Some(format!("postgres://{ROLE}:{}@127.0.0.1:{}/{database}", self.credentials.postgres, slot.port))
    }

    /// URL of Redis, with password.
    pub fn redis_url(&self) -> Option<String> {
        let slot = self.slot(ServerKind::Redis).ok()?;
        Some(format!("redis://:{}@127.0.0.1:{}/", self.credentials.redis, slot.port))
    }

    /// URL of nats-server for all services in one process: user `relay`.
    pub fn nats_url(&self) -> Option<String> {
        self.nats_url_of("relay")
    }

    /// URL of nats-server for one of [`NATS_USERS`].
    pub fn nats_url_of(&self, user: &str) -> Option<String> {
        let slot = self.slot(ServerKind::Nats).ok()?;
        let password = self.credentials.nats.get(user)?;
        Some(format!("nats://{user}:{password}@127.0.0.1:{}", slot.port))
    }

    /// URL of nats-server without credentials: a producer of tenant `default`.
    pub fn nats_producer_url(&self) -> Option<String> {
        Some(format!("nats://127.0.0.1:{}", self.slot(ServerKind::Nats).ok()?.port))
    }

    /// Base URL of the monitoring pages of nats-server (`/healthz`, `/varz`, `/jsz`).
    pub fn nats_monitor_url(&self) -> Option<String> {
        Some(format!("http://127.0.0.1:{}", self.slot(ServerKind::Nats).ok()?.monitor_port))
    }

    /// Its port.
    pub fn port(&self, kind: ServerKind) -> Option<u16> {
        Some(self.slot(kind).ok()?.port)
    }

    /// Its process id, while it runs.
    pub fn pid(&self, kind: ServerKind) -> Option<u32> {
        self.slot(kind).ok()?.process.as_ref().map(Process::pid)
    }

    /// Its log file.
    pub fn log_file(&self, kind: ServerKind) -> PathBuf {
        let name = match kind {
            ServerKind::Postgres => "postgres.log",
            ServerKind::Redis => "redis.log",
            ServerKind::Nats => "nats.log",
        };
        self.data_dir.join("logs").join(name)
    }

    /// The data directory, absolute.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What the person who starts us should know, such as another place of the data; a sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    fn end_leftovers(&mut self) -> Result<(), ServersError> {
        let run = self.data_dir.join("run");
        let mut found = Vec::new();
        if let Some(cluster) = &self.cluster {
            let pid_file = run.join("postgres.pid");
            if !pid_file.exists()
                && let Some(pid) = postgres::own_pid_file(&cluster.pgdata)
            {
                fs::write(&pid_file, pid.to_string()).map_err(ServersError::io("write", &pid_file))?;
            }
            found.push((ServerKind::Postgres, leftovers::end(&pid_file, &cluster.pgdata, Signal::Interrupt)?));
        }
        let redis = redis::dir(&self.data_dir);
        found.push((ServerKind::Redis, leftovers::end(&run.join("redis.pid"), &redis, Signal::Terminate)?));
        let nats = nats::dir(&self.data_dir);
        found.push((ServerKind::Nats, leftovers::end(&run.join("nats.pid"), &nats, Signal::Terminate)?));
        let ended = found.into_iter().filter(|(_, was_there)| *was_there);
        self.notices.extend(ended.map(|(kind, _)| format!("ended the {kind} of an earlier run")));
        Ok(())
    }

    fn slot(&self, kind: ServerKind) -> Result<&Slot, ServersError> {
        self.slots.iter().find(|slot| slot.kind == kind).ok_or(ServersError::NotManaged(kind))
    }

    fn slot_mut(&mut self, kind: ServerKind) -> Result<&mut Slot, ServersError> {
        self.slots.iter_mut().find(|slot| slot.kind == kind).ok_or(ServersError::NotManaged(kind))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop_all();
    }
}

fn end_signal(kind: ServerKind) -> Signal {
    match kind {
        ServerKind::Postgres => Signal::Interrupt,
        ServerKind::Redis | ServerKind::Nats => Signal::Terminate,
    }
}

fn is_port_taken(error: &ServersError) -> bool {
    matches!(error, ServersError::Ended { .. }) && error.to_string().to_lowercase().contains("address already in use")
}

/// Makes the directory with its folders. Others may pass through it (PostgreSQL's user must), but not look around.
fn make_data_dir(wanted: &Path) -> Result<PathBuf, ServersError> {
    for dir in [wanted.to_owned(), wanted.join("logs"), wanted.join("run")] {
        fs::create_dir_all(&dir).map_err(ServersError::io("make", &dir))?;
    }
    fs::set_permissions(wanted, fs::Permissions::from_mode(0o711)).map_err(ServersError::io("open", wanted))?;
    wanted.canonicalize().map_err(ServersError::io("find", wanted))
}

/// The lock ends with the process, however it ends.
fn lock(data_dir: &Path) -> Result<File, ServersError> {
    let path = data_dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(ServersError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _unknown = file.read_to_string(&mut holder);
            return Err(ServersError::InUse { dir: data_dir.to_owned(), holder: holder.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(ServersError::io("lock", &path)(error)),
    }
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(std::process::id().to_string().as_bytes()))
        .map_err(ServersError::io("write", &path))?;
    Ok(file)
}
