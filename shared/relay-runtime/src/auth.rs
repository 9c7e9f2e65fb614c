//! Who may call, and what: the operator's key from the environment, keys that are stored, and no key at all on loopback
//! as long as none exists. Routes learn from [`Caller`] whose request it is.
//!
//! What a route needs stands in its OpenAPI operation (`security(("api_key" = ["events:write"]))`), else it follows from
//! the method: `routes` reads both, so that what is documented is what is enforced.
//!
//! Invariants: the operator's key is compared in constant time, by its digest, and a stored key is found by its digest;
//! none is logged. A key that is known is checked in memory, whatever the database does. An unknown one is refused only
//! after the database was asked.

mod failures;
mod routes;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use relay_core::ids::{KeyId, TenantId};
use relay_core::keys::{ApiKey, KeyHash, Scope, Scopes};
use relay_core::problem::{Problem, ProblemType};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use self::failures::Failures;
use self::routes::Routes;
pub use self::routes::declare;
use crate::clock::Clock;
use crate::flags::{FlagError, secret_from};
use crate::http::{Bodies, ClientAddress, hold_room};
use crate::problem::{ProblemResponse, RETRY_AFTER};

/// The variable with the operator's key (or `RELAY_API_KEY_FILE`).
pub const KEY_VARIABLE: &str = "RELAY_API_KEY";
/// The shortest operator's key that is taken, in characters.
pub const KEY_CHARS_MIN: usize = 16;
/// The header by which an operator acts in a tenant.
pub const TENANT_HEADER: &str = "x-relay-tenant";

/// Whose request it is: what routes ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tenant whose data it may see and change.
    pub tenant: TenantId,
    /// Whether it also sees what belongs to other tenants, and to none. Not set while an operator acts in a tenant.
    pub operator: bool,
    /// What it may do: what the route needs was checked already.
    pub scopes: Scopes,
    /// The stored key it came with; none: the operator's key, or an open door.
    pub key: Option<KeyId>,
}

impl Caller {
    fn operator() -> Self {
        let tenant = TenantId::default_tenant();
        Self { tenant, operator: true, scopes: Scopes::of([Scope::Operator]), key: None }
    }

    /// The one tenant whose data it may see; `None`: an operator sees everybody's, and what belongs to no tenant.
    pub fn only_tenant(&self) -> Option<&TenantId> {
        (!self.operator).then_some(&self.tenant)
    }
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

/// The answer of a key ring that may need the database.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, Away>> + Send + 'a>>;

/// The database doesn't answer, so nobody can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away;

/// Stored keys, as the service has them: given from outside, since this crate knows no database.
pub trait KeyRing: Send + Sync + 'static {
    /// A key that this process has in memory, good or not. Called for every request; never waits.
    fn known(&self, hash: &KeyHash) -> Option<Arc<ApiKey>>;
    /// The same from the database: the key may have been made a moment ago.
    fn look_up(&self, hash: KeyHash) -> Asked<'_, Option<Arc<ApiKey>>>;
    /// Whether any key was ever made. `None`: not known yet.
    fn any(&self) -> Option<bool>;
    /// Whether there is such a tenant.
    fn has_tenant<'a>(&'a self, tenant: &'a TenantId) -> Asked<'a, bool>;
    /// A key was used. Called for every request; never waits.
    fn used(&self, id: KeyId, at: DateTime<Utc>);
}

/// The operator's key of the environment, or none. Cheap to clone.
#[derive(Clone, Default)]
pub struct OperatorKey {
    digest: Option<[u8; 32]>,
}

/// Why the interface can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Reachable from other machines, and no key.
    #[error(
        "{0} can be reached from other machines, so an API key is needed: set {KEY_VARIABLE} or {KEY_VARIABLE}_FILE, \
         make a key with `webhook-relay keys create`, or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// Too easy to guess.
    #[error("the API key in {KEY_VARIABLE} is too short: at least {KEY_CHARS_MIN} characters")]
    Short,
    /// The key's file can't be read.
    #[error(transparent)]
    Flag(#[from] FlagError),
}

impl OperatorKey {
    /// This key.
    pub fn new(key: &SecretString) -> Result<Self, AuthError> {
        if key.expose_secret().chars().count() < KEY_CHARS_MIN {
            return Err(AuthError::Short);
        }
        Ok(Self { digest: Some(digest(key.expose_secret().as_bytes())) })
    }

    /// The key in the environment, if any.
    pub fn from_env() -> Result<Self, AuthError> {
        secret_from(KEY_VARIABLE)?.map_or_else(|| Ok(Self::default()), |key| Self::new(&key))
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.digest.is_some()
    }

    fn is(&self, key: &[u8]) -> bool {
        self.digest.as_ref().is_some_and(|wanted| digest(key).ct_eq(wanted).into())
    }
}

/// Whether only this machine can reach an address.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Decides about every request. Cheap to clone.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    operator: OperatorKey,
    ring: Arc<dyn KeyRing>,
    clock: Clock,
    /// Whether requests are let in without a key as long as none exists.
    may_be_open: bool,
    failures: Failures,
}

/// Whether a key is needed.
enum Door {
    Open,
    Closed,
    /// The database was never read.
    Unknown,
}

impl Guard {
    /// The guard of the interface at `listen`. Says loudly when it is open.
    ///
    /// # Errors
    /// It would be open to other machines. Where it isn't known yet whether keys exist, it isn't open, and no error.
    pub fn new(
        listen: SocketAddr,
        operator: OperatorKey,
        ring: Arc<dyn KeyRing>,
        clock: Clock,
    ) -> Result<Self, AuthError> {
        let may_be_open = is_loopback(listen);
        if !may_be_open && !operator.is_set() && ring.any() == Some(false) {
            return Err(AuthError::Open(listen));
        }
        let guard = Self(Arc::new(Inner { operator, ring, clock, may_be_open, failures: Failures::default() }));
        if guard.is_open() {
            tracing::warn!(
                %listen,
                "THE INTERFACE IS OPEN: every program on this machine may do everything without a key, in tenant \
                 `default`, until the first key is made (webhook-relay keys create) or {KEY_VARIABLE} is set"
            );
        }
        Ok(guard)
    }

    /// Whether requests are let in without a key now.
    pub fn is_open(&self) -> bool {
        matches!(self.0.door(), Door::Open)
    }
}

impl Inner {
    fn door(&self) -> Door {
        if !self.may_be_open || self.operator.is_set() {
            return Door::Closed;
        }
        match self.ring.any() {
            Some(false) => Door::Open,
            Some(true) => Door::Closed,
            None => Door::Unknown,
        }
    }

    async fn admit(&self, headers: &HeaderMap, client: IpAddr, needed: Scope) -> Result<Caller, Denied> {
        let caller = match given(headers) {
            Some(key) => self.with_key(key, client).await?,
            None => self.without_key("this request needs an API key: send the header `Authorization: Bearer <key>`")?,
        };
        if !caller.scopes.allow(needed) {
            return Err(Denied::Scope { needed, has: caller.scopes });
        }
        match headers.get(TENANT_HEADER) {
            Some(tenant) => self.in_tenant(caller, tenant).await,
            None => Ok(caller),
        }
    }

    fn without_key(&self, why: &'static str) -> Result<Caller, Denied> {
        match self.door() {
            Door::Open => Ok(Caller::operator()),
            Door::Closed => Err(Denied::Missing(why)),
            Door::Unknown => Err(Denied::Away),
        }
    }

    async fn with_key(&self, key: &[u8], client: IpAddr) -> Result<Caller, Denied> {
        if self.operator.is(key) {
            return Ok(Caller::operator());
        }
        let Some(hash) = KeyHash::of(key) else {
            // Nothing that could be a key of ours: an open door doesn't mind it.
            return self.without_key("").map_err(|denied| match denied {
                Denied::Missing(_) => self.failed(client, "the API key is not valid"),
                other => other,
            });
        };
        let entry = match self.ring.known(&hash) {
            Some(entry) => entry,
            None => {
                if let Some(wait) = self.failures.blocked(client, Instant::now()) {
                    return Err(Denied::TooMany(wait));
                }
                let found = self.ring.look_up(hash).await.map_err(|Away| Denied::Away)?;
                found.ok_or_else(|| self.failed(client, "the API key is not valid"))?
            }
        };
        let now = self.clock.now();
        entry.check(now).map_err(|why| self.failed(client, why.to_string()))?;
        self.ring.used(entry.id, now);
        Ok(Caller {
            tenant: entry.tenant.clone(),
            operator: entry.scopes.allow(Scope::Operator),
            scopes: entry.scopes,
            key: Some(entry.id),
        })
    }

    fn failed(&self, client: IpAddr, why: impl Into<String>) -> Denied {
        let why = why.into();
        self.failures.note(client, Instant::now(), &why);
        Denied::Invalid(why)
    }

    /// An operator who names a tenant acts in it, and sees what it sees.
    async fn in_tenant(&self, caller: Caller, header: &HeaderValue) -> Result<Caller, Denied> {
        let named = header.to_str().ok().and_then(|text| TenantId::parse(text).ok());
        let tenant = named.ok_or(Denied::TenantName)?;
        if !caller.operator {
            return if tenant == caller.tenant { Ok(caller) } else { Err(Denied::Tenant(caller.tenant)) };
        }
        match self.ring.has_tenant(&tenant).await {
            Ok(true) => Ok(Caller { tenant, operator: false, ..caller }),
            Ok(false) => Err(Denied::NoTenant(tenant)),
            Err(Away) => Err(Denied::Away),
        }
    }
}

/// Why a request isn't let in.
#[derive(Debug)]
enum Denied {
    Missing(&'static str),
    Invalid(String),
    TooMany(Duration),
    Scope { needed: Scope, has: Scopes },
    Tenant(TenantId),
    TenantName,
    NoTenant(TenantId),
    Away,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        use ProblemType as P;
        let mut challenge = None;
        let problem = match self {
            Self::Missing(why) => Problem::new(P::Unauthorized, why),
            Self::Invalid(why) => {
                challenge = Some(format!("Bearer error=\"invalid_token\", error_description=\"{why}\""));
                Problem::new(P::Unauthorized, why)
            }
            Self::TooMany(wait) => {
                Problem::new(P::TooManyRequests, "too many requests with wrong API keys came from this address")
                    .retry_after(wait)
            }
            Self::Scope { needed, has } => {
                challenge = Some(format!("Bearer error=\"insufficient_scope\", scope=\"{needed}\""));
                let has: Vec<_> = has.named().map(Scope::as_str).collect();
                let has = has.join(", ");
                Problem::new(P::Forbidden, format!("this needs a key with scope {needed}; the key has {has}"))
            }
            Self::Tenant(own) => Problem::new(
                P::Forbidden,
                format!("the key is for tenant {own}; only an operator's key acts in others"),
            ),
            Self::TenantName => Problem::field("header.X-Relay-Tenant", "must be the name of a tenant"),
            Self::NoTenant(tenant) => Problem::new(P::TenantNotFound, format!("there is no tenant {tenant}")),
            Self::Away => Problem::new(
                P::ServiceUnavailable,
                "the API key can't be checked now: it is not known here yet, and the database does not answer",
            )
            .retry_after(RETRY_AFTER),
        };
        let mut response = ProblemResponse(problem).into_response();
        if let Some(challenge) = challenge.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Puts the guard around all routes that are in `routes` by now, and behind it `bodies`, whose room their requests share;
/// writes into `document`, which describes them, what each needs.
pub fn protect<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    document: &mut utoipa::openapi::OpenApi,
    guard: Guard,
    bodies: &Bodies,
) -> Router<S> {
    declare(document);
    let needs = Arc::new(Routes::of(document));
    // One layer of two: each by itself costs a box and a copy of the request.
    routes.layer((
        middleware::from_fn_with_state((guard, needs), stand_guard),
        middleware::from_fn_with_state(bodies.clone(), hold_room),
    ))
}

async fn stand_guard(State((guard, needs)): State<(Guard, Arc<Routes>)>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let needed = needs.needed(request.method(), path.unwrap_or_default());
    let client = request.extensions().get::<ClientAddress>().map_or(Ipv4Addr::UNSPECIFIED.into(), |c| c.0);
    match guard.0.admit(request.headers(), client, needed).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => denied.into_response(),
    }
}

/// The key of a request: `Authorization: Bearer <key>` or `X-API-Key: <key>`.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    match value.split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(key.trim_ascii()),
        // Another scheme: no key that could be right.
        _ => Some(b""),
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests;
