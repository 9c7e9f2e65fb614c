//! What each route needs, in one place: its OpenAPI operation. One that names a scope in its `security` needs that;
//! for the others reading needs `read`, and everything else `admin`. [`declare`] writes the rule into the document,
//! and the guard reads the document, so both say the same.
//!
//! Invariant: a route that the document doesn't know needs `operator`.

use std::collections::HashMap;

use axum::http::Method;
use relay_core::keys::Scope;
use serde_json::Value;
use utoipa::IntoResponses;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, OpenApi};

use crate::openapi::ProblemBody;

/// The name of the security scheme in documents.
const SCHEME: &str = "api_key";
const SCHEME_TEXT: &str = "An API key, `wr_…`, made by `webhook-relay keys create` or `POST /api/v1/keys`, or the operator's key \
of the environment (`RELAY_API_KEY`). It belongs to one tenant and sees nothing of others.\n\nScopes: `events:write` sends \
events, `read` looks at everything of the tenant, `admin` changes it and implies both, `operator` implies all of them for \
all tenants. With the header `X-Relay-Tenant: <tenant>` an operator acts in that tenant.\n\nInstead of `Authorization: \
Bearer <key>` the header `X-API-Key: <key>` is taken too. On loopback no key is needed as long as none exists.";

/// Answers of the guard itself, on every route.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes the answers of the guard in the OpenAPI document")]
enum GuardProblems {
    /// No API key, or one that is wrong, expired or revoked
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(ProblemBody),
    /// The key's scopes don't allow this, or it is for another tenant
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemBody),
    /// Too many wrong keys from this address, or too much of this tenant in flight: try again after `Retry-After`
    #[response(status = 429, content_type = "application/problem+json")]
    TooManyRequests(ProblemBody),
    /// The key is not known here yet and the database is away: try again after `Retry-After`
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(ProblemBody),
}

/// The scope of an operation that names none.
fn usual(method: &Method) -> Scope {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) { Scope::Read } else { Scope::Admin }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::PATCH, &mut item.patch),
        (Method::DELETE, &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Completes a document: the security scheme, and for every operation the scope that it needs and the guard's answers.
pub fn declare(document: &mut OpenApi) {
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(SCHEME_TEXT)).build();
    let components = document.components.get_or_insert_with(Components::default);
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    for item in document.paths.paths.values_mut() {
        for (method, operation) in operations(item) {
            let needed = named(operation).unwrap_or_else(|| usual(&method));
            operation.security = Some(vec![SecurityRequirement::new(SCHEME, [needed.as_str()])]);
            let text = operation.description.take().unwrap_or_default();
            let note = format!("Needs scope `{needed}`.");
            operation.description = Some(match text.as_str() {
                "" => note,
                text if text.ends_with(&note) => text.to_owned(),
                text => format!("{text}\n\n{note}"),
            });
            for (status, response) in GuardProblems::responses() {
                operation.responses.responses.entry(status).or_insert(response);
            }
        }
    }
}

/// The scope that an operation names.
fn named(operation: &Operation) -> Option<Scope> {
    let requirements = serde_json::to_value(operation.security.as_ref()?).ok()?;
    scope_of(&requirements)
}

fn scope_of(requirements: &Value) -> Option<Scope> {
    Scope::parse(requirements[0][SCHEME][0].as_str()?).ok()
}

/// The scopes of all routes of a document that [`declare`] has completed.
pub(super) struct Routes(HashMap<String, Vec<(Method, Scope)>>);

impl Routes {
    pub(super) fn of(document: &OpenApi) -> Self {
        let mut paths = document.paths.paths.clone();
        let routes = paths.iter_mut().map(|(path, item)| {
            let needs = operations(item).filter_map(|(method, operation)| Some((method, named(operation)?))).collect();
            (path.clone(), needs)
        });
        Self(routes.collect())
    }

    /// What a request to a route, by the template of its path, needs.
    pub(super) fn needed(&self, method: &Method, path: &str) -> Scope {
        let Some(methods) = self.0.get(path) else { return Scope::Operator };
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        // Another method is answered 405 whoever asks, so long as it is somebody.
        methods.iter().find(|(m, _)| m == method).map_or_else(|| usual(method), |(_, scope)| *scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[utoipa::path(get, path = "/things/{id}", responses((status = 200)))]
    #[expect(dead_code, reason = "only its description is used")]
    fn get() {}
    /// Something
    ///
    /// Says more.
    #[utoipa::path(post, path = "/things", security(("api_key" = ["events:write"])), responses((status = 401, description = "own")))]
    #[expect(dead_code, reason = "only its description is used")]
    fn post() {}
    #[utoipa::path(delete, path = "/things/{id}", responses())]
    #[expect(dead_code, reason = "only its description is used")]
    fn delete() {}

    #[derive(utoipa::OpenApi)]
    #[openapi(paths(get, post, delete))]
    struct Document;

    #[test]
    fn what_is_needed_is_written_down_and_read_from_there() {
        let mut document = <Document as utoipa::OpenApi>::openapi();
        declare(&mut document);
        declare(&mut document);
        let json = serde_json::to_value(&document).unwrap();
        let post = &json["paths"]["/things"]["post"];
        assert_eq!(post["security"], serde_json::json!([{"api_key": ["events:write"]}]));
        assert_eq!(post["description"], "Says more.\n\nNeeds scope `events:write`.");
        assert_eq!(post["responses"]["401"]["description"], "own");
        assert!(post["responses"]["403"]["content"]["application/problem+json"].is_object(), "{post}");
        assert_eq!(json["paths"]["/things/{id}"]["get"]["description"], "Needs scope `read`.");
        assert_eq!(json["components"]["securitySchemes"]["api_key"]["scheme"], "bearer");

        let routes = Routes::of(&document);
        for (method, path, scope) in [
            (Method::GET, "/things/{id}", Scope::Read),
            (Method::HEAD, "/things/{id}", Scope::Read),
            (Method::DELETE, "/things/{id}", Scope::Admin),
            (Method::POST, "/things", Scope::EventsWrite),
            (Method::GET, "/things", Scope::Read),
            (Method::PATCH, "/things", Scope::Admin),
            (Method::GET, "/undocumented", Scope::Operator),
            (Method::GET, "", Scope::Operator),
        ] {
            assert_eq!(routes.needed(&method, path), scope, "{method} {path}");
        }
    }
}
