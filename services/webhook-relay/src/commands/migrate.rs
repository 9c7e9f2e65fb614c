//! `webhook-relay migrate`: brings the schema up to date, then ends. `up` and `servers` begin with the same.

use anyhow::Context as _;
use relay_runtime::flags::{DatabaseFlags, LogFlags};
use relay_runtime::reconnect::retry;
use relay_store::{Store, StoreOptions};
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

/// How it shows itself to PostgreSQL.
const NAME: &str = "webhook-relay migrate";

/// Brings the database schema up to date. Safe to run while older pods work, and more than once.
///
/// Example: webhook-relay migrate --database-url postgres://user:password@db/webhook_relay
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    database: DatabaseFlags,
    #[command(flatten)]
    log: LogFlags,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.log.init()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let url = args.database.url()?;
    runtime.block_on(async {
        let store = Store::connect(url.expose_secret(), StoreOptions::new(NAME)).await?;
        let pending = store.pending_migrations().await?;
        store.migrate().await?;
        println!(
            "{}",
            if pending == 0 { "the schema was up to date".to_owned() } else { format!("{pending} migrations applied") }
        );
        Ok(())
    })
}

/// The same as a part of a process that stays: waits for PostgreSQL as long as it takes. `None` when `stop` fired first.
pub async fn when_there(url: &str, stop: &CancellationToken) -> anyhow::Result<Option<()>> {
    let store = Store::lazy(url, StoreOptions::new(NAME))?;
    let Some(()) = retry("PostgreSQL", url, || store.probe(), stop).await else { return Ok(None) };
    store.migrate().await.context("bringing the schema up to date")?;
    Ok(Some(()))
}
