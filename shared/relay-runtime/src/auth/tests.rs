use std::collections::HashMap;
use std::sync::Mutex;

use axum::body::{Body, to_bytes};
use axum::routing::{get, post};
use chrono::TimeZone;
use relay_core::keys::key_text;
use tower::ServiceExt;
use utoipa::openapi::OpenApi;
use uuid::Uuid;

use super::*;

/// Keys of a test: those in memory, and those that only the database has.
#[derive(Default)]
struct Ring {
    known: HashMap<KeyHash, Arc<ApiKey>>,
    stored: HashMap<KeyHash, Arc<ApiKey>>,
    any: Option<bool>,
    is_away: bool,
    used: Mutex<Vec<KeyId>>,
    looked: Mutex<u32>,
}

impl KeyRing for Ring {
    fn known(&self, hash: &KeyHash) -> Option<Arc<ApiKey>> {
        self.known.get(hash).cloned()
    }
    fn look_up(&self, hash: KeyHash) -> Asked<'_, Option<Arc<ApiKey>>> {
        *self.looked.lock().unwrap() += 1;
        let found = if self.is_away { Err(Away) } else { Ok(self.stored.get(&hash).cloned()) };
        Box::pin(std::future::ready(found))
    }
    fn any(&self) -> Option<bool> {
        self.any
    }
    fn has_tenant<'a>(&'a self, tenant: &'a TenantId) -> Asked<'a, bool> {
        Box::pin(std::future::ready(Ok(tenant.as_str() == "acme")))
    }
    fn used(&self, id: KeyId, _: DateTime<Utc>) {
        self.used.lock().unwrap().push(id);
    }
}

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 2, 12, 0, 0).unwrap()
}

/// A key of tenant acme; `n` tells them apart.
fn key(n: u8, scope: Scope) -> (String, Arc<ApiKey>) {
    let text = key_text([n; 32]);
    let key = ApiKey {
        id: KeyId(Uuid::from_u128(n.into())),
        tenant: TenantId::trusted("acme"),
        hash: KeyHash::of(text.as_bytes()).unwrap(),
        scopes: Scopes::of([scope]),
        expires_at: None,
        revoked_at: None,
        version: 1,
    };
    (text, Arc::new(key))
}

fn ring(keys: impl IntoIterator<Item = Arc<ApiKey>>) -> Ring {
    Ring { known: keys.into_iter().map(|key| (key.hash, key)).collect(), any: Some(true), ..Ring::default() }
}

fn operator() -> OperatorKey {
    OperatorKey::new(&SecretString::from("a long enough key")).unwrap()
}

#[utoipa::path(get, path = "/", responses())]
#[expect(dead_code, reason = "only its description is used")]
fn read() {}
#[utoipa::path(post, path = "/", responses())]
#[expect(dead_code, reason = "only its description is used")]
fn change() {}

#[derive(utoipa::OpenApi)]
#[openapi(paths(read, change))]
struct Document;

struct App(Router, Arc<Ring>);

fn app(listen: &str, operator: OperatorKey, ring: Ring) -> App {
    let ring = Arc::new(ring);
    let guard =
        Guard::new(listen.parse().unwrap(), operator, Arc::clone(&ring) as Arc<dyn KeyRing>, Clock::fixed(noon()))
            .unwrap();
    let whose = |caller: Caller| async move { format!("{} {}", caller.tenant, caller.operator) };
    let mut document: OpenApi = <Document as utoipa::OpenApi>::openapi();
    let routes = Router::new().route("/", get(whose).merge(post(whose)));
    App(protect(routes, &mut document, guard, &Bodies::new(1000)), ring)
}

impl App {
    async fn call(&self, method: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
        (parts.status.as_u16(), parts.headers, body)
    }

    async fn status(&self, method: &str, key: &str) -> u16 {
        self.call(method, &[("authorization", &format!("Bearer {key}"))]).await.0
    }
}

#[tokio::test]
async fn the_operators_key_opens_and_nothing_else_does() {
    let app = app("0.0.0.0:1", operator(), Ring { any: Some(false), ..Ring::default() });
    for good in [("authorization", "bearer a long enough key"), ("x-api-key", "a long enough key")] {
        let (status, _, body) = app.call("POST", &[good]).await;
        assert_eq!((status, body.as_str()), (200, "default true"));
    }
    for bad in ["Bearer wrong", "Bearer a long enough ke", "Basic a long enough key", "Bearer", ""] {
        let (status, headers, _) = app.call("GET", &[("authorization", bad)]).await;
        assert_eq!(status, 401, "{bad}");
        assert!(headers["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    }
    let (status, headers, _) = app.call("GET", &[]).await;
    assert_eq!((status, headers["www-authenticate"].to_str().unwrap()), (401, "Bearer"));
}

#[tokio::test]
async fn a_stored_key_is_its_tenants_and_its_scopes_decide() {
    let (writer, writer_key) = key(1, Scope::EventsWrite);
    let (reader, reader_key) = key(2, Scope::Read);
    let (admin, admin_key) = key(3, Scope::Admin);
    let (root, root_key) = key(4, Scope::Operator);
    let app = app("127.0.0.1:1", OperatorKey::default(), ring([writer_key, reader_key, admin_key, root_key]));
    for (key, read, change) in [(&writer, 403, 403), (&reader, 200, 403), (&admin, 200, 200), (&root, 200, 200)] {
        assert_eq!((app.status("GET", key).await, app.status("POST", key).await), (read, change));
    }
    let bearer = |key: &str| format!("Bearer {key}");
    let (_, headers, body) = app.call("POST", &[("authorization", &bearer(&reader))]).await;
    assert_eq!(headers["www-authenticate"], "Bearer error=\"insufficient_scope\", scope=\"admin\"");
    assert!(body.contains("needs a key with scope admin; the key has read"), "{body}");
    assert_eq!(app.call("GET", &[("authorization", &bearer(&admin))]).await.2, "acme false");
    assert_eq!(app.call("GET", &[("authorization", &bearer(&root))]).await.2, "acme true");
    assert_eq!(app.1.used.lock().unwrap().len(), 11, "noted for every request with a good key");
    assert_eq!(*app.1.looked.lock().unwrap(), 0, "what is known is not looked up");
    assert_eq!(app.call("GET", &[]).await.0, 401, "keys exist: loopback is closed too");
}

#[tokio::test]
async fn an_operator_acts_in_a_tenant_by_a_header_and_nobody_else_does() {
    let (admin, admin_key) = key(1, Scope::Admin);
    let app = app("127.0.0.1:1", operator(), ring([admin_key]));
    let call = async |key: &str, tenant: &str| {
        let (status, _, body) = app.call("GET", &[("x-api-key", key), ("X-Relay-Tenant", tenant)]).await;
        (status, body)
    };
    assert_eq!(call("a long enough key", "acme").await, (200, "acme false".to_owned()));
    assert_eq!(call("a long enough key", "nobody").await.0, 404);
    for bad in ["_relay", "A", "a.b", ""] {
        assert_eq!(call("a long enough key", bad).await.0, 422, "{bad}");
    }
    assert_eq!(call(&admin, "acme").await.0, 200);
    assert_eq!(call(&admin, "default").await.0, 403);
}

#[tokio::test]
async fn expired_and_revoked_keys_say_so() {
    let (expired, expired_key) = key(1, Scope::Admin);
    let (revoked, revoked_key) = key(2, Scope::Admin);
    let expired_key = ApiKey { expires_at: Some(noon()), ..(*expired_key).clone() };
    let revoked_key = ApiKey { revoked_at: Some(noon()), ..(*revoked_key).clone() };
    let app = app("127.0.0.1:1", OperatorKey::default(), ring([Arc::new(expired_key), Arc::new(revoked_key)]));
    for (key, word) in [(expired, "expired"), (revoked, "revoked")] {
        let (status, headers, body) = app.call("GET", &[("x-api-key", &key)]).await;
        assert_eq!(status, 401);
        assert!(body.contains(word) && headers["www-authenticate"].to_str().unwrap().contains(word), "{body}");
    }
    assert!(app.1.used.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_unknown_key_is_looked_up_before_it_is_refused() {
    let (stored, stored_key) = key(1, Scope::Read);
    let (unknown, _) = key(2, Scope::Read);
    let ring = Ring { stored: HashMap::from([(stored_key.hash, stored_key)]), any: Some(true), ..Ring::default() };
    let app = app("127.0.0.1:1", OperatorKey::default(), ring);
    assert_eq!(app.status("GET", &stored).await, 200);
    assert_eq!(app.status("GET", &unknown).await, 401);
    assert_eq!(app.status("GET", &unknown[..70]).await, 401);
    assert_eq!(*app.1.looked.lock().unwrap(), 2, "what can't be a key is not looked up");
    for _ in 0..30 {
        app.status("GET", &unknown).await;
    }
    let (status, headers, _) = app.call("GET", &[("x-api-key", &unknown)]).await;
    assert_eq!(status, 429);
    assert!(headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() <= 10);
    assert!(*app.1.looked.lock().unwrap() < 25, "a blocked address costs the database nothing");
}

#[tokio::test]
async fn with_the_database_away_known_keys_work_and_unknown_ones_wait() {
    let (known, known_key) = key(1, Scope::Read);
    let (unknown, _) = key(2, Scope::Read);
    let app = app("127.0.0.1:1", OperatorKey::default(), Ring { is_away: true, ..ring([known_key]) });
    assert_eq!(app.status("GET", &known).await, 200);
    let (status, headers, _) = app.call("GET", &[("x-api-key", &unknown)]).await;
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(app.call("GET", &[]).await.0, 401);
}

#[tokio::test]
async fn without_any_key_loopback_is_open_and_nothing_else() {
    let none = |any| Ring { any, ..Ring::default() };
    let open = app("127.0.0.1:1", OperatorKey::default(), none(Some(false)));
    assert_eq!(open.call("POST", &[]).await.2, "default true");
    assert_eq!(open.status("GET", "whatever").await, 200, "an open door minds no key that can't be one");
    let (unknown, _) = key(2, Scope::Read);
    assert_eq!(open.status("GET", &unknown).await, 401, "but one that may have been made just now is looked for");
    let unsure = app("127.0.0.1:1", OperatorKey::default(), none(None));
    assert_eq!(unsure.call("GET", &[]).await.0, 503);
    let elsewhere = app("0.0.0.0:1", OperatorKey::default(), none(None));
    assert_eq!(elsewhere.call("GET", &[]).await.0, 401);

    for (address, fine) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
    ] {
        let guard = |operator, any| {
            Guard::new(address.parse().unwrap(), operator, Arc::new(none(any)), Clock::fixed(noon())).is_ok()
        };
        assert_eq!(guard(OperatorKey::default(), Some(false)), fine, "{address}");
        assert!(guard(operator(), Some(false)) && guard(OperatorKey::default(), Some(true)));
    }
    assert!(matches!(OperatorKey::new(&SecretString::from("short")), Err(AuthError::Short)));
}

#[tokio::test]
async fn a_route_without_the_guard_stays_closed() {
    let app = Router::new().route("/", get(|_: Caller| async {}));
    let answer = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 500);
}
