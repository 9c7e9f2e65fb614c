//! The wiring of a process: opens the three adapters, keeps directory, circuits and clock up to date, and says how they
//! are. Called by every main; the only library that knows all adapters and the runtime.

mod keys;

use std::net::SocketAddr;
use std::sync::Arc;

use relay_bus::{Bus, BusOptions};
use relay_circuit::Circuits;
use relay_core::ids::TenantId;
use relay_core::sealing::SealingKeys;
use relay_core::subject::HINT_DIRECTORY;
use relay_runtime::auth::{AuthError, Guard, OperatorKey};
use relay_runtime::clock::{Clock, FOLLOW_INTERVAL};
use relay_runtime::flags::{DatabaseFlags, FlagError, NatsFlags, RedisFlags, SecretsFlags};
use relay_runtime::health::Health;
use relay_runtime::metrics::Metrics;
use relay_runtime::random;
use relay_runtime::reconnect::retry;
use relay_runtime::shutdown::Group;
use relay_store::{Directory, DirectorySnapshot, Sealer, Store, StoreOptions};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

pub use self::keys::Keys;

/// Where the servers are; passwords inside.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// PostgreSQL.
    pub database_url: SecretString,
    /// Redis.
    pub redis_url: SecretString,
    /// NATS.
    pub nats_url: SecretString,
}

/// Whether a process may know the secrets of endpoints.
pub enum Access {
    /// It signs, or makes them: with these keys.
    Secrets(SealingKeys),
    /// It has no use for them, so it doesn't get them.
    NoSecrets,
}

impl Access {
    /// By a service's flags.
    ///
    /// # Errors
    /// The keys can't be read.
    pub fn from_flags(flags: &SecretsFlags) -> Result<Self, FlagError> {
        Ok(Self::Secrets(flags.keys()?))
    }

    /// Options of a ledger with this access. Says it where secrets will stand there as they are.
    pub fn options(self, name: &str) -> StoreOptions {
        let options = StoreOptions::new(name);
        let Self::Secrets(keys) = self else { return options };
        match keys.ids().next() {
            Some(key) => tracing::info!(%key, others = keys.ids().count() - 1, "secrets are encrypted in the database"),
            None => tracing::warn!(
                "no key is set: signing secrets and secret headers are stored as plain text (webhook-relay secrets \
                 generate makes a key, --secrets-key-file or RELAY_SECRETS_KEY sets it)"
            ),
        }
        options.with_secrets(Sealer::new(keys, random::bytes12))
    }
}

impl Addresses {
    /// From a service's flags.
    ///
    /// # Errors
    /// One is missing.
    pub fn from_flags(database: &DatabaseFlags, redis: &RedisFlags, nats: &NatsFlags) -> Result<Self, FlagError> {
        Ok(Self { database_url: database.url()?, redis_url: redis.url()?, nats_url: nats.url()? })
    }
}

/// What a service works with. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    /// Postgres.
    pub store: Store,
    /// Tenants, endpoints and API keys in memory.
    pub directory: Directory,
    /// Who may call.
    pub keys: Keys,
    /// NATS.
    pub bus: Bus,
    /// Who may be sent to.
    pub circuits: Circuits,
    /// The time.
    pub clock: Clock,
}

impl Links {
    /// Opens everything, waiting for servers that aren't there yet; `None` when `stop` fired first. `name` is how the
    /// process shows itself to the servers, `pod` how it signs what it records.
    ///
    /// # Errors
    /// An address can't be read.
    pub async fn connect(
        addresses: &Addresses,
        access: Access,
        name: &str,
        pod: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let url = addresses.database_url.expose_secret();
        // Both are only parsed here: an address that can't be read is not worth waiting for.
        let store = Store::lazy(url, access.options(name))?;
        let circuits = Circuits::connect(addresses.redis_url.expose_secret(), pod.to_owned())?;
        let Some(()) = retry("PostgreSQL", url, || store.probe(), stop).await else { return Ok(None) };
        Self::with_store(store, circuits, addresses, name, stop).await
    }

    /// The same, not waiting for PostgreSQL: an ingest accepts without it.
    ///
    /// # Errors
    /// An address can't be read.
    pub async fn connect_without_database(
        addresses: &Addresses,
        access: Access,
        name: &str,
        pod: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let store = Store::lazy(addresses.database_url.expose_secret(), access.options(name))?;
        let circuits = Circuits::connect(addresses.redis_url.expose_secret(), pod.to_owned())?;
        Self::with_store(store, circuits, addresses, name, stop).await
    }

    async fn with_store(
        store: Store,
        circuits: Circuits,
        addresses: &Addresses,
        name: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let url = addresses.nats_url.expose_secret();
        let connect = || Bus::connect(BusOptions { url: url.to_owned(), name: name.to_owned() });
        let Some(bus) = retry("NATS", url, connect, stop).await else { return Ok(None) };
        let directory = Directory::empty(store.clone());
        if let Err(error) = directory.refresh_all().await {
            tracing::warn!(%error, "the directory can't be read yet; it is read as soon as it can");
        }
        let keys = Keys::new(directory.clone(), store.clone());
        Ok(Some(Self { store, directory, keys, bus, circuits, clock: Clock::system() }))
    }

    /// The guard of an interface at `listen`.
    ///
    /// # Errors
    /// It would be open to other machines.
    pub fn guard(&self, listen: SocketAddr, operator: OperatorKey) -> Result<Guard, AuthError> {
        Guard::new(listen, operator, Arc::new(self.keys.clone()), self.clock.clone())
    }

    /// Keeps directory, circuits and clock up to date until the group stops: it belongs behind all groups that work.
    pub fn run_background(&self, group: &Group) {
        group.spawn("directory", self.directory.clone().run(group.stop()));
        group.spawn("keys", self.keys.clone().run(group.stop()));
        group.spawn("circuits", self.circuits.clone().run(group.stop()));
        group.spawn("hints", listen(self.bus.clone(), self.directory.clone(), group.stop()));
        let store = self.store.clone();
        let ask = move || {
            let store = store.clone();
            async move { store.clock().await }
        };
        group.spawn("clock", self.clock.clone().follow(ask, FOLLOW_INTERVAL, group.stop()));
    }

    /// The checks of a service that needs PostgreSQL and NATS. Redis is not among them: delivery goes on without it.
    pub fn health(&self, metrics: Metrics, stopping: CancellationToken) -> Health {
        let health = Health::new(metrics, stopping);
        self.register(&health);
        health
    }

    /// Adds those checks.
    pub fn register(&self, health: &Health) {
        let store = self.store.clone();
        health.register("database", move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|e| e.to_string()) }
        });
        let bus = self.bus.clone();
        health.register("nats", move || {
            let bus = bus.clone();
            async move { bus.ping().await.map_err(|e| e.to_string()) }
        });
        let clock = self.clock.clone();
        health.register("clock", move || std::future::ready(clock.check()));
    }

    /// Adds the check of a service that signs: it has the keys of all active endpoints' secrets. What it can't sign
    /// waits; a rollout that forgot a key stops here.
    pub fn check_secrets(&self, health: &Health) {
        let directory = self.directory.clone();
        health.register("secrets", move || std::future::ready(has_all_keys(&directory.snapshot())));
    }

    /// Says loudly what the servers don't promise.
    pub async fn check_durability(&self) {
        match self.store.durability().await {
            Ok(d) if d.fsync && d.full_page_writes && d.synchronous_commit => {}
            Ok(d) => tracing::error!(
                fsync = d.fsync,
                full_page_writes = d.full_page_writes,
                synchronous_commit = d.synchronous_commit,
                "PostgreSQL is not set to survive a power cut: what it acknowledged can be lost"
            ),
            Err(error) => tracing::warn!(%error, "PostgreSQL's durability settings can't be read"),
        }
        match self.bus.durability().await {
            Ok(d) if d.duplicate_window_zero && d.sync_always != Some(false) => {}
            Ok(d) => tracing::error!(
                sync_always = ?d.sync_always,
                duplicate_window_zero = d.duplicate_window_zero,
                "NATS is not set as it must be: accepted events can be lost in a power cut, or to de-duplication"
            ),
            Err(error) => tracing::warn!(%error, "the durability settings of NATS can't be read"),
        }
    }
}

fn has_all_keys(snapshot: &DirectorySnapshot) -> Result<(), String> {
    let missing = snapshot.missing_keys().into_iter();
    let missing: Vec<_> =
        missing.map(|(key, endpoints)| format!("key {key} is missing for {endpoints} endpoints")).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{}; their deliveries wait", missing.join(", "))) }
}

/// Hears of changed directories.
async fn listen(bus: Bus, directory: Directory, stop: CancellationToken) {
    let mut hints = bus.subscribe_hints(HINT_DIRECTORY);
    while let Some(Some(body)) = stop.run_until_cancelled(hints.recv()).await {
        if let Ok(tenant) = std::str::from_utf8(&body) {
            directory.hint(TenantId::trusted(tenant));
        }
    }
}
