//! Secrets at rest: what stands in the rows, who can read it, and the change of keys.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use relay_core::headers::GivenHeader;
use relay_core::sealing::{SealingKeyId, Withheld};
use relay_core::signature::{Schemes, SigningKey, SigningSecret};
use secrecy::ExposeSecret;
use sqlx::PgPool;

use super::{Ledger, sealer, tenant};
use crate::{Directory, EndpointChange, Resealed, Store};

const SECRETS: [&str; 4] = ["whsec_0123456789abcdef", "new-secret-0123456789", "sesame-one", "sesame-two"];

fn id_of(key: u8) -> SealingKeyId {
    sealer(&[key]).keys.ids().next().unwrap()
}

fn secret_header(value: &str) -> GivenHeader {
    GivenHeader::Secret(value.to_owned().into())
}

/// All rows as text.
async fn dump(pool: &PgPool) -> String {
    let rows: Vec<String> =
        sqlx::query_scalar("select row_to_json(e)::text from endpoints e order by e.id").fetch_all(pool).await.unwrap();
    rows.join("\n")
}

/// An endpoint with everything that is secret: two secrets, two key pairs, two headers.
async fn full(ledger: &Ledger, store: &Store) -> relay_core::endpoint::Endpoint {
    let made = Ledger { store: store.clone(), pool: ledger.pool.clone(), now: ledger.now }.endpoint().await;
    let headers = BTreeMap::from([
        ("X-Api-Key".to_owned(), secret_header("sesame-one")),
        ("X-Other".to_owned(), secret_header("sesame-two")),
        ("X-Team".to_owned(), GivenHeader::Plain("blue".to_owned())),
    ]);
    let change = EndpointChange {
        custom_headers: Some(headers),
        schemes: Some(Schemes::parse(&["standard-v1a"]).unwrap()),
        key: Some(SigningKey::generate([5; 32])),
        ..EndpointChange::default()
    };
    store.update_endpoint(&tenant(), made.id, &change).await.unwrap().unwrap();
    let secret = SigningSecret::trusted(SECRETS[1].to_owned());
    let key = SigningKey::generate([6; 32]);
    store.rotate_secret(&tenant(), made.id, &secret, &key, Duration::from_secs(600)).await.unwrap().unwrap()
}

fn assert_full(endpoint: &relay_core::endpoint::Endpoint) {
    let secrets = endpoint.secrets.as_ref().unwrap();
    let previous = secrets.previous.as_ref().unwrap();
    assert_eq!((secrets.current.expose(), previous.secret.expose()), (SECRETS[1], SECRETS[0]));
    assert_eq!(secrets.key.as_ref().unwrap().public(), SigningKey::generate([6; 32]).public());
    assert_eq!(previous.key.as_ref().unwrap().public(), SigningKey::generate([5; 32]).public());
    let headers: Vec<_> = secrets.headers.iter().map(|(n, v)| (n.as_str(), v.expose_secret())).collect();
    assert_eq!(headers, [("X-Api-Key", "sesame-one"), ("X-Other", "sesame-two")]);
    assert_eq!(endpoint.custom_headers, BTreeMap::from([("X-Team".to_owned(), "blue".to_owned())]));
}

#[sqlx::test(migrations = "../../migrations")]
async fn rows_hold_no_secret_and_open_with_the_key_only(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = full(&ledger, &ledger.store).await;
    assert_full(&endpoint);
    let rows = dump(&ledger.pool).await;
    assert!(rows.contains("sealed:v1:") && rows.contains("blue"), "{rows}");
    for secret in SECRETS.into_iter().chain(["whsec_", "whsk_"]) {
        assert!(!rows.contains(secret), "{secret}: {rows}");
    }
    // Another key's process knows the endpoint, and which key it lacks; without access to secrets nothing is opened.
    let other = ledger.with_keys(&[2]).get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap();
    assert_eq!(other.secrets.unwrap_err(), Withheld::MissingKey(id_of(1)));
    assert_eq!(other.secret_headers, BTreeSet::from(["X-Api-Key".to_owned(), "X-Other".to_owned()]));
    let mut blind = ledger.store.clone();
    blind.secrets = None;
    assert_eq!(
        blind.get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap().secrets.unwrap_err(),
        Withheld::NotRead
    );
    let change = EndpointChange { name: Some("b".to_owned()), ..EndpointChange::default() };
    assert!(blind.update_endpoint(&tenant(), endpoint.id, &change).await.is_err());
    assert_full(&ledger.with_keys(&[2, 1]).get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap());
    // A text that is copied to another endpoint doesn't open there.
    let second = ledger.endpoint().await;
    sqlx::query("update endpoints set secret = (select secret from endpoints where id = $1) where id = $2")
        .bind(endpoint.id.0)
        .bind(second.id.0)
        .execute(&ledger.pool)
        .await
        .unwrap();
    assert_eq!(
        ledger.get_endpoint(&tenant(), second.id).await.unwrap().unwrap().secrets.unwrap_err(),
        Withheld::Damaged
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn headers_are_kept_replaced_and_dropped(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = full(&ledger, &ledger.store).await;
    let change = async |headers: Option<BTreeMap<String, GivenHeader>>| {
        let change = EndpointChange { custom_headers: headers, ..EndpointChange::default() };
        let changed = ledger.update_endpoint(&tenant(), endpoint.id, &change).await.unwrap().unwrap();
        let secret = changed.secrets.unwrap().headers.into_iter();
        let secret: Vec<_> = secret.map(|(n, v)| format!("{n}={}", v.expose_secret())).collect();
        (secret.join(" "), changed.custom_headers.into_keys().collect::<Vec<_>>().join(" "))
    };
    let all = ("X-Api-Key=sesame-one X-Other=sesame-two".to_owned(), "X-Team".to_owned());
    assert_eq!(change(None).await, all, "not mentioned: as it was");
    let kept = BTreeMap::from([("x-api-key".to_owned(), GivenHeader::Kept), ("X-New".to_owned(), secret_header("n"))]);
    assert_eq!(change(Some(kept)).await, ("X-New=n x-api-key=sesame-one".to_owned(), String::new()));
    let plain = BTreeMap::from([
        ("X-Api-Key".to_owned(), GivenHeader::Plain("open".to_owned())),
        ("X-Never".to_owned(), GivenHeader::Kept),
    ]);
    assert_eq!(change(Some(plain)).await, (String::new(), "X-Api-Key".to_owned()));
    assert_eq!(change(Some(BTreeMap::new())).await, (String::new(), String::new()));
}

#[sqlx::test(migrations = "../../migrations")]
async fn all_texts_are_sealed_anew_and_pods_hear_of_it(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    // One from before there was a key, one with the old key, one with the new one already, one with a lost key.
    let plain = full(&ledger, &ledger.with_keys(&[])).await;
    let old = full(&ledger, &ledger.store).await;
    let lost = full(&ledger, &ledger.with_keys(&[9])).await;
    let store = ledger.with_keys(&[2, 1]);
    let pod = Directory::load(ledger.with_keys(&[2])).await.unwrap();
    assert_eq!(pod.snapshot().missing_keys(), BTreeMap::from([(id_of(1), 1), (id_of(9), 1)]));

    let done = store.reseal_all().await.unwrap();
    assert_eq!((done.endpoints, done.encrypted, done.rotated, done.unsettled), (3, 6, 6, 0));
    assert_eq!(
        done.failed.iter().map(|f| (f.endpoint, f.why)).collect::<Vec<_>>(),
        [(lost.id, Withheld::MissingKey(id_of(9)))]
    );
    for id in [plain.id, old.id] {
        assert_full(&ledger.with_keys(&[2]).get_endpoint(&tenant(), id).await.unwrap().unwrap());
    }
    pod.refresh_all().await.unwrap();
    assert_full(pod.snapshot().endpoint(old.id).unwrap());
    assert_eq!(pod.snapshot().missing_keys().into_iter().collect::<Vec<_>>(), [(id_of(9), 1)]);

    let version = ledger.version().await;
    let again = store.reseal_all().await.unwrap();
    assert_eq!((again.rotated, again.encrypted, again.failed.len()), (0, 0, 1), "there is nothing left to do");
    assert_eq!(ledger.version().await, version, "and nobody is disturbed");
    let without = ledger.with_keys(&[]).reseal_all().await.unwrap();
    assert_eq!(without, Resealed { endpoints: 3, ..Resealed::default() });
}

#[sqlx::test(migrations = "../../migrations")]
async fn pods_may_change_secrets_meanwhile(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = full(&ledger, &ledger.store).await;
    let store = ledger.with_keys(&[2, 1]);
    let pod = ledger.with_keys(&[2, 1]);
    let rotating = async {
        for n in 0..40_u8 {
            let secret = SigningSecret::trusted(format!("secret-number-{n:03}"));
            let key = SigningKey::generate([n; 32]);
            pod.rotate_secret(&tenant(), endpoint.id, &secret, &key, Duration::from_secs(600)).await.unwrap().unwrap();
        }
    };
    let resealing = async {
        for _ in 0..20 {
            store.reseal_all().await.unwrap();
        }
    };
    tokio::join!(rotating, resealing);
    let read = ledger.with_keys(&[2]).get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap();
    let secrets = read.secrets.unwrap();
    assert_eq!(secrets.current.expose(), "secret-number-039");
    assert_eq!(secrets.previous.unwrap().secret.expose(), "secret-number-038");
}
