//! `webhook-relay migrate`: brings the schema up to date, then ends.

use relay_runtime::flags::{DatabaseFlags, LogFlags};
use relay_store::{Store, StoreOptions};
use secrecy::ExposeSecret;

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
        let store = Store::connect(url.expose_secret(), StoreOptions::new("webhook-relay migrate")).await?;
        let pending = store.pending_migrations().await?;
        store.migrate().await?;
        println!(
            "{}",
            if pending == 0 { "the schema was up to date".to_owned() } else { format!("{pending} migrations applied") }
        );
        Ok(())
    })
}
