//! What the commands about keys, tenants, the check and the recovery share: the way to the servers, and tables.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use relay_bus::{Bus, BusOptions};
use relay_core::sealing::SealingKeys;
use relay_runtime::flags::{DatabaseFlags, NatsFlags, SecretsFlags};
use relay_store::{Listed, Store, StoreError, StoreOptions, Window};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::private::{ADDRESSES, SECRETS_KEY_FILE};

/// Rows that are asked for at once.
const STEP: i64 = 500;

/// Where the database is, and how the answer looks.
#[derive(Clone, Debug, clap::Args)]
pub struct AccessFlags {
    #[command(flatten)]
    database: DatabaseFlags,
    /// Data directory of the `webhook-relay up` (or `servers`) whose database is meant, unless --database-url says
    #[arg(long, env = "RELAY_DATA_DIR", default_value = ".relay")]
    pub data_dir: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

impl AccessFlags {
    /// Does `work` with the database. Blocks.
    pub fn with_store<T>(&self, work: impl AsyncFnOnce(&Store) -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.with_options(StoreOptions::new("webhook-relay keys"), work)
    }

    /// The same, connecting as `options` say.
    pub fn with_options<T>(
        &self,
        options: StoreOptions,
        work: impl AsyncFnOnce(&Store) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let url = self.url()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connect = Store::connect(url.expose_secret(), options);
            let store = connect.await.context("the database does not answer (is `webhook-relay up` running?)")?;
            if store.pending_migrations().await? > 0 {
                bail!("the database schema is not up to date: run `webhook-relay migrate` first");
            }
            let done = work(&store).await;
            store.close().await;
            done
        })
    }

    /// The keys for secrets: those that the flags say, else those that `up` uses with its private database.
    pub fn keys(&self, flags: &SecretsFlags) -> anyhow::Result<SealingKeys> {
        let keys = flags.keys()?;
        if !keys.is_empty() || !self.is_private()? {
            return Ok(keys);
        }
        let Ok(file) = self.address(SECRETS_KEY_FILE, "--secrets-key-file") else { return Ok(keys) };
        Ok(SecretsFlags { secrets_key_file: Some(file.expose_secret().into()) }.keys()?)
    }

    /// Whether the servers are those below the data directory.
    pub fn is_private(&self) -> anyhow::Result<bool> {
        Ok(self.database.optional()?.is_none())
    }

    /// Where NATS is: that of the flags, or the one below the data directory if the database is that one.
    pub fn nats_url(&self, flags: &NatsFlags) -> anyhow::Result<SecretString> {
        match flags.optional()? {
            Some(url) => Ok(url),
            None if self.is_private()? => self.address("NATS_URL", "--nats-url"),
            None => Ok(flags.url()?),
        }
    }

    /// Host and port of the NATS server that the last `up` used.
    pub fn nats_address(&self) -> Option<String> {
        let url = self.address("NATS_URL", "--nats-url").ok()?;
        Some(url.expose_secret().rsplit_once('@')?.1.to_owned())
    }

    fn url(&self) -> anyhow::Result<SecretString> {
        match self.database.optional()? {
            Some(url) => Ok(url),
            None => self.address("DATABASE_URL", "--database-url"),
        }
    }

    /// The address that `up` wrote for one of its servers; `flag` is what can be given instead.
    fn address(&self, name: &str, flag: &str) -> anyhow::Result<SecretString> {
        let file = self.data_dir.join(ADDRESSES);
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!(
                "no {name}: {} is not there (made by `webhook-relay up`); give --data-dir or {flag}",
                file.display()
            )
        })?;
        let url = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let url = url.map(|text| text.trim_matches('\''));
        Ok(url.with_context(|| format!("{} has no {name}", file.display()))?.into())
    }

    /// Prints `value` where --json asks for it; false: it doesn't.
    pub fn print_json(&self, value: &impl Serialize) -> anyhow::Result<bool> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(value)?);
        }
        Ok(self.json)
    }

    /// Prints a report, as JSON where --json asks for it.
    pub fn print(&self, report: &(impl Serialize + fmt::Display)) -> anyhow::Result<()> {
        if !self.print_json(report)? {
            print!("{report}");
        }
        Ok(())
    }
}

/// How a command ends whose exit code says what it found; `failed`: the code where it could not be carried out, which is
/// said.
pub fn exit_code(command: &str, outcome: anyhow::Result<ExitCode>, failed: u8) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("webhook-relay {command}: {error:#}");
        ExitCode::from(failed)
    })
}

/// A connection to NATS.
pub async fn bus(url: &SecretString, name: &str) -> anyhow::Result<Bus> {
    let options = BusOptions { url: url.expose_secret().to_owned(), name: name.to_owned() };
    Bus::connect(options).await.context("NATS does not answer")
}

/// All items of a list.
pub async fn all<T>(part: impl AsyncFn(Window) -> Result<Listed<T>, StoreError>) -> Result<Vec<T>, StoreError> {
    let mut items = Vec::new();
    let mut after = None;
    loop {
        let listed = part(Window::after(after, STEP)).await?;
        items.extend(listed.items);
        after = listed.next;
        if after.is_none() {
            return Ok(items);
        }
    }
}

/// A time in a table.
pub fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A table with a line of titles, columns as wide as they need to be.
pub fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0).max(titles[i].len());
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<_> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let body = rows.iter().map(|row| line(std::array::from_fn(|i| row[i].as_str())));
    std::iter::once(line(titles)).chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a".to_owned(), "b".to_owned()], ["longer".to_owned(), "é".to_owned()]];
        assert_eq!(table(["ID", "NAME"], &rows), "ID      NAME\na       b\nlonger  é\n");
        assert_eq!(table(["ID"], &[]), "ID\n");
    }
}
