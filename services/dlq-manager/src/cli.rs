//! The DLQ manager as a program of its own: opens its links, serves its routes, ends in order.

use relay_links::{Access, Addresses, Links};
use relay_runtime::auth::{self, OperatorKey};
use relay_runtime::flags::{DatabaseFlags, HealthFlags, LogFlags, NatsFlags, RedisFlags, health_port};
use relay_runtime::health::Health;
use relay_runtime::http::{Bodies, FrontFlags, Later};
use relay_runtime::shutdown::Shutdown;
use relay_runtime::{http, metrics, openapi, pod};
use utoipa_axum::router::OpenApiRouter;

use crate::{Config, DlqManager};

/// Bodies of these routes are a few filters.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// All of them together, in bytes.
const BODIES_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Lists, replays and discards dead letters, and keeps the ledger in order. Runs in any number.
///
/// Examples:
///   dlq-manager --database-url postgres://… --redis-url redis://… --nats-url nats://dlq-manager:password@…
///   RELAY_API_KEY_FILE=/run/secrets/api_key dlq-manager --listen 0.0.0.0:8743 …
///   dlq-manager --listen 0.0.0.0:8743 --tls-cert /etc/relay/tls.crt --tls-key /etc/relay/tls.key …
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
    let metrics = metrics::install()?;
    let pod = pod::name();
    let addresses = Addresses::from_flags(&cli.database, &cli.redis, &cli.nats)?;
    let listener = http::bind(cli.config.listen).await?;
    let health_listener = http::bind(cli.health.listen(health_port::DLQ_MANAGER)).await?;
    // Both answer from now on: that it isn't ready, as long as it waits for its servers.
    let (listens, health_listens) = (listener.local_addr()?, health_listener.local_addr()?);
    let later = Later::serving(front, listener, &shutdown.group("interface"));
    let health = Health::serving(metrics, health_listener, &shutdown);
    let Some(links) = Links::connect(&addresses, Access::NoSecrets, "dlq-manager", &pod, &shutdown.soft()).await?
    else {
        return Ok(());
    };
    let guard = links.guard(cli.config.listen, key)?;
    let manager = DlqManager::start(cli.config, links.clone(), pod).await?;
    let base = openapi::document("WebhookRelay: dead letters", "What could not be delivered, and what to do about it.");
    let (routes, mut document) = OpenApiRouter::with_openapi(base).merge(manager.router()).split_for_parts();
    let bodies = Bodies::new(BODIES_BYTES_MAX);
    let routes = auth::protect(routes, &mut document, guard, &bodies);
    let router = http::layers(openapi::show(routes, &document), BODY_BYTES_MAX);

    // In the order in which they end, behind the interface.
    let duties = shutdown.group("duties");
    duties.spawn("work", manager.run(duties.stop()));
    let background = shutdown.group("background");
    links.run_background(&background);
    links.register(&health);
    later.open(router);
    health.started();
    tracing::info!(listen = %listens, health = %health_listens, "managing dead letters");
    Ok(shutdown.finish().await?)
}
