//! The private PostgreSQL: made by initdb once, with one role that can log in by password from loopback, and settings for
//! a ledger that is written all the time.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

use crate::error::ServersError;
use crate::process::{Recipe, Signal, last_lines, setpriv};
use crate::{Memory, ServerKind, tools};

/// The role that the services log in as: it owns its database and may make others; it is no superuser.
pub const ROLE: &str = "relay";
/// The services' database.
pub const DATABASE: &str = "webhook_relay";
/// The oldest version that the statements and settings are written for.
const MAJOR_MIN: u32 = 15;
/// Who runs the server when we are root.
const UNPRIVILEGED_USER: &str = "postgres";
/// Where the data goes when that user can't reach the data directory.
const FALLBACK_DIR: &str = "/var/lib/webhook-relay";
/// Only our role, only by password, only from loopback; the superuser exists in single-user mode alone.
const HBA: &str = "# Written by webhook-relay at every start.\nhost all relay 127.0.0.1/32 scram-sha-256\n";

/// A cluster that exists.
pub(crate) struct Cluster {
    bin: PathBuf,
    pub(crate) pgdata: PathBuf,
    user: Option<Account>,
    /// Said to the person who started us.
    pub(crate) notice: Option<String>,
}

/// An entry of /etc/passwd.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Cluster {
    /// Finds the programs and the place; makes nothing yet.
    pub(crate) fn locate(data_dir: &Path, tools_dirs: &[PathBuf]) -> Result<Self, ServersError> {
        let bin = tools::postgres_bin(tools_dirs)?;
        let found = major(&bin)?;
        if found < MAJOR_MIN {
            return Err(ServersError::OldPostgres { found, path: bin.join("postgres") });
        }
        let user = if is_root() {
            let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
            Some(account(&passwd, UNPRIVILEGED_USER).ok_or(ServersError::NoPostgresUser)?)
        } else {
            None
        };
        let wanted = data_dir.join("postgres");
        let Some(account) = &user else { return Ok(Self { bin, pgdata: wanted, user, notice: None }) };
        if reachable(data_dir, account)? {
            return Ok(Self { bin, pgdata: wanted, user, notice: None });
        }
        let home = Path::new(FALLBACK_DIR);
        let pgdata = home.join(&hex::encode(Sha256::digest(data_dir.to_string_lossy().as_bytes()))[..16]);
        fs::create_dir_all(home).map_err(ServersError::io("make", home))?;
        fs::set_permissions(home, fs::Permissions::from_mode(0o711)).map_err(ServersError::io("open", home))?;
        let notice = format!(
            "user `{}` can't reach {}; PostgreSQL's data is in {}",
            account.name,
            data_dir.display(),
            pgdata.display()
        );
        Ok(Self { bin, pgdata, user, notice: Some(notice) })
    }

    /// Makes the cluster if there is none, and sets the role's password if it is new.
    pub(crate) fn ensure(&self, password: &str, password_is_new: bool) -> Result<(), ServersError> {
        if self.pgdata.join("PG_VERSION").exists() {
            if password_is_new {
                self.single(&self.pgdata, "postgres", &format!("ALTER ROLE {ROLE} PASSWORD '{password}';\n"))?;
            }
        } else {
            self.init(password)?;
        }
        let hba = self.pgdata.join("pg_hba.conf");
        fs::write(&hba, HBA).map_err(ServersError::io("write", &hba))
    }

    /// Makes the cluster beside its place and moves it there when it is complete: a start that is killed leaves no half one.
    fn init(&self, password: &str) -> Result<(), ServersError> {
        let next = self.pgdata.with_extension("new");
        let _absent = fs::remove_dir_all(&next);
        fs::create_dir_all(&next).map_err(ServersError::io("make", &next))?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o700)).map_err(ServersError::io("protect", &next))?;
        self.give(&next)?;
        let mut command = self.command("initdb")?;
        command.arg("-D").arg(&next).args([
            "--username=postgres",
            "--auth=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--data-checksums",
        ]);
        check("initdb", command.stdin(Stdio::null()).output().map_err(ServersError::io("run", &self.bin))?)?;
        self.single(
            &next,
            "postgres",
            &format!(
                "CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{password}';\nCREATE DATABASE {DATABASE} OWNER {ROLE};\n"
            ),
        )?;
        fs::rename(&next, &self.pgdata).map_err(ServersError::io("make", &self.pgdata))
    }

    /// Runs statements, one a line, in single-user mode: no server, no network, no superuser's password.
    fn single(&self, pgdata: &Path, database: &str, sql: &str) -> Result<(), ServersError> {
        let mut command = self.command("postgres")?;
        command.arg("--single").arg("-D").arg(pgdata).args(["-c", "exit_on_error=on", database]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(ServersError::io("run", &self.bin))?;
        let mut input = child.stdin.take().expect("stdin is piped");
        input.write_all(sql.as_bytes()).map_err(ServersError::io("run", &self.bin))?;
        drop(input);
        check("setting up the database", child.wait_with_output().map_err(ServersError::io("run", &self.bin))?)
    }

    fn command(&self, program: &str) -> Result<Command, ServersError> {
        let path = self.bin.join(program);
        let mut command = match &self.user {
            Some(account) => {
                let mut command = setpriv(Some(&account.name), None)?;
                command.arg(path);
                command
            }
            None => Command::new(path),
        };
        command.current_dir("/").env("LC_ALL", "C");
        Ok(command)
    }

    fn give(&self, path: &Path) -> Result<(), ServersError> {
        match &self.user {
            Some(account) => {
                chown(path, Some(account.uid), Some(account.gid)).map_err(ServersError::io("give away", path))
            }
            None => Ok(()),
        }
    }

    /// How to start the server on `port`.
    pub(crate) fn recipe(&self, data_dir: &Path, port: u16, memory: Memory) -> Recipe {
        let mut args = vec!["-D".to_owned(), self.pgdata.to_string_lossy().into_owned()];
        for (name, value) in settings(port, memory) {
            args.push("-c".to_owned());
            args.push(format!("{name}={value}"));
        }
        Recipe {
            kind: ServerKind::Postgres,
            program: self.bin.join("postgres"),
            args,
            env: vec![("LC_ALL".to_owned(), "C".to_owned())],
            user: self.user.as_ref().map(|account| account.name.clone()),
            // Its "fast" shutdown: SIGTERM would wait for clients.
            end: Signal::Interrupt,
            log: data_dir.join("logs/postgres.log"),
            pid_file: data_dir.join("run/postgres.pid"),
        }
    }
}

/// A ledger's settings: durable, few checkpoints (each makes full-page images), no transaction left open for ever.
fn settings(port: u16, memory: Memory) -> Vec<(&'static str, String)> {
    let (shared_buffers, max_wal_size) = match memory {
        Memory::Machine => (format!("{}MB", shared_buffers_mib(memory_total_kib())), "8GB"),
        Memory::Small => ("64MB".to_owned(), "1GB"),
    };
    vec![
        ("port", port.to_string()),
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("unix_socket_directories", String::new()),
        ("max_connections", "200".to_owned()),
        ("fsync", "on".to_owned()),
        ("full_page_writes", "on".to_owned()),
        ("synchronous_commit", "on".to_owned()),
        ("shared_buffers", shared_buffers),
        ("max_wal_size", max_wal_size.to_owned()),
        ("checkpoint_timeout", "15min".to_owned()),
        ("wal_compression", "lz4".to_owned()),
        ("idle_in_transaction_session_timeout", "60s".to_owned()),
        ("tcp_keepalives_idle", "10".to_owned()),
        ("tcp_keepalives_interval", "5".to_owned()),
        ("tcp_keepalives_count", "3".to_owned()),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("log_line_prefix", "%m [%p] ".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_checkpoints", "off".to_owned()),
    ]
}

/// A 48th of the memory, 128 MiB to 2 GiB: the services and the page cache need the rest.
fn shared_buffers_mib(memory_kib: u64) -> u64 {
    (memory_kib / 1024 / 48).clamp(128, 2048)
}

/// The machine's memory; 0 where nobody says.
pub(crate) fn memory_total_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok())
        .unwrap_or(0)
}

/// The major version, from `postgres --version`: "postgres (PostgreSQL) 15.18 (Debian …)".
fn major(bin: &Path) -> Result<u32, ServersError> {
    let path = bin.join("postgres");
    let output = Command::new(&path).arg("--version").output().map_err(ServersError::io("run", &path))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_major(&text)
        .ok_or_else(|| ServersError::Command { what: "reading PostgreSQL's version", output: text.into_owned() })
}

fn parse_major(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    version.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn account(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let _password = fields.next()?;
        Some(Account { name: name.to_owned(), uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

/// Can the user get at things below `dir`? Asked of the kernel, as that user.
fn reachable(dir: &Path, account: &Account) -> Result<bool, ServersError> {
    let mut command = setpriv(Some(&account.name), None)?;
    command.args(["/bin/sh", "-c", "cd \"$1\"", "sh"]).arg(dir);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status().map_err(ServersError::io("run", Path::new("setpriv")))?.success())
}

fn check(what: &'static str, output: Output) -> Result<(), ServersError> {
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(ServersError::Command { what, output: last_lines(&String::from_utf8_lossy(&text)) })
}

/// After a kill of the postmaster alone its backends hold the shared memory for a moment, and a new one refuses to start.
pub(crate) fn is_still_ending(error: &ServersError) -> bool {
    matches!(error, ServersError::Ended { kind: ServerKind::Postgres, tail, .. }
        if tail.contains("is still in use") || tail.contains("lock file \"postmaster.pid\" already exists"))
}

/// Reads the first line of PostgreSQL's own pid file: who runs on this data directory, whoever started it.
pub(crate) fn own_pid_file(pgdata: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(pgdata.join("postmaster.pid")).ok()?.read_to_string(&mut text).ok()?;
    text.lines().next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_accounts_are_read() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("nonsense"), None);
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash\n";
        let expected = Account { name: "postgres".to_owned(), uid: 101, gid: 104 };
        assert_eq!(account(passwd, "postgres"), Some(expected));
        assert_eq!(account(passwd, "post"), None);
    }

    #[test]
    fn shared_buffers_follow_the_memory() {
        assert_eq!(shared_buffers_mib(24 * 1024 * 1024), 512);
        assert_eq!(shared_buffers_mib(0), 128);
        assert_eq!(shared_buffers_mib(u64::MAX), 2048);
    }
}
