//! The private nats-server: configuration from the project's `nats/` directory, passwords through its environment.

pub(crate) mod tenants;

use std::path::{Path, PathBuf};
use std::{collections::BTreeMap, fs};

use crate::credentials::write_private;
use crate::error::ServersError;
use crate::postgres::memory_total_kib;
use crate::process::{Recipe, Signal};
use crate::tools;
use crate::{Memory, ServerKind};

/// Users of `accounts.conf`: one a service, `relay` for all four in one process, `producer` for programs that send events
/// of tenant `default`.
pub const USERS: [&str; 6] = ["ingest", "dispatcher", "deliverer", "dlq-manager", "relay", "producer"];

const CONF: &str = include_str!("../../../nats/up.conf");
/// The accounts, users and permissions that are shipped.
pub const ACCOUNTS: &str = include_str!("../../../nats/accounts.conf");

/// The directory of configuration and streams.
pub(crate) fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("nats")
}

/// What the Go runtime reads its soft limit of memory from.
const MEMORY_LIMIT_VARIABLE: &str = "GOMEMLIMIT";

/// What is written where, and the memory that the server may take.
pub(crate) struct Files<'a> {
    pub(crate) data_dir: &'a Path,
    /// Text of accounts.conf.
    pub(crate) accounts: &'a str,
    pub(crate) memory: Memory,
}

/// Writes the configuration and says how to start the server.
pub(crate) fn prepare(
    files: &Files<'_>,
    tools_dirs: &[PathBuf],
    port: u16,
    monitor_port: u16,
    passwords: &BTreeMap<String, String>,
) -> Result<Recipe, ServersError> {
    let data_dir = files.data_dir;
    let program = tools::find("nats-server", tools_dirs).ok_or_else(|| ServersError::MissingProgram {
        program: "nats-server",
        searched: tools::searched(tools_dirs, ""),
        hint: "`make build` puts the pinned version into .tools/, or give --nats-url",
    })?;
    let dir = dir(data_dir);
    fs::create_dir_all(&dir).map_err(ServersError::io("make", &dir))?;
    let conf = dir.join("up.conf");
    write(&conf, &configuration(port, monitor_port, &dir.join("streams")))?;
    let mut env: Vec<_> =
        passwords.iter().map(|(user, password)| (password_variable(user), password.clone())).collect();
    #[expect(clippy::disallowed_methods, reason = "a setting of the server, not of ours; an operator's own one stays")]
    let is_set = std::env::var_os(MEMORY_LIMIT_VARIABLE).is_some();
    if !is_set {
        env.push((MEMORY_LIMIT_VARIABLE.to_owned(), format!("{}MiB", memory_limit_mib(files.memory))));
    }
    let accounts = tenants::accounts(files.accounts, &tenants::read(&dir)?);
    write_private(&dir.join("accounts.conf"), accounts.as_bytes())?;
    Ok(Recipe {
        kind: ServerKind::Nats,
        program,
        args: vec!["-c".to_owned(), conf.to_string_lossy().into_owned()],
        env,
        user: None,
        end: Signal::Terminate,
        log: data_dir.join("logs/nats.log"),
        pid_file: data_dir.join("run/nats.pid"),
    })
}

/// Go collects garbage when it has doubled; blocks of streams of large payloads make 2 GB of that. Nearing this limit it
/// collects sooner.
fn memory_limit_mib(memory: Memory) -> u64 {
    match memory {
        Memory::Machine => share_of(memory_total_kib()),
        Memory::Small => 256,
    }
}

/// A 24th, in sensible bounds.
fn share_of(memory_kib: u64) -> u64 {
    (memory_kib / 1024 / 24).clamp(256, 1024)
}

fn write(path: &Path, text: &str) -> Result<(), ServersError> {
    fs::write(path, text).map_err(ServersError::io("write", path))
}

fn configuration(port: u16, monitor_port: u16, store_dir: &Path) -> String {
    let quoted = store_dir.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    CONF.replace("{{port}}", &port.to_string())
        .replace("{{monitor_port}}", &monitor_port.to_string())
        .replace("{{store_dir}}", &quoted)
}

/// The variable of the server's environment that its configuration reads a user's, or a tenant's, password from.
pub fn password_variable(user: &str) -> String {
    format!("RELAY_NATS_{}_PASSWORD", user.to_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_holder_is_filled_and_every_password_has_a_user() {
        let text = configuration(42_220, 8_222, Path::new("/data/nats \"x\""));
        let directives = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        assert!(!directives.contains("{{"), "{directives}");
        assert!(directives.contains("sync_interval: always"));
        assert!(directives.contains(r#"store_dir: "/data/nats \"x\"""#), "{directives}");
        for user in USERS {
            assert!(ACCOUNTS.contains(&format!("user: {user}, password: ${}", password_variable(user))), "{user}");
        }
        assert_eq!(ACCOUNTS.matches("password: $").count(), USERS.len());
    }

    #[test]
    fn the_limit_of_memory_is_a_share_of_the_machine() {
        assert_eq!(share_of(24 * 1024 * 1024), 1024);
        assert_eq!(share_of(8 * 1024 * 1024), 341);
        assert_eq!(share_of(0), 256);
        let compose = include_str!("../../../docker-compose.yml");
        assert!(compose.contains(MEMORY_LIMIT_VARIABLE), "containers have one as well");
    }

    #[test]
    fn anonymous_clients_exist_on_loopback_only() {
        assert!(CONF.contains("no_auth_user") && CONF.contains("listen: \"127.0.0.1:"));
        let compose = include_str!("../../../nats/compose.conf");
        assert!(!compose.contains("no_auth_user") && !ACCOUNTS.contains("no_auth_user"));
    }
}
