//! The dispatcher as a program of its own.

use relay_links::{Access, Addresses, Links};
use relay_runtime::flags::{
    DatabaseFlags, ExposeSecret as _, HealthFlags, LogFlags, NatsFlags, RedisFlags, health_port,
};
use relay_runtime::health::Health;
use relay_runtime::http;
use relay_runtime::reconnect::retry;
use relay_runtime::shutdown::Shutdown;

use crate::{Config, Dispatcher};

/// Matches events with endpoints, stores them, and schedules what is due. Runs in any number.
///
/// Example:
///   dispatcher --database-url postgres://… --redis-url redis://… --nats-url nats://dispatcher:password@…
#[derive(clap::Parser, Debug)]
#[command(version, verbatim_doc_comment)]
pub struct Cli {
    #[command(flatten)]
    database: DatabaseFlags,
    #[command(flatten)]
    redis: RedisFlags,
    #[command(flatten)]
    nats: NatsFlags,
    #[command(flatten)]
    health: HealthFlags,
    #[command(flatten)]
    config: Config,
    /// Largest payload of an event published straight to NATS, in bytes
    #[arg(long, env = "RELAY_PAYLOAD_BYTES_MAX", default_value_t = relay_core::event::PAYLOAD_BYTES_MAX)]
    payload_bytes_max: usize,
    #[command(flatten)]
    log: LogFlags,
}

/// Runs the program.
///
/// # Errors
/// It can't start, or a part of it ended by itself.
pub fn main_with(cli: Cli) -> anyhow::Result<()> {
    cli.log.init()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let metrics = relay_runtime::metrics::install()?;
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    let pod = relay_runtime::pod::name();
    let addresses = Addresses::from_flags(&cli.database, &cli.redis, &cli.nats)?;
    let health_listen = cli.health.listen(health_port::DISPATCHER);
    let listener = http::bind(health_listen).await?;
    let health = Health::serving(metrics, listener, &shutdown);
    let soft = shutdown.soft();
    let Some(links) = Links::connect(&addresses, Access::NoSecrets, "dispatcher", &pod, &soft).await? else {
        return Ok(());
    };
    let config = Config { payload_bytes_max: cli.payload_bytes_max, ..cli.config };
    let start = || Dispatcher::start(config.clone(), links.clone(), pod.clone());
    let Some(dispatcher) = retry("JetStream", addresses.nats_url.expose_secret(), start, &soft).await else {
        return Ok(());
    };
    links.check_durability().await;

    let working = shutdown.group("dispatcher");
    let background = shutdown.group("background");
    links.run_background(&background);
    links.register(&health);
    working.spawn("work", dispatcher.run(working.stop()));
    health.started();
    tracing::info!(health = %health_listen, "dispatching");
    Ok(shutdown.finish().await?)
}
