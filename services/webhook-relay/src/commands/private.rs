//! Flags and files of the private servers, for the commands that start them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use relay_core::sealing::SealingKeys;
use relay_links::Addresses;
use relay_runtime::flags::SecretsFlags;
use relay_runtime::random;
use relay_servers::{ServerKind, Servers, ServersConfig, Signal};
use secrecy::ExposeSecret;

/// The file with the addresses of the servers, in the data directory.
pub const ADDRESSES: &str = "servers.env";
/// The variable that names the file with the keys for secrets, in that file.
pub const SECRETS_KEY_FILE: &str = "RELAY_SECRETS_KEY_FILE";
/// The file with the keys for the private database's secrets, in the data directory.
const KEYS: &str = "secrets.keys";
/// How often the servers are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// nats-server is started again when it has been ill for this long: since 2.14 a stream freezes on a disk error until then.
const ILL_MAX: Duration = Duration::from_secs(10);
/// Longest wait between two starts of a server that can't be started, such as a PostgreSQL without room for its log.
const START_WAIT_MAX: Duration = Duration::from_secs(8);

/// Where private servers live.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct PrivateFlags {
    /// Directory of the private servers' data, logs and passwords
    #[arg(long, env = "RELAY_DATA_DIR", default_value = ".relay")]
    pub data_dir: PathBuf,
    /// Port of the private PostgreSQL on loopback; 0 = any free port
    #[arg(long, default_value_t = 54320)]
    pub postgres_port: u16,
    /// Port of the private Redis on loopback; 0 = any free port
    #[arg(long, default_value_t = 63790)]
    pub redis_port: u16,
    /// Port of the private nats-server on loopback; 0 = any free port
    #[arg(long, default_value_t = 42220)]
    pub nats_port: u16,
}

impl PrivateFlags {
    /// Starts these servers and waits until they answer. Blocks.
    pub fn start(&self, kinds: &[ServerKind]) -> anyhow::Result<Servers> {
        let mut config = ServersConfig::new(&self.data_dir).only(kinds);
        config.postgres_port = config.postgres_port.map(|_| self.postgres_port);
        config.redis_port = config.redis_port.map(|_| self.redis_port);
        config.nats_port = config.nats_port.map(|_| self.nats_port);
        config.tools_dirs.push(PathBuf::from(".tools"));
        let beside =
            std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.parent()?.join(".tools")));
        config.tools_dirs.extend(beside);
        let servers = Servers::start(&config)?;
        for notice in servers.notices() {
            println!("note: {notice}");
        }
        write_private(&self.data_dir.join("up.pid"), &format!("{}\n", std::process::id()))?;
        Ok(servers)
    }

    /// Whether servers were ever started here.
    pub fn was_used(&self) -> bool {
        self.data_dir.join(ADDRESSES).exists()
    }

    /// Which keys encrypt the private database's secrets: those of the flags, else those of a file in the data directory,
    /// which is made where it isn't there. And the file, where it is known.
    pub fn keys(&self, flags: &SecretsFlags) -> anyhow::Result<(SealingKeys, Option<PathBuf>)> {
        let given = flags.keys()?;
        if !given.is_empty() {
            return Ok((given, flags.secrets_key_file.as_ref().map(std::path::absolute).transpose()?));
        }
        let path = std::path::absolute(self.data_dir.join(KEYS))?;
        if !path.exists() {
            let key = SealingKeys::generate(random::bytes32());
            let text = format!(
                "# Encrypts the secrets in the database. Keep a copy apart from it.\n{}\n",
                key.expose_secret()
            );
            write_private(&path, &text)?;
        }
        let keys = SecretsFlags { secrets_key_file: Some(path.clone()) }.keys()?;
        Ok((keys, Some(path)))
    }

    /// Writes the addresses, and the file with the keys for secrets, where other processes of the same user find them.
    pub fn write_addresses(&self, addresses: &Addresses, keys: Option<&Path>) -> anyhow::Result<PathBuf> {
        let path = self.data_dir.join(ADDRESSES);
        // In quotes, since a shell may read this file.
        let keys = keys.map(|file| format!("{SECRETS_KEY_FILE}='{}'\n", file.display())).unwrap_or_default();
        let text = format!(
            "DATABASE_URL={}\nREDIS_URL={}\nNATS_URL={}\n{keys}",
            addresses.database_url.expose_secret(),
            addresses.redis_url.expose_secret(),
            addresses.nats_url.expose_secret()
        );
        write_private(&path, &text)?;
        Ok(path)
    }
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .with_context(|| format!("writing {}", new.display()))?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, path).with_context(|| format!("writing {}", path.display()))
}

/// The starts of a server that ended by itself.
#[derive(Default)]
struct Starts {
    wait: Duration,
    next: Option<Instant>,
}

/// Starts a server that ended by itself; less and less often while it can't be started.
fn start_again(servers: &mut Servers, kind: ServerKind, starts: &mut Starts) {
    if servers.is_running(kind) {
        *starts = Starts::default();
        return;
    }
    if starts.next.is_some_and(|next| Instant::now() < next) {
        return;
    }
    if let Some(status) = servers.exit_status(kind) {
        tracing::error!(server = ?kind, %status, log = %servers.log_file(kind).display(), "a private server ended; starting it again");
    }
    if let Err(error) = servers.start_server(kind) {
        starts.wait = (starts.wait * 2).clamp(LOOK, START_WAIT_MAX);
        starts.next = Some(Instant::now() + starts.wait);
        tracing::error!(server = ?kind, %error, again_in = ?starts.wait, "it can't be started");
    }
}

/// Looks after the servers on the main thread until `done` says that the services have ended.
pub fn supervise(servers: &mut Servers, kinds: &[ServerKind], done: &mpsc::Receiver<()>) {
    let mut ill_since: Option<Instant> = None;
    let mut room_is_missed = false;
    let mut starts = BTreeMap::new();
    while let Err(mpsc::RecvTimeoutError::Timeout) = done.recv_timeout(LOOK) {
        for kind in kinds {
            start_again(servers, *kind, starts.entry(*kind).or_default());
        }
        if !kinds.contains(&ServerKind::Nats) || servers.check(ServerKind::Nats).is_ok() {
            ill_since = None;
            continue;
        }
        let since = *ill_since.get_or_insert_with(Instant::now);
        if since.elapsed() < ILL_MAX {
            continue;
        }
        // As long as there is no room it couldn't even start, and what it has can be read.
        if let Err(error) = servers.check_room(ServerKind::Nats) {
            if !std::mem::replace(&mut room_is_missed, true) {
                tracing::error!(%error, "nats-server is ill and its disk has no room; it is started again when there is some");
            }
        } else {
            tracing::error!("nats-server reports that it is ill; starting it again");
            (ill_since, room_is_missed) = (None, false);
            if let Err(error) = servers
                .stop_server(ServerKind::Nats, Signal::Terminate)
                .and_then(|()| servers.start_server(ServerKind::Nats))
            {
                tracing::error!(%error, "nats-server can't be started again; trying again");
            }
        }
    }
}
