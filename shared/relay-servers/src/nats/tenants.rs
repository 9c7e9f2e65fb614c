//! Tenants of the private nats-server: an account each, with one user that may publish below the tenant's subject and do
//! nothing else. Called by `webhook-relay tenants create`, also while the server runs.
//!
//! Invariant: the passwords are in `nats/tenants.json`, which only its owner can read, as `accounts.conf`, which is made
//! from it at every start and every change.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use relay_core::ids::TenantId;

use super::{ACCOUNTS, dir};
use crate::credentials::{password, write_private};
use crate::error::ServersError;
use crate::process::{Signal, send};
use crate::{ServerKind, leftovers};

/// What nats-server logs when it has read its configuration again.
const RELOADED: &str = "Reloaded server configuration";
/// How long that may take.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const FILE: &str = "tenants.json";
/// The line of accounts.conf behind which exports to tenants belong.
const EXPORT: &str = "      { service: \"relay.events.default.>\", accounts: [TENANT_DEFAULT] }\n";
/// What ends the accounts.
const END: &str = "}\nsystem_account: SYS";

/// How a tenant's programs sign in at the NATS server.
#[derive(Clone)]
pub struct TenantUser {
    /// The user's name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Whether the running server knows it already; else the next start does.
    pub is_live: bool,
}

/// Lines for the configuration of a NATS server: the export in account `RELAY`, and the account.
pub fn tenant_lines(tenant: &TenantId, password: &str) -> (String, String) {
    let user = user(tenant);
    let export = format!("      {{ service: \"relay.events.{tenant}.>\", accounts: [\"TENANT_{tenant}\"] }}\n");
    let account = format!(
        "
  \"TENANT_{tenant}\" {{
    imports = [
      {{ service: {{ account: RELAY, subject: \"relay.events.{tenant}.>\" }} }}
    ]
    users = [
      {{
        user: \"{user}\", password: {password}
        permissions: {{
          publish: [\"relay.events.{tenant}.>\"]
          subscribe: [\"_INBOX.>\"]
        }}
      }}
    ]
  }}
"
    );
    (export, account)
}

/// Not the tenant's bare name: one tenant may be called like a service.
fn user(tenant: &TenantId) -> String {
    format!("producer-{tenant}")
}

/// Makes sure that a tenant has a user on the private nats-server below `data_dir`, and that the server, if it runs, reads
/// it. `None`: there is no private nats-server there, or the tenant is `default`, which has a user from the start.
///
/// # Errors
/// A file can't be read or written.
pub fn add_tenant(data_dir: &Path, tenant: &TenantId) -> Result<Option<TenantUser>, ServersError> {
    if *tenant == TenantId::default_tenant() {
        return Ok(None);
    }
    let Ok(data_dir) = data_dir.canonicalize() else { return Ok(None) };
    let dir = dir(&data_dir);
    if !dir.join("up.conf").exists() {
        return Ok(None);
    }
    let path = dir.join("tenants.lock");
    let lock = File::create(&path).map_err(ServersError::io("write", &path))?;
    lock.lock().map_err(ServersError::io("lock", &path))?;
    let mut known = read(&dir)?;
    let password = match known.get(tenant.as_str()) {
        Some(password) => password.clone(),
        None => {
            let fresh = password()?;
            known.insert(tenant.as_str().to_owned(), fresh.clone());
            let text = serde_json::to_vec_pretty(&known).expect("passwords are plain strings");
            write_private(&dir.join(FILE), &text)?;
            fresh
        }
    };
    write_private(&dir.join("accounts.conf"), accounts(ACCOUNTS, &known).as_bytes())?;
    let running = leftovers::running(&data_dir.join("run/nats.pid"), &data_dir);
    let log = data_dir.join("logs/nats.log");
    // Twice: at the first time nats-server (2.15) takes the new account's import before it knows of the export, and
    // what the tenant publishes gets no answer until it reads both again.
    let is_live = running.is_some_and(|pid| reload(pid, &log) && reload(pid, &log));
    tracing::debug!(server = %ServerKind::Nats, %tenant, is_live, "a tenant's user was made");
    Ok(Some(TenantUser { user: user(tenant), password, is_live }))
}

/// Lets the server read its configuration, and waits until it says so; false: it doesn't.
fn reload(pid: u32, log: &Path) -> bool {
    let said = || fs::read(log).map(|text| String::from_utf8_lossy(&text).matches(RELOADED).count()).unwrap_or(0);
    let before = said();
    if !send(pid, Signal::Reload) {
        return false;
    }
    let started = Instant::now();
    while said() == before {
        if started.elapsed() >= RELOAD_LIMIT {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

/// Passwords by tenant.
pub(super) fn read(dir: &Path) -> Result<BTreeMap<String, String>, ServersError> {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|why| ServersError::Credentials { path: path.clone(), why: why.to_string() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(ServersError::io("read", &path)(error)),
    }
}

/// `text` of accounts.conf with these tenants.
pub(super) fn accounts(text: &str, tenants: &BTreeMap<String, String>) -> String {
    // The file is ours, but a person may have edited it: what is no name is left out.
    let lines =
        tenants.iter().filter_map(|(tenant, password)| Some(tenant_lines(&TenantId::parse(tenant).ok()?, password)));
    let (exports, accounts): (String, String) = lines.unzip();
    text.replacen(EXPORT, &format!("{EXPORT}{exports}"), 1).replacen(END, &format!("{accounts}{END}"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_put_where_they_belong() {
        assert_eq!(accounts(ACCOUNTS, &BTreeMap::new()), ACCOUNTS);
        let text = accounts(
            ACCOUNTS,
            &BTreeMap::from([("acme-2".to_owned(), "pw".to_owned()), ("no.name".to_owned(), "x".to_owned())]),
        );
        let (export, account) = tenant_lines(&TenantId::parse("acme-2").unwrap(), "pw");
        assert!(text.contains(&format!("{EXPORT}{export}")) && text.contains(&format!("{account}{END}")));
        assert_eq!(text.len(), ACCOUNTS.len() + export.len() + account.len());
    }
}
