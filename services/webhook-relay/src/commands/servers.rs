//! `webhook-relay servers`: the private servers alone, for services that run as processes of their own.

use std::sync::mpsc;

use relay_links::Addresses;
use relay_runtime::flags::{LogFlags, SecretsFlags};
use relay_runtime::shutdown::Shutdown;
use relay_servers::ServerKind;
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use super::migrate;
use super::private::{PrivateFlags, supervise};

/// Private PostgreSQL, Redis and nats-server without services, until Ctrl-C.
///
/// Their addresses, and the file with the key for secrets, are written to servers.env in the data directory:
///   set -a; . .relay/servers.env; set +a; ingest & dispatcher & deliverer --allow-network 127.0.0.0/8 &
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    private: PrivateFlags,
    #[command(flatten)]
    log: LogFlags,
}

const ALL: [ServerKind; 3] = [ServerKind::Postgres, ServerKind::Redis, ServerKind::Nats];

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.log.init()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let shutdown = Shutdown::default();
    {
        let _entered = runtime.enter();
        shutdown.on_signals()?;
    }
    let mut servers = args.private.start(&ALL)?;
    let addresses = super::up::addresses(&servers)?;
    let (sender, done) = mpsc::channel();
    let (private, soft) = (args.private.clone(), shutdown.soft());
    let work = runtime.spawn(async move {
        let outcome = prepare(&private, &addresses, &soft).await;
        if outcome.is_ok() {
            soft.cancelled().await;
        }
        let _ = sender.send(());
        outcome
    });
    supervise(&mut servers, &ALL, &done);
    let outcome = runtime.block_on(work)?;
    servers.stop();
    outcome
}

async fn prepare(private: &PrivateFlags, addresses: &Addresses, stop: &CancellationToken) -> anyhow::Result<()> {
    let Some(()) = migrate::when_there(addresses.database_url.expose_secret(), stop).await? else { return Ok(()) };
    let (_, keys) = private.keys(&SecretsFlags::default())?;
    let path = private.write_addresses(addresses, keys.as_deref())?;
    println!("the servers are up; their addresses: {}", path.display());
    Ok(())
}
