//! The deliverer as a process of its own: flags, links, health, signals, the orderly end. Called by this crate's
//! `main` and by `webhook-relay deliverer`.

use std::time::Duration;

use anyhow::Context as _;
use relay_core::address::Network;
use relay_links::{Access, Addresses, Links};
use relay_runtime::flags::{
    DatabaseFlags, ExposeSecret as _, HealthFlags, LogFlags, NatsFlags, RedisFlags, SecretsFlags, health_port,
};
use relay_runtime::health::Health;
use relay_runtime::reconnect::retry;
use relay_runtime::shutdown::Shutdown;
use relay_runtime::{http, metrics, pod};

use crate::{Config, Deliverer, EgressProxy};

/// What the orderly end may take beyond the grace of requests in flight: recording and acking.
const END_MARGIN: Duration = Duration::from_secs(10);

/// Signs webhooks, sends them, and records what became of them.
///
/// Examples:
///   deliverer --database-url postgres://… --redis-url redis://… --nats-url nats://…
///   deliverer --secrets-key-file /run/secrets/relay_keys …
///   deliverer --allow-network 10.0.0.0/8     endpoints may lie in this private network too
///   RELAY_EGRESS_PROXY_FILE=/run/secrets/egress_proxy deliverer …     a proxy of yours connects to endpoints
#[derive(clap::Parser, Debug)]
#[command(name = "deliverer", version, verbatim_doc_comment)]
pub struct Cli {
    #[command(flatten)]
    database: DatabaseFlags,
    #[command(flatten)]
    redis: RedisFlags,
    #[command(flatten)]
    nats: NatsFlags,
    #[command(flatten)]
    secrets: SecretsFlags,
    /// Network that endpoints may lie in although it is private, loopback or special; may be given several times
    #[arg(long = "allow-network", env = "RELAY_ALLOW_NETWORKS", value_delimiter = ',', value_name = "CIDR")]
    allow_networks: Vec<Network>,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    health: HealthFlags,
    #[command(flatten)]
    log: LogFlags,
}

/// Runs until a signal ends it.
pub fn main_with(cli: Cli) -> anyhow::Result<()> {
    cli.log.init()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(serve(cli))
}

async fn serve(cli: Cli) -> anyhow::Result<()> {
    let config = Config { allow_networks: cli.allow_networks, ..cli.config };
    let egress = EgressProxy::of(config.egress_proxy.as_ref())?;
    let shutdown = Shutdown::new(config.in_flight_grace() + END_MARGIN);
    shutdown.on_signals().context("listening to signals")?;
    let metrics = metrics::install()?;
    let pod = pod::name();
    let addresses = Addresses::from_flags(&cli.database, &cli.redis, &cli.nats)?;
    let access = Access::from_flags(&cli.secrets)?;
    let listen = cli.health.listen(health_port::DELIVERER);
    let listener = http::bind(listen).await?;

    let soft = shutdown.soft();
    let health = Health::serving(metrics, listener, &shutdown);
    let Some(links) = Links::connect(&addresses, access, "deliverer", &pod, &soft).await? else { return Ok(()) };
    links.check_durability().await;
    let start = || Deliverer::start(config.clone(), egress.clone(), links.clone(), pod.clone());
    let Some(deliverer) = retry("JetStream", addresses.nats_url.expose_secret(), start, &soft).await else {
        return Ok(());
    };

    let (work, background) = (shutdown.group("deliverer"), shutdown.group("background"));
    links.register(&health);
    links.check_secrets(&health);
    links.run_background(&background);
    work.spawn("deliverer", deliverer.run(work.stop(), shutdown.hard()));
    health.started();
    tracing::info!(pod, health = %listen, "delivering");
    Ok(shutdown.finish().await?)
}
