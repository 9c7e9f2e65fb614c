//! All four services in one process, on one listener. They stop in the order of the flow, so that what the one still
//! hands on the next one still takes.

use std::net::SocketAddr;

use deliverer::{Deliverer, EgressProxy};
use dispatcher::Dispatcher;
use dlq_manager::DlqManager;
use ingest::Ingest;
use relay_links::Links;
use relay_runtime::auth::Guard;
use relay_runtime::http::{self, Bodies, Front};
use relay_runtime::shutdown::Shutdown;

/// Settings of the services.
pub struct Settings {
    /// Of ingest; its address is the interface's.
    pub ingest: ingest::Config,
    /// Of the dispatcher.
    pub dispatcher: dispatcher::Config,
    /// Of the deliverer.
    pub deliverer: deliverer::Config,
    /// The proxy through which deliveries leave.
    pub egress: Option<EgressProxy>,
    /// Of the dead-letter manager.
    pub dlq_manager: dlq_manager::Config,
    /// Who may call.
    pub guard: Guard,
    /// What stands in front of the listener.
    pub front: Front,
}

/// Starts everything; when it returns, the interface is served at the address that it answers. The parts are groups of
/// `shutdown`: [`Shutdown::finish`] ends them in order.
pub async fn start(settings: Settings, links: &Links, pod: &str, shutdown: &Shutdown) -> anyhow::Result<SocketAddr> {
    let Settings { ingest, dispatcher, deliverer, egress, dlq_manager, guard, front } = settings;
    let listen = ingest.listen;
    let (body_max, bodies_max) = (ingest.body_bytes_max(), ingest.bodies_bytes_max);
    let listener = http::bind(listen).await?;
    let address = listener.local_addr()?;
    let metrics = relay_runtime::metrics::install()?;

    let dispatcher = Dispatcher::start(dispatcher, links.clone(), pod.to_owned()).await?;
    links.check_durability().await;
    let deliverer = Deliverer::start(deliverer, egress, links.clone(), pod.to_owned()).await?;
    let dlq_manager = DlqManager::start(dlq_manager, links.clone(), pod.to_owned()).await?;
    let ingest = Ingest::start(ingest, links.clone()).await?;
    let routes = ingest::base().merge(ingest.router()).merge(dlq_manager.router());
    let router = ingest::with_document(routes, guard, &Bodies::new(bodies_max));
    // Probes need no key.
    let health = links.health(metrics.clone(), shutdown.soft());
    let router = http::layers(router.merge(health.router()), body_max);

    // In the order in which they end.
    let interface = shutdown.group("interface");
    interface.spawn("listener", http::serve_behind(front, listener, router, interface.stop()));
    let group = shutdown.group("ingest");
    group.spawn("work", ingest.run(group.stop()));
    let group = shutdown.group("dispatcher");
    group.spawn("work", dispatcher.run(group.stop()));
    let group = shutdown.group("deliverer");
    group.spawn("work", deliverer.run(group.stop(), shutdown.hard()));
    let group = shutdown.group("dlq-manager");
    group.spawn("work", dlq_manager.run(group.stop()));
    let group = shutdown.group("background");
    links.run_background(&group);
    group.spawn("metrics", metrics.upkeep(group.stop()));
    Ok(address)
}
