//! The self-check of `up`: one event through the whole pipeline to a receiver of its own, which verifies the signature.
//! It runs in the system's own tenant, so nothing of it is seen in the user's lists.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use relay_core::breaker::CircuitRule;
use relay_core::bundle::BundleWriter;
use relay_core::endpoint::{Endpoint, RetrySettings};
use relay_core::event::{Event, EventType};
use relay_core::ids::{EndpointId, EventId, TenantId, uuid_v7};
use relay_core::matching::TypeFilter;
use relay_core::page::PageRequest;
use relay_core::signature::{Schemes, SigningSecret, verify_inbound};
use relay_links::Links;
use relay_runtime::random;
use relay_store::{EndpointChange, NewEndpoint, Window};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the event may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The event's type.
const EVENT_TYPE: &str = "relay.self_check";

/// Sends the event; how long it took from accepted to delivered.
pub async fn run(links: &Links) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/self-check", listener.local_addr()?);
    let (sender, receipts) = mpsc::channel::<(HeaderMap, Bytes)>(8);
    let router = Router::new().route(
        "/self-check",
        post(move |headers: HeaderMap, body: Bytes| async move {
            let _ = sender.send((headers, body)).await;
            StatusCode::OK
        }),
    );
    let receiver = CancellationToken::new();
    let serving = relay_runtime::http::serve(listener, router, receiver.clone());
    let check = async {
        let took = send(links, url, receipts).await;
        receiver.cancel();
        took
    };
    tokio::join!(serving, check).1
}

async fn send(
    links: &Links,
    url: String,
    mut receipts: mpsc::Receiver<(HeaderMap, Bytes)>,
) -> anyhow::Result<Duration> {
    let endpoint = endpoint(links, url).await?;
    let secrets = endpoint.secrets.as_ref().map_err(|why| *why).context("the self-check's endpoint")?;

    let now = links.clock.now();
    let event = Event {
        id: EventId::fresh(now, random::bytes10()),
        tenant: TenantId::system(),
        event_type: EventType::trusted(EVENT_TYPE),
        endpoint: Some(endpoint.id),
        key: None,
        accepted_at: now,
        trace: None,
        payload: Bytes::from_static(br#"{"hello":"from webhook-relay"}"#),
    };
    let mut bundle = BundleWriter::default();
    bundle.push(&event);
    links.bus.publish_events(bundle.finish()).await.context("publishing the event")?;
    let accepted = Instant::now();
    let id = event.id.to_string();
    tokio::time::timeout(PATIENCE, async {
        // A retry of an earlier run's event may come first.
        while let Some((headers, body)) = receipts.recv().await {
            let header = |name: &str| headers.get(name).map(|v| v.as_bytes().to_vec()).unwrap_or_default();
            if header("webhook-id") != id.as_bytes() {
                continue;
            }
            let took = accepted.elapsed();
            let secret = secrets.current.expose();
            let verdict = verify_inbound(&header("x-webhook-signature"), secret, &body, links.clock.now().timestamp());
            if !verdict.valid {
                bail!("the signature is wrong: {}", verdict.error.unwrap_or_default());
            }
            return Ok(took);
        }
        bail!("the receiver ended")
    })
    .await
    .with_context(|| format!("nothing was delivered within {} s", PATIENCE.as_secs()))?
}

/// The check's endpoint: made once, pointed to the receiver of this run.
async fn endpoint(links: &Links, url: String) -> anyhow::Result<Endpoint> {
    let tenant = TenantId::system();
    let there = links.store.list_endpoints(&tenant, Some(true), &Window::page(PageRequest::default())).await?;
    if let Some(endpoint) = there.items.into_iter().next() {
        let change = EndpointChange { url: Some(url), ..EndpointChange::default() };
        let changed = links.store.update_endpoint(&tenant, endpoint.id, &change).await?;
        return changed.context("the self-check's endpoint is gone");
    }
    let new = NewEndpoint {
        id: EndpointId(uuid_v7(links.clock.now(), random::bytes10())),
        tenant: tenant.clone(),
        name: "self-check".to_owned(),
        url,
        filter: TypeFilter::parse(&[EVENT_TYPE.to_owned()])?,
        custom_headers: BTreeMap::new(),
        retry: RetrySettings { schedule_seconds: Some(vec![1]), ..RetrySettings::default() },
        timeout: Duration::from_secs(5),
        circuit: CircuitRule::default(),
        rate_limit: None,
        schemes: Schemes::default(),
        key: None,
        secret: SigningSecret::generate(random::bytes32()),
        is_active: true,
    };
    links.store.create_endpoint(&new).await?.context("the self-check's tenant is missing")
}
