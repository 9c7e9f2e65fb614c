//! A deliverer against real PostgreSQL, NATS and Redis, and a receiver that answers as the test wants.

#![expect(clippy::unwrap_used, reason = "in a test a failed step ends it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use deliverer::{Config, Deliverer, Links};
use relay_bus::{Bus, BusOptions, Topology};
use relay_circuit::Circuits;
use relay_core::breaker::CircuitRule;
use relay_core::delivery::Status;
use relay_core::endpoint::{Endpoint, RetrySettings};
use relay_core::event::{Event, EventType};
use relay_core::ids::{EndpointId, EventId, TenantId, uuid_v7};
use relay_core::job::{self, Job};
use relay_core::matching::TypeFilter;
use relay_core::protocol::{PlannedDelivery, PlannedEvent};
use relay_core::sealing::SealingKeys;
use relay_core::signature::{Schemes, SigningSecret, verify_inbound};
use relay_core::subject::Lane;
use relay_runtime::clock::Clock;
use relay_runtime::random;
use relay_store::{Directory, EventView, NewEndpoint, Sealer, Store, StoreOptions};
use relay_testkit::{ServerKind, TestServers};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything takes that works.
const DEADLINE: Duration = Duration::from_secs(30);

/// A request as the receiver saw it.
struct Received {
    signature: Vec<u8>,
    id: String,
    body: Bytes,
}

/// A receiver whose answer can be changed; status 0 means no answer at all.
struct Receiver {
    url: String,
    status: Arc<AtomicU16>,
    requests: Arc<AtomicUsize>,
    received: mpsc::UnboundedReceiver<Received>,
}

impl Receiver {
    async fn start() -> Self {
        let (status, requests) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (sender, received) = mpsc::unbounded_channel();
        let (answer, count) = (Arc::clone(&status), Arc::clone(&requests));
        let hook = move |headers: axum::http::HeaderMap, body: Bytes| {
            count.fetch_add(1, Ordering::SeqCst);
            let header = |name: &str| headers.get(name).map(|v| v.as_bytes().to_vec()).unwrap_or_default();
            let id = String::from_utf8(header("webhook-id")).unwrap();
            let _ = sender.send(Received { signature: header("x-webhook-signature"), id, body });
            let code = answer.load(Ordering::SeqCst);
            async move {
                if code == 0 {
                    std::future::pending::<()>().await;
                }
                axum::http::StatusCode::from_u16(code).unwrap()
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/hook", axum::routing::post(hook));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, status, requests, received }
    }

    async fn next(&mut self) -> Received {
        tokio::time::timeout(DEADLINE, self.received.recv()).await.expect("a request in time").unwrap()
    }
}

struct World {
    links: Links,
    receiver: Receiver,
    endpoint: Endpoint,
    stop: CancellationToken,
    running: JoinHandle<()>,
    _servers: TestServers,
}

impl World {
    async fn start() -> Self {
        let servers = TestServers::start(&[ServerKind::Postgres, ServerKind::Redis, ServerKind::Nats]).unwrap();
        let options = StoreOptions::new("deliverer-test");
        let options = options.with_secrets(Sealer::new(SealingKeys::default(), random::bytes12));
        let store = Store::connect(&servers.database(), options).await.unwrap();
        store.migrate().await.unwrap();
        let bus = Bus::connect(BusOptions { url: servers.nats(), name: "deliverer-test".to_owned() }).await.unwrap();
        bus.declare(&Topology::default()).await.unwrap();
        let circuits = Circuits::connect(&servers.redis(), "pod-1".to_owned()).unwrap();
        let receiver = Receiver::start().await;
        let clock = Clock::system();
        let endpoint = store
            .create_endpoint(&NewEndpoint {
                id: EndpointId(uuid_v7(clock.now(), random::bytes10())),
                tenant: TenantId::default_tenant(),
                name: "test".to_owned(),
                url: receiver.url.clone(),
                filter: TypeFilter::parse(&[]).unwrap(),
                custom_headers: BTreeMap::new(),
                retry: RetrySettings { schedule_seconds: Some(vec![3600]), ..RetrySettings::default() },
                timeout: Duration::from_secs(20),
                circuit: CircuitRule { threshold: 2, ..CircuitRule::default() },
                rate_limit: None,
                schemes: Schemes::default(),
                key: None,
                secret: SigningSecret::generate([7; 32]),
                is_active: true,
            })
            .await
            .unwrap()
            .unwrap();
        let directory = Directory::load(store.clone()).await.unwrap();
        let keys = relay_links::Keys::new(directory.clone(), store.clone());
        let links = Links { store, directory, keys, bus, circuits, clock };
        let (stop, running) = deliver(&links).await;
        Self { links, receiver, endpoint, stop, running, _servers: servers }
    }

    /// An event that is stored and leased, and its job.
    async fn store_event(&self) -> Job {
        let now = self.links.clock.now();
        let event = Event {
            id: EventId::fresh(now, random::bytes10()),
            tenant: TenantId::default_tenant(),
            event_type: EventType::parse("order.created").unwrap(),
            endpoint: None,
            key: None,
            accepted_at: now,
            trace: None,
            payload: Bytes::from_static(br#"{ "order_id": 42 }"#),
        };
        let version = self.links.directory.snapshot().version(&event.tenant).unwrap();
        let delivery = PlannedDelivery {
            endpoint: self.endpoint.id,
            leased: true,
            lease: self.endpoint.lease(),
            lane: Lane::Fresh,
        };
        let planned = PlannedEvent {
            event: event.clone(),
            aliases: Vec::new(),
            directory_version: version,
            deliveries: vec![delivery],
            dead: None,
        };
        let dispatched = self.links.store.dispatch(&[planned]).await.unwrap();
        job_of(event, self.endpoint.id, version, dispatched.now)
    }

    async fn publish(&self, jobs: &[Job]) {
        self.links.bus.publish_jobs(Lane::Fresh, job::encode(jobs)).await.unwrap();
    }

    /// The event once `reached` says so.
    async fn event(&self, event: EventId, reached: impl Fn(&EventView) -> bool) -> EventView {
        let wait = async {
            loop {
                let view = self.links.store.event_view(&TenantId::default_tenant(), event).await.unwrap();
                if let Some(view) = view
                    && reached(&view)
                {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("the event got there in time")
    }

    /// Waits until JetStream holds nothing that isn't acked.
    async fn all_acked(&self) {
        let wait = async {
            loop {
                let lag = self.links.bus.jobs_lag(Lane::Fresh).await.unwrap();
                if lag.pending == 0 && lag.ack_pending == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("the jobs were acked in time");
    }
}

fn job_of(event: Event, endpoint: EndpointId, directory_version: i64, claimed_at: DateTime<Utc>) -> Job {
    Job {
        event: event.id,
        endpoint,
        tenant: event.tenant,
        event_type: event.event_type,
        claim: 1,
        attempts: 0,
        base: 0,
        claimed_at,
        accepted_at: event.accepted_at,
        directory_version,
        probe: false,
        trace: None,
        payload: Some(event.payload),
    }
}

async fn deliver(links: &Links) -> (CancellationToken, JoinHandle<()>) {
    let config = Config {
        in_flight_max: 64,
        endpoint_in_flight_max: 64,
        jobs_held_max: 4096,
        jobs_held_bytes_max: 64 * 1024 * 1024,
        allow_networks: vec!["127.0.0.0/8".parse().unwrap()],
        egress_proxy: None,
        in_flight_grace_seconds: 0,
    };
    let deliverer = Deliverer::start(config, None, links.clone(), "pod-1".to_owned()).await.unwrap();
    let (stop, hard) = (CancellationToken::new(), CancellationToken::new());
    let running = tokio::spawn(deliverer.run(stop.clone(), hard));
    (stop, running)
}

fn status(view: &EventView) -> Status {
    view.deliveries[0].status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_signed_sent_recorded_and_acked() {
    let mut world = World::start().await;
    let jobs = [world.store_event().await, world.store_event().await, world.store_event().await];
    world.publish(&jobs).await;
    let now = world.links.clock.now().timestamp();
    let secret = world.endpoint.secrets.as_ref().unwrap().current.expose().to_owned();
    for _ in &jobs {
        let request = world.receiver.next().await;
        assert!(jobs.iter().any(|job| job.event.to_string() == request.id));
        assert_eq!(&request.body[..], br#"{ "order_id": 42 }"#);
        assert!(verify_inbound(&request.signature, &secret, &request.body, now).valid);
    }
    for job in &jobs {
        let view = world.event(job.event, |view| status(view) == Status::Delivered).await;
        assert_eq!(view.attempts.len(), 1);
        assert_eq!((view.attempts[0].number, view.attempts[0].http_status), (1, Some(200)));
    }
    world.all_acked().await;

    // A copy of a job that is done: the check finds nothing to take, and nothing is sent.
    let sent = world.receiver.requests.load(Ordering::SeqCst);
    world.publish(&jobs[..1]).await;
    world.all_acked().await;
    assert_eq!(world.receiver.requests.load(Ordering::SeqCst), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_scheduled_and_open_the_circuit_and_what_comes_then_is_handed_back() {
    let world = World::start().await;
    world.receiver.status.store(500, Ordering::SeqCst);
    for _ in 0..2 {
        let job = world.store_event().await;
        world.publish(std::slice::from_ref(&job)).await;
        let view = world.event(job.event, |view| status(view) == Status::Failed).await;
        assert_eq!((view.deliveries[0].attempts, view.deliveries[0].last_status), (1, Some(500)));
        assert!(view.deliveries[0].next_retry_at.unwrap() > world.links.clock.now() + chrono::Duration::minutes(50));
    }
    let held = world.store_event().await;
    world.publish(std::slice::from_ref(&held)).await;
    let view = world.event(held.event, |view| status(view) == Status::Pending).await;
    assert_eq!((view.deliveries[0].attempts, view.attempts.len()), (0, 0));
    assert_eq!(world.receiver.requests.load(Ordering::SeqCst), 2);
    world.all_acked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_becomes_a_dead_letter_and_410_deactivates_the_endpoint() {
    let world = World::start().await;
    world.receiver.status.store(404, Ordering::SeqCst);
    let refused = world.store_event().await;
    world.publish(std::slice::from_ref(&refused)).await;
    world.event(refused.event, |view| status(view) == Status::DeadLettered).await;

    world.receiver.status.store(410, Ordering::SeqCst);
    let gone = world.store_event().await;
    world.publish(std::slice::from_ref(&gone)).await;
    world.event(gone.event, |view| status(view) == Status::DeadLettered).await;
    let endpoint = world.links.store.get_endpoint(&TenantId::default_tenant(), world.endpoint.id).await.unwrap();
    assert!(!endpoint.unwrap().is_active);
    world.all_acked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_end_a_pod_records_what_it_cut_short_and_hands_it_back() {
    let mut world = World::start().await;
    world.receiver.status.store(0, Ordering::SeqCst);
    let hanging = world.store_event().await;
    world.publish(std::slice::from_ref(&hanging)).await;
    world.receiver.next().await;
    world.stop.cancel();
    tokio::time::timeout(DEADLINE, &mut world.running).await.expect("it ended in time").unwrap();
    let view = world.event(hanging.event, |view| status(view) == Status::Pending).await;
    assert_eq!(view.deliveries[0].attempts, 0);
    assert_eq!(view.attempts[0].error_class.as_deref(), Some("aborted_by_shutdown"));
    world.all_acked().await;
}
