//! `POST /api/v1/keys`. Nobody hands out more than they have.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use relay_core::keys::{KEY_NAME_CHARS, KEYS_MAX, Scope, Scopes, UnknownScope};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_runtime::random;
use relay_store::{KeyCreation, KeyWish};

use crate::access::KeyWithSecret;
use crate::api::Api;
use crate::fields::{self, Faults, is_null};
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};
use crate::settings::text_of;

/// Bytes of the request at most.
const BODY_BYTES_MAX: usize = 16 * 1024;

const FIELDS: &[&str; 3] = &["name", "scopes", "expires_at"];

/// A key to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"name": "shop backend", "scopes": ["events:write"], "expires_at": "2030-01-01T00:00:00Z"}))]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct KeyRequest {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// What it may be used for: `events:write`, `read`, `admin`, `operator`; not more than your own key.
    #[schema(min_items = 1)]
    scopes: Vec<String>,
    /// From when on it is void; never without it.
    expires_at: Option<DateTime<Utc>>,
}

/// Create an API key
///
/// The answer shows the key; nothing does later. It is for the tenant of the caller: an operator names another one with
/// the header `X-Relay-Tenant`. On loopback, where no key is needed as long as there is none, the first key shuts that
/// door.
#[utoipa::path(
    post,
    path = "/api/v1/keys",
    tag = "access",
    operation_id = "create_key",
    request_body = KeyRequest,
    responses(
        (status = 201, description = "Created", body = KeyWithSecret),
        (status = 403, description = "The new key would have scopes that the caller doesn't have", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    said: SaysJson,
    sent: Sent,
) -> Result<(StatusCode, Json<KeyWithSecret>), Refusal> {
    let body = body::json(said, sent, BODY_BYTES_MAX)?;
    let now = api.links.clock.now();
    let Wanted { name, scopes, expires_at } = read(&body, now)?;
    if !caller.scopes.cover(scopes) {
        return Err(Refusal::TooPowerful);
    }
    let tenant = caller.tenant;
    let wish = KeyWish { tenant: tenant.clone(), name, scopes, expires_at };
    let (new, secret) = wish.make(now, random::bytes10(), random::bytes32());
    match api.links.store.create_key(&new).await? {
        KeyCreation::Created(key) => {
            tracing::info!(key = %key.id, %tenant, scopes = ?key.scopes, "an API key was made");
            api.directory_changed(&tenant).await;
            Ok((StatusCode::CREATED, Json(KeyWithSecret::new(&key, &secret, now))))
        }
        KeyCreation::TooMany => Err(Refusal::TooManyKeys { limit: KEYS_MAX }),
        KeyCreation::NoTenant => Err(Refusal::Internal(format!("there is no tenant {tenant}"))),
    }
}

#[derive(Debug)]
struct Wanted {
    name: String,
    scopes: Scopes,
    expires_at: Option<DateTime<Utc>>,
}

fn read(body: &[u8], now: DateTime<Utc>) -> Result<Wanted, Refusal> {
    let [name, scopes, expires_at] = fields::read(body, FIELDS)?.map(|value| value.filter(|v| !is_null(v)));
    let mut faults = Faults::default();
    for (field, is_missing) in [("name", name.is_none()), ("scopes", scopes.is_none())] {
        if is_missing {
            faults.add(field, "is required");
        }
    }
    let f = &mut faults;
    let name = name.and_then(|value| text_of(f, "name", value, KEY_NAME_CHARS));
    let scopes = scopes.and_then(|value| f.strings("scopes", value)).map(|names| {
        if names.is_empty() {
            f.add("scopes", "must name at least one scope");
        }
        let scope = |(i, name): (usize, &String)| {
            Scope::parse(name).map_err(|why: UnknownScope| f.add(format_args!("scopes.{i}"), why)).ok()
        };
        Scopes::of(names.iter().enumerate().filter_map(scope))
    });
    let expires_at = expires_at.and_then(|value| {
        let text = f.string("expires_at", value)?;
        match DateTime::parse_from_rfc3339(&text) {
            Ok(at) if at > now => Some(at.with_timezone(&Utc)),
            Ok(_) => {
                f.add("expires_at", "must be in the future");
                None
            }
            Err(_) => {
                f.add("expires_at", "must be a time such as 2030-01-01T00:00:00Z");
                None
            }
        }
    });
    match (name, scopes) {
        (Some(name), Some(scopes)) if faults.is_empty() => Ok(Wanted { name, scopes, expires_at }),
        _ => Err(Refusal::Invalid(faults.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let now = DateTime::parse_from_rfc3339("2026-01-01T00:00:00Z").unwrap().with_timezone(&Utc);
        let read = |text: &str| read(text.as_bytes(), now);
        let good = read(r#"{"name":"ci","scopes":["read","events:write"],"expires_at":"2026-01-02T00:00:00+01:00"}"#);
        let good = good.unwrap();
        assert_eq!((good.name.as_str(), good.scopes), ("ci", Scopes::of([Scope::Read, Scope::EventsWrite])));
        assert!(good.expires_at > Some(now));
        assert!(read(r#"{"name":"ci","scopes":["read"],"expires_at":null}"#).unwrap().expires_at.is_none());
        for (bad, field) in [
            ("{}", "body.name"),
            (r#"{"name":"ci"}"#, "body.scopes"),
            (r#"{"name":"","scopes":["read"]}"#, "body.name"),
            (r#"{"name":"a\u0000","scopes":["read"]}"#, "body.name"),
            (r#"{"name":"ci","scopes":[]}"#, "body.scopes"),
            (r#"{"name":"ci","scopes":"read"}"#, "body.scopes"),
            (r#"{"name":"ci","scopes":["read","root"]}"#, "body.scopes.1"),
            (r#"{"name":"ci","scopes":["read"],"expires_at":"tomorrow"}"#, "body.expires_at"),
            (r#"{"name":"ci","scopes":["read"],"expires_at":"2026-01-01T00:00:00Z"}"#, "body.expires_at"),
        ] {
            let Err(Refusal::Invalid(errors)) = read(bad) else { panic!("{bad}") };
            assert_eq!(errors[0].field, field, "{bad}");
        }
    }
}
