//! Ingest as a program of its own: opens its links, serves the interface, ends in order.

use relay_links::{Access, Addresses, Links};
use relay_runtime::auth::OperatorKey;
use relay_runtime::flags::{DatabaseFlags, HealthFlags, LogFlags, NatsFlags, RedisFlags, SecretsFlags, health_port};
use relay_runtime::health::Health;
use relay_runtime::http::{Bodies, FrontFlags, Later};
use relay_runtime::shutdown::Shutdown;
use relay_runtime::{http, metrics, pod};

use crate::{Config, Ingest, base, with_document};

/// Accepts events and serves the REST interface. Runs in any number.
///
/// Examples:
///   ingest --database-url postgres://… --redis-url redis://… --nats-url nats://ingest:password@…
///   RELAY_API_KEY_FILE=/run/secrets/api_key ingest --listen 0.0.0.0:8742 --secrets-key-file /run/secrets/relay_keys …
///   ingest --listen 0.0.0.0:8742 --tls-cert /etc/relay/tls.crt --tls-key /etc/relay/tls.key …
#[derive(clap::Parser, Debug)]
#[command(version, verbatim_doc_comment)]
pub struct Cli {
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    front: FrontFlags,
    #[command(flatten)]
    database: DatabaseFlags,
    #[command(flatten)]
    redis: RedisFlags,
    #[command(flatten)]
    nats: NatsFlags,
    #[command(flatten)]
    secrets: SecretsFlags,
    #[command(flatten)]
    health: HealthFlags,
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
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    let key = OperatorKey::from_env()?;
    let front = cli.front.front()?;
    let measured = metrics::install()?;
    let pod = pod::name();
    let addresses = Addresses::from_flags(&cli.database, &cli.redis, &cli.nats)?;
    let access = Access::from_flags(&cli.secrets)?;
    let listener = http::bind(cli.config.listen).await?;
    let health_listener = http::bind(cli.health.listen(health_port::INGEST)).await?;
    let soft = shutdown.soft();
    // Both answer from now on: that it isn't ready, as long as it waits for its servers.
    let (listens, health_listens) = (listener.local_addr()?, health_listener.local_addr()?);
    let later = Later::serving(front, listener, &shutdown.group("interface"));
    let health = Health::serving(measured, health_listener, &shutdown);
    let Some(links) = Links::connect_without_database(&addresses, access, "ingest", &pod, &soft).await? else {
        return Ok(());
    };
    links.check_durability().await;

    let (listen, body_bytes_max) = (cli.config.listen, cli.config.body_bytes_max());
    let bodies = Bodies::new(cli.config.bodies_bytes_max);
    let ingest = Ingest::start(cli.config, links.clone()).await?;
    // After the start, which may have read keys from the state file.
    let guard = links.guard(listen, key)?;
    let router = http::layers(with_document(base().merge(ingest.router()), guard, &bodies), body_bytes_max);

    // Not the database: events are accepted while it is away.
    let bus = links.bus.clone();
    health.register("nats", move || {
        let bus = bus.clone();
        async move { bus.ping().await.map_err(|e| e.to_string()) }
    });
    let clock = links.clock.clone();
    health.register("clock", move || std::future::ready(clock.check()));

    // In the order in which they end: no more requests, then what they handed over, then what all of it used.
    let service = shutdown.group("ingest");
    service.spawn("ingest", ingest.run(service.stop()));
    let background = shutdown.group("background");
    links.run_background(&background);
    later.open(router);
    health.started();
    tracing::info!(listen = %listens, health = %health_listens, "accepting events");
    shutdown.finish().await?;
    Ok(())
}
