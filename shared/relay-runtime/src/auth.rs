//! Who may call. Open on loopback; on any other address an operator's key is needed, and the service refuses to
//! start without one. Routes learn from [`Caller`] whose request it is.
//!
//! Invariant: keys are compared in constant time, by their digests, and never logged.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use relay_core::ids::TenantId;
use relay_core::problem::ProblemType;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::flags::{FlagError, secret_from};
use crate::problem::ProblemResponse;

/// The variable with the operator's key (or `RELAY_API_KEY_FILE`).
pub const KEY_VARIABLE: &str = "RELAY_API_KEY";
/// The shortest key that is taken, in characters.
pub const KEY_CHARS_MIN: usize = 16;

/// Whose request it is: what routes ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tenant whose data it may see.
    pub tenant: TenantId,
    /// Whether it also sees what belongs to no tenant.
    pub operator: bool,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        // Closed unless `protect` is around the route.
        parts
            .extensions
            .get()
            .cloned()
            .ok_or_else(|| ProblemResponse::internal("a route without the guard of auth::protect"))
    }
}

/// The operator's key, or none: open. Cheap to clone.
#[derive(Clone)]
pub struct ApiKey {
    digest: Option<[u8; 32]>,
}

/// Why the interface can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Reachable from other machines, and no key.
    #[error(
        "{0} can be reached from other machines, so an API key is needed: set {KEY_VARIABLE} or {KEY_VARIABLE}_FILE, \
         or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// Too easy to guess.
    #[error("the API key in {KEY_VARIABLE} is too short: at least {KEY_CHARS_MIN} characters")]
    Short,
    /// The key's file can't be read.
    #[error(transparent)]
    Flag(#[from] FlagError),
}

impl ApiKey {
    /// No key: every request is let in. For loopback.
    pub fn open() -> Self {
        Self { digest: None }
    }

    /// With this key.
    pub fn new(key: &SecretString) -> Result<Self, AuthError> {
        if key.expose_secret().chars().count() < KEY_CHARS_MIN {
            return Err(AuthError::Short);
        }
        Ok(Self { digest: Some(digest(key.expose_secret().as_bytes())) })
    }

    /// The key in the environment, if any.
    pub fn from_env() -> Result<Self, AuthError> {
        secret_from(KEY_VARIABLE)?.map_or_else(|| Ok(Self::open()), |key| Self::new(&key))
    }

    /// Whether no key is asked for.
    pub fn is_open(&self) -> bool {
        self.digest.is_none()
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(wanted) = &self.digest else { return true };
        given(headers).is_some_and(|key| digest(key).ct_eq(wanted).into())
    }
}

/// Whether only this machine can reach an address.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Refuses to be open to other machines.
pub fn check_listen(address: SocketAddr, key: &ApiKey) -> Result<(), AuthError> {
    if key.is_open() && !is_loopback(address) { Err(AuthError::Open(address)) } else { Ok(()) }
}

/// Puts the guard around all routes that are in `router` by now.
pub fn protect<S: Clone + Send + Sync + 'static>(router: Router<S>, key: ApiKey) -> Router<S> {
    router.layer(middleware::from_fn_with_state(key, guard))
}

async fn guard(State(key): State<ApiKey>, mut request: Request, next: Next) -> Response {
    if !key.admits(request.headers()) {
        let detail = "the request needs the header `Authorization: Bearer <API key>`";
        return ProblemResponse::new(ProblemType::Unauthorized, detail).into_response();
    }
    request.extensions_mut().insert(Caller { tenant: TenantId::default_tenant(), operator: true });
    next.run(request).await
}

/// The key of a request: `Authorization: Bearer <key>` or `X-API-Key: <key>`.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt;

    fn key() -> ApiKey {
        ApiKey::new(&SecretString::from("a long enough key")).unwrap()
    }

    async fn status(key: ApiKey, headers: &[(&str, &str)]) -> u16 {
        let app =
            protect(Router::new().route("/", get(|caller: Caller| async move { caller.tenant.to_string() })), key);
        let mut request = axum::http::Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn the_key_opens_and_nothing_else_does() {
        assert_eq!(status(ApiKey::open(), &[]).await, 200);
        assert_eq!(status(key(), &[("authorization", "bearer a long enough key")]).await, 200);
        assert_eq!(status(key(), &[("x-api-key", "a long enough key")]).await, 200);
        for bad in ["Bearer wrong", "Bearer a long enough ke", "Basic a long enough key", "Bearer", ""] {
            assert_eq!(status(key(), &[("authorization", bad)]).await, 401, "{bad}");
        }
        assert_eq!(status(key(), &[]).await, 401);
    }

    #[tokio::test]
    async fn a_route_without_the_guard_stays_closed() {
        let app = Router::new().route("/", get(|_: Caller| async {}));
        let answer = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 500);
    }

    #[test]
    fn other_addresses_than_loopback_need_a_key() {
        for (address, fine) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(check_listen(address, &ApiKey::open()).is_ok(), fine, "{address}");
            assert!(check_listen(address, &key()).is_ok());
        }
        assert!(matches!(ApiKey::new(&SecretString::from("short")), Err(AuthError::Short)));
    }
}
