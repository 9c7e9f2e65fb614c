use std::time::Duration;

use relay_core::endpoint::{Endpoint, PreviousSecrets};
use relay_core::ids::{EndpointId, TenantId};
use relay_core::matching::TypeFilter;
use relay_core::page::PageRequest;
use relay_core::rate::RateLimit;
use relay_core::signature::{Schemes, SigningKey, SigningSecret};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::{Ledger, tenant};
use crate::{Directory, EndpointChange, Window};

fn ids(
    endpoints: impl IntoIterator<Item = impl std::ops::Deref<Target = std::sync::Arc<Endpoint>>>,
) -> Vec<EndpointId> {
    endpoints.into_iter().map(|e| e.id).collect()
}

#[sqlx::test(migrations = "../../migrations")]
async fn changes_arrive_and_decide_the_matching(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let directory = Directory::load(ledger.store.clone()).await.unwrap();
    assert!(directory.age().is_some());
    assert_eq!(directory.snapshot().version(&TenantId::trusted("nobody")), None);
    let all = ledger.endpoint().await;
    let exact = ledger.endpoint_with(&["order.created", "order.created", "order.paid"]).await;
    let wild = ledger.endpoint_with(&["order.*", "x"]).await;
    directory.refresh(&tenant()).await.unwrap();
    let snapshot = directory.snapshot();
    assert_eq!(snapshot.version(&tenant()), Some(ledger.version().await));
    let mut matched = ids(snapshot.matching(&tenant(), "order.created"));
    matched.sort();
    let mut expected = vec![all.id, exact.id, wild.id];
    expected.sort();
    assert_eq!(matched, expected, "each once");
    assert_eq!(ids(snapshot.matching(&tenant(), "x.y")), [all.id]);
    assert_eq!(snapshot.endpoints_of(&tenant()).len(), 3);
    assert_eq!(snapshot.endpoint(exact.id).unwrap().custom_headers["X-Team"], "blue");
    assert_eq!(snapshot.endpoint(exact.id).unwrap().retry, exact.retry);

    // Changed, deactivated, rotated; an unchanged field stays.
    let change = EndpointChange {
        filter: Some(TypeFilter::parse(&["other".to_owned()]).unwrap()),
        schedule_seconds: Some(None),
        paused: Some(true),
        ..EndpointChange::default()
    };
    let changed = ledger.update_endpoint(&tenant(), exact.id, &change).await.unwrap().unwrap();
    assert_eq!((changed.paused, changed.retry.schedule_seconds, changed.name), (true, None, "test".to_owned()));
    let limited = |limit| EndpointChange { rate_limit: limit, ..EndpointChange::default() };
    let limit = Some(RateLimit { per_second: 2.5, burst: 7 });
    for (change, expected) in [(Some(limit), limit), (None, limit), (Some(None), None)] {
        let changed = ledger.update_endpoint(&tenant(), exact.id, &limited(change)).await.unwrap().unwrap();
        assert_eq!(changed.rate_limit, expected);
    }
    assert!(ledger.deactivate_endpoint(&tenant(), all.id).await.unwrap());
    let secret = SigningSecret::trusted("whsec_fedcba9876543210".to_owned());
    let key = SigningKey::generate([1; 32]);
    let rotated =
        ledger.rotate_secret(&tenant(), wild.id, &secret, &key, Duration::from_secs(60)).await.unwrap().unwrap();
    assert!(rotated.secrets.as_ref().unwrap().key.is_none(), "a key pair only where there was one");
    let PreviousSecrets { secret: previous, until, .. } = rotated.secrets.as_ref().unwrap().previous.clone().unwrap();
    assert_eq!(
        (previous.expose(), rotated.secrets.as_ref().unwrap().current.expose()),
        ("whsec_0123456789abcdef", "whsec_fedcba9876543210")
    );
    assert!(until > ledger.now);
    directory.refresh_all().await.unwrap();
    assert_eq!(ids(directory.snapshot().matching(&tenant(), "order.created")), [wild.id]);
    assert_eq!(ids(directory.snapshot().matching(&tenant(), "other")), [exact.id]);
    assert!(ledger.end_overlap(&tenant(), wild.id).await.unwrap());
    assert!(
        ledger.get_endpoint(&tenant(), wild.id).await.unwrap().unwrap().secrets.as_ref().unwrap().previous.is_none()
    );

    // Other tenants can't touch them.
    let nobody = TenantId::trusted("nobody");
    assert!(ledger.update_endpoint(&nobody, wild.id, &EndpointChange::default()).await.unwrap().is_none());
    assert!(ledger.get_endpoint(&nobody, wild.id).await.unwrap().is_none());
    let listed = ledger.list_endpoints(&tenant(), Some(true), &Window::page(PageRequest::default())).await.unwrap();
    assert_eq!((listed.items.len(), listed.total), (2, Some(2)));
    assert_eq!(ledger.count_active_endpoints(&tenant()).await.unwrap(), 2);
    assert!(ledger.create_tenant(&TenantId::trusted("acme")).await.unwrap().1);
    assert!(!ledger.create_tenant(&TenantId::trusted("acme")).await.unwrap().1);
    assert_eq!(ledger.list_tenants(&Window::page(PageRequest::default())).await.unwrap().total, Some(2));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_cold_start_knows_the_last_directory_without_secrets(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint_with(&["order.*"]).await;
    let directory = Directory::load(ledger.store.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.json");
    directory.save_to(&path).await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("whsec_"), "{text}");

    let cold = Directory::empty(ledger.store.clone());
    cold.load_from(&path).await.unwrap();
    assert_eq!(cold.age(), None);
    assert_eq!(ids(cold.snapshot().matching(&tenant(), "order.created")), [endpoint.id]);
    assert_eq!(cold.snapshot().version(&tenant()), directory.snapshot().version(&tenant()));
    // As soon as Postgres answers, everything is read, the secrets too.
    cold.refresh_all().await.unwrap();
    assert_eq!(
        cold.snapshot().endpoint(endpoint.id).unwrap().secrets.as_ref().unwrap().current.expose(),
        "whsec_0123456789abcdef"
    );
    // A file never replaces what was read.
    cold.load_from(&path).await.unwrap();
    assert_eq!(
        cold.snapshot().endpoint(endpoint.id).unwrap().secrets.as_ref().unwrap().current.expose(),
        "whsec_0123456789abcdef"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_poll_and_a_hint_find_changes_and_a_restored_database_is_read_again(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let directory = Directory::load(ledger.store.clone()).await.unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(directory.clone().run(stop.clone()));
    let endpoint = ledger.endpoint().await;
    directory.hint(tenant());
    wait_until(|| directory.snapshot().endpoint(endpoint.id).is_some()).await;
    let second = ledger.endpoint().await;
    wait_until(|| directory.snapshot().endpoint(second.id).is_some()).await;
    // Restored to an older state: one endpoint less, a lower version.
    sqlx::query("delete from endpoints where id = $1").bind(second.id.0).execute(&ledger.pool).await.unwrap();
    sqlx::query("update tenants set directory_version = 2 where id = 'default'").execute(&ledger.pool).await.unwrap();
    wait_until(|| directory.snapshot().endpoint(second.id).is_none()).await;
    assert!(directory.snapshot().endpoint(endpoint.id).is_some());
    stop.cancel();
    running.await.unwrap();
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it never came");
}

#[sqlx::test(migrations = "../../migrations")]
async fn schemes_and_keys_are_stored_and_rotated(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    assert_eq!(endpoint.schemes, Schemes::default());
    let schemes = Schemes::parse(&["standard-v1a"]).unwrap();
    let (first, second, third) =
        (SigningKey::generate([1; 32]), SigningKey::generate([2; 32]), SigningKey::generate([3; 32]));
    let choose = |key: &SigningKey| EndpointChange {
        schemes: Some(schemes),
        key: Some(key.clone()),
        ..EndpointChange::default()
    };
    let public = |endpoint: &Endpoint| endpoint.secrets.as_ref().unwrap().key.as_ref().map(SigningKey::public);
    let changed = ledger.update_endpoint(&tenant(), endpoint.id, &choose(&first)).await.unwrap().unwrap();
    assert_eq!((changed.schemes, public(&changed)), (schemes, Some(first.public())));
    let again = ledger.update_endpoint(&tenant(), endpoint.id, &choose(&second)).await.unwrap().unwrap();
    assert_eq!(public(&again), Some(first.public()), "the pair that it has stays");

    let secret = SigningSecret::generate([4; 32]);
    let rotate = async |key, overlap| {
        ledger.rotate_secret(&tenant(), endpoint.id, &secret, key, overlap).await.unwrap().unwrap()
    };
    let rotated = rotate(&third, Duration::from_secs(60)).await;
    assert_eq!(public(&rotated), Some(third.public()));
    let previous = rotated.secrets.as_ref().unwrap().previous.clone().unwrap();
    assert_eq!(previous.key.unwrap().public(), first.public());
    assert!(ledger.end_overlap(&tenant(), endpoint.id).await.unwrap());
    assert!(
        ledger
            .get_endpoint(&tenant(), endpoint.id)
            .await
            .unwrap()
            .unwrap()
            .secrets
            .as_ref()
            .unwrap()
            .previous
            .is_none()
    );
    let rotated = rotate(&second, Duration::ZERO).await;
    assert_eq!(public(&rotated), Some(second.public()));
    assert!(rotated.secrets.as_ref().unwrap().previous.is_none());
}
