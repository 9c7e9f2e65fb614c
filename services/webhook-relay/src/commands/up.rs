//! `webhook-relay up`: one command, and webhooks are delivered.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use deliverer::EgressProxy;
use ipnet::IpNet;
use relay_core::sealing::SealingKeys;
use relay_links::{Access, Addresses, Links};
use relay_runtime::auth::{self, AuthError, OperatorKey};
use relay_runtime::flags::{DatabaseFlags, LogFlags, NatsFlags, RedisFlags, SecretsFlags};
use relay_runtime::http::{Front, FrontFlags};
use relay_runtime::shutdown::Shutdown;
use relay_servers::{ServerKind, Servers};
use relay_store::Store;
use secrecy::{ExposeSecret, SecretString};

use super::migrate;
use super::private::{PrivateFlags, supervise};
use crate::all::{self, Settings};
use crate::self_check;

/// Runs everything in one process.
///
/// Starts private PostgreSQL, Redis and nats-server on loopback, or uses yours where their URLs are given, migrates,
/// runs all services with the REST interface on --listen, and sends one event through it all to itself. Deliveries
/// to 127.0.0.0/8 are allowed, so that you can try it with a receiver on this machine. Signing secrets and secret headers
/// are encrypted in the private database, with a key that is made in secrets.keys in the data directory.
///
/// Examples:
///   webhook-relay up
///   webhook-relay up --listen 127.0.0.1:9000 --data-dir /var/lib/webhook-relay
///   webhook-relay up --secrets-key-file relay.keys --database-url postgres://me@db/relay --redis-url redis://cache --nats-url nats://me:pw@bus
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    private: PrivateFlags,
    #[command(flatten)]
    database: DatabaseFlags,
    #[command(flatten)]
    redis: RedisFlags,
    #[command(flatten)]
    nats: NatsFlags,
    #[command(flatten)]
    secrets: SecretsFlags,
    #[command(flatten)]
    ingest: ingest::Config,
    #[command(flatten)]
    front: FrontFlags,
    #[command(flatten)]
    dispatcher: dispatcher::Config,
    #[command(flatten)]
    deliverer: deliverer::Config,
    #[command(flatten)]
    retention: dlq_manager::Retention,
    #[command(flatten)]
    log: LogFlags,
}

/// How long an orderly end may take: requests in flight get 30 s.
const GRACE: Duration = Duration::from_secs(45);

/// Runs the command.
pub fn run(mut args: Args) -> anyhow::Result<()> {
    args.log.init()?;
    // What can be refused is refused before anything is started.
    let key = OperatorKey::from_env()?;
    let front = args.front.front()?;
    let egress = EgressProxy::of(args.deliverer.egress_proxy.as_ref())?;
    let loopback: IpNet = "127.0.0.0/8".parse().context("a constant")?;
    if !args.ingest.allow_networks.contains(&loopback) {
        args.ingest.allow_networks.push(loopback);
    }

    let given =
        Given { database: args.database.optional()?, redis: args.redis.optional()?, nats: args.nats.optional()? };
    let kinds = given.missing();
    // With one of its own, others may work with the same database: they need the same key, so none is made here.
    let is_private = given.database.is_none();
    args.secrets.keys()?;
    // A database that is still to be made has no keys.
    if !auth::is_loopback(args.ingest.listen) && !key.is_set() && is_private && !args.private.was_used() {
        return Err(AuthError::Open(args.ingest.listen).into());
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let shutdown = Shutdown::new(GRACE);
    {
        let _entered = runtime.enter();
        shutdown.on_signals()?;
    }
    let started = Instant::now();
    if !kinds.is_empty() {
        println!("starting private servers in {}", args.private.data_dir.display());
    }
    let mut servers = args.private.start(&kinds)?;
    let addresses = given.or_private(&servers)?;
    let (keys, file) = if is_private { args.private.keys(&args.secrets)? } else { (args.secrets.keys()?, None) };
    args.private.write_addresses(&addresses, file.as_deref())?;
    if !kinds.is_empty() {
        println!("servers are up after {:.1} s", started.elapsed().as_secs_f64());
    }

    let nats_port = servers.port(ServerKind::Nats);
    let (sender, done) = mpsc::channel();
    let work = runtime.spawn(async move {
        let outcome =
            Box::pin(serve(args, key, front, egress, (addresses, keys, is_private), nats_port, shutdown)).await;
        // The receiver is there until this was sent.
        let _ = sender.send(());
        outcome
    });
    // This thread has nothing else to do, and may block.
    supervise(&mut servers, &kinds, &done);
    let outcome = runtime.block_on(work)?;
    runtime.shutdown_background();
    servers.stop();
    if outcome.is_ok() {
        println!("stopped; the data are in place for the next start");
    }
    outcome
}

/// Addresses that the user gave.
struct Given {
    database: Option<SecretString>,
    redis: Option<SecretString>,
    nats: Option<SecretString>,
}

impl Given {
    /// The servers that must be private ones.
    fn missing(&self) -> Vec<ServerKind> {
        [(ServerKind::Postgres, &self.database), (ServerKind::Redis, &self.redis), (ServerKind::Nats, &self.nats)]
            .into_iter()
            .filter_map(|(kind, given)| given.is_none().then_some(kind))
            .collect()
    }

    fn or_private(self, servers: &Servers) -> anyhow::Result<Addresses> {
        let or = |given: Option<SecretString>, private: Option<String>| {
            given.or(private.map(Into::into)).context("a private server that was started has no address")
        };
        Ok(Addresses {
            database_url: or(self.database, servers.database_url())?,
            redis_url: or(self.redis, servers.redis_url())?,
            nats_url: or(self.nats, servers.nats_url())?,
        })
    }
}

/// The addresses of private servers.
pub fn addresses(servers: &Servers) -> anyhow::Result<Addresses> {
    Given { database: None, redis: None, nats: None }.or_private(servers)
}

async fn serve(
    args: Args,
    key: OperatorKey,
    front: Front,
    egress: Option<EgressProxy>,
    (addresses, keys, is_private): (Addresses, SealingKeys, bool),
    nats_port: Option<u16>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let pod = relay_runtime::pod::name();
    let database = addresses.database_url.expose_secret();
    let Some(()) = migrate::when_there(database, &shutdown.soft()).await? else { return Ok(()) };
    let Some(links) =
        Links::connect(&addresses, Access::Secrets(keys), "webhook-relay", &pod, &shutdown.soft()).await?
    else {
        return Ok(());
    };

    if is_private {
        encrypt_stored(&links.store).await.context("encrypting stored secrets")?;
    }
    let state_dir = args.ingest.state_dir.clone().or_else(|| Some(args.private.data_dir.join("state")));
    let guard = links.guard(args.ingest.listen, key)?;
    let open = guard.is_open();
    let scheme = front.scheme();
    let is_proxied = egress.is_some();
    let settings = Settings {
        dispatcher: dispatcher::Config { payload_bytes_max: args.ingest.payload_bytes_max, ..args.dispatcher },
        deliverer: deliverer::Config { allow_networks: args.ingest.allow_networks.clone(), ..args.deliverer },
        egress,
        dlq_manager: dlq_manager::Config { listen: args.ingest.listen, retention: args.retention },
        ingest: ingest::Config { state_dir, ..args.ingest },
        guard,
        front,
    };
    let address = all::start(settings, &links, &pod, &shutdown).await?;
    let interface = format!("{scheme}://{address}");
    let soft = shutdown.soft();
    let check = async {
        if is_proxied {
            println!("self-check: left out, since deliveries leave through a proxy, which can't reach a receiver here");
            return welcome(&interface, nats_port, open);
        }
        match soft.run_until_cancelled(Box::pin(self_check::run(&links))).await {
            Some(Ok(took)) => {
                println!("self-check: accepted -> delivered and verified in {:.1} ms", took.as_secs_f64() * 1000.0);
                welcome(&interface, nats_port, open);
            }
            Some(Err(error)) => tracing::error!("the self-check failed: {error:#}"),
            None => {}
        }
    };
    let (outcome, ()) = tokio::join!(shutdown.finish(), check);
    Ok(outcome?)
}

/// Encrypts with the first key what was stored before it came in. What can't be opened is held, and said by the directory.
async fn encrypt_stored(store: &Store) -> anyhow::Result<()> {
    let done = store.reseal_all().await?;
    if done.encrypted + done.rotated > 0 {
        tracing::info!(encrypted = done.encrypted, rotated = done.rotated, "stored secrets were encrypted");
    }
    Ok(())
}

/// Says where everything is, and how to begin.
fn welcome(interface: &str, nats_port: Option<u16>, open: bool) {
    let key = if open { "" } else { " \\\n    -H \"Authorization: Bearer $RELAY_API_KEY\"" };
    println!(
        "
WebhookRelay is up.
  interface   {interface}/api/v1      (document: {interface}/openapi.json)
  health      {interface}/health/ready
  metrics     {interface}/metrics"
    );
    if let Some(port) = nats_port {
        println!("  NATS        nats://127.0.0.1:{port}          publish on relay.events.default.<event type>");
    }
    if open {
        println!("  access      open to this machine, without a key");
    }
    println!("  networks    deliveries to 127.0.0.0/8 are allowed (other private networks: --allow-network)");
    println!(
        "
Try it: start a receiver with  python3 examples/receiver.py 9000  and then

  curl -s -X POST {interface}/api/v1/endpoints{key} \\
    -H 'Content-Type: application/json' \\
    -d '{{\"name\": \"My Service\", \"url\": \"http://127.0.0.1:9000/hooks\"}}'

  curl -s -X POST {interface}/api/v1/events{key} \\
    -H 'Content-Type: application/json' \\
    -d '{{\"event_type\": \"order.created\", \"payload\": {{\"order_id\": 42, \"total\": 99.99}}}}'

Ctrl-C stops everything; the next start finds the data again."
    );
}
