use chrono::TimeDelta;
use relay_core::ids::TenantId;
use relay_core::keys::{KEYS_MAX, KeyHash, KeyRefused, Scope, Scopes};
use relay_core::page::PageRequest;
use secrecy::ExposeSecret;
use sqlx::PgPool;

use super::{Ledger, random10, tenant};
use crate::{Directory, KeyCreation, KeyView, KeyWish, Window};

impl Ledger {
    /// A key of a tenant: how lists show it, and its hash.
    async fn api_key(&self, tenant: &TenantId, scope: Scope) -> (KeyView, KeyHash) {
        let wish =
            KeyWish { tenant: tenant.clone(), name: "ci".to_owned(), scopes: Scopes::of([scope]), expires_at: None };
        let mut random = [0; 32];
        random[..10].copy_from_slice(&random10());
        let (new, text) = wish.make(self.now, random10(), random);
        let KeyCreation::Created(view) = self.create_key(&new).await.unwrap() else { panic!("not created") };
        (view, KeyHash::of(text.expose_secret().as_bytes()).unwrap())
    }
}

fn first_page() -> Window {
    Window::page(PageRequest::default())
}

#[sqlx::test(migrations = "../../migrations")]
async fn keys_and_their_revocation_reach_every_directory(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let directory = Directory::load(ledger.store.clone()).await.unwrap();
    assert!(directory.snapshot().keys().next().is_none());
    let (view, hash) = ledger.api_key(&tenant(), Scope::Read).await;
    assert!(directory.snapshot().key(&hash).is_none());
    directory.refresh_all().await.unwrap();
    let known = directory.snapshot().key(&hash).cloned().unwrap();
    assert_eq!((known.id, known.scopes, known.check(ledger.now)), (view.id, view.scopes, Ok(())));

    // Made a moment ago: asked for, and known from then on.
    let (_, second) = ledger.api_key(&tenant(), Scope::Admin).await;
    assert!(directory.look_up_key(&second).await.unwrap().is_some());
    assert!(directory.snapshot().key(&second).is_some());
    assert!(directory.look_up_key(&KeyHash([9; 32])).await.unwrap().is_none());

    let acme = TenantId::trusted("acme");
    ledger.create_tenant(&acme).await.unwrap();
    assert!(ledger.revoke_key(Some(&acme), view.id).await.unwrap().is_none(), "another tenant's");
    let revoked = ledger.revoke_key(Some(&tenant()), view.id).await.unwrap().unwrap();
    directory.refresh_all().await.unwrap();
    let known = directory.snapshot().key(&hash).cloned().unwrap();
    assert!(matches!(known.check(ledger.now), Err(KeyRefused::Revoked(_))));
    let version = ledger.version().await;
    assert_eq!(ledger.revoke_key(None, view.id).await.unwrap().unwrap().revoked_at, revoked.revoked_at);
    assert_eq!(ledger.version().await, version, "again: nothing changes");

    // A copy on disk has the hashes, and what they are worth.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.json");
    directory.save_to(&path).await.unwrap();
    let cold = Directory::empty(ledger.store.clone());
    cold.load_from(&path).await.unwrap();
    assert_eq!(cold.snapshot().key(&hash), directory.snapshot().key(&hash));
    assert_eq!(cold.snapshot().key(&second), directory.snapshot().key(&second));
}

#[sqlx::test(migrations = "../../migrations")]
async fn lists_show_the_tenants_own_and_when_they_were_used(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let acme = TenantId::trusted("acme");
    ledger.create_tenant(&acme).await.unwrap();
    let (first, _) = ledger.api_key(&tenant(), Scope::Read).await;
    let (second, _) = ledger.api_key(&acme, Scope::Admin).await;
    let default = tenant();
    let ids = async |tenant: Option<&TenantId>| {
        let listed = ledger.list_keys(tenant, &first_page()).await.unwrap();
        listed.items.iter().map(|k| k.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Some(&default)).await, [first.id]);
    assert_eq!(ids(Some(&acme)).await, [second.id]);
    assert_eq!(ids(None).await, [second.id, first.id], "newest first");
    let walked = ledger.list_keys(None, &Window::after(None, 1)).await.unwrap();
    let rest = ledger.list_keys(None, &Window::after(walked.next, 1)).await.unwrap();
    assert_eq!((rest.items[0].id, rest.next.is_none()), (first.id, true));
    let tenants = ledger.list_tenants(&Window::after(None, 1)).await.unwrap();
    let rest = ledger.list_tenants(&Window::after(tenants.next, 1)).await.unwrap();
    assert_eq!((tenants.items[0].id.as_str(), rest.items[0].id.as_str(), rest.next), ("acme", "default", None));

    let version = ledger.version().await;
    let later = ledger.now + TimeDelta::seconds(9);
    ledger.keys_used(&[(first.id, later), (second.id, ledger.now)]).await.unwrap();
    ledger.keys_used(&[(first.id, ledger.now)]).await.unwrap();
    let listed = ledger.list_keys(None, &first_page()).await.unwrap();
    assert_eq!(listed.items[1].last_used_at.map(|at| at.timestamp()), Some(later.timestamp()), "the later one stays");
    assert_eq!(ledger.version().await, version, "a use is no change");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_tenant_has_so_many_keys_and_no_more(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (key, _) = ledger.api_key(&tenant(), Scope::Read).await;
    let insert = "insert into api_keys (id, tenant, name, hint, hash, scopes, version)
        select gen_random_uuid(), 'default', 'n', 'h', sha256(i::text::bytea), '{read}', 1 from generate_series(2, $1) i";
    sqlx::query(insert).bind(i32::try_from(KEYS_MAX).unwrap()).execute(&ledger.pool).await.unwrap();
    let wish = |tenant: &str| KeyWish {
        tenant: TenantId::trusted(tenant),
        name: "x".to_owned(),
        scopes: Scopes::of([Scope::Read]),
        expires_at: None,
    };
    let (new, _) = wish("default").make(ledger.now, random10(), [3; 32]);
    assert_eq!(ledger.create_key(&new).await.unwrap(), KeyCreation::TooMany);
    ledger.revoke_key(None, key.id).await.unwrap();
    assert!(matches!(ledger.create_key(&new).await.unwrap(), KeyCreation::Created(_)));
    let (nobodys, _) = wish("nobody").make(ledger.now, random10(), [4; 32]);
    assert_eq!(ledger.create_key(&nobodys).await.unwrap(), KeyCreation::NoTenant);
}
