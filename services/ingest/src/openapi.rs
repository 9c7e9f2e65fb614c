//! The OpenAPI document: what its routes don't say about themselves, and the route that shows it.

use axum::Router;
use relay_runtime::auth::{self, Guard};
use relay_runtime::http::Bodies;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// The frame of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "WebhookRelay",
        description = "Accepts events, and delivers them to HTTP endpoints: signed, retried, accounted for.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "events", description = "Sending events, and what became of them"),
        (name = "endpoints", description = "Where events are delivered to"),
        (name = "access", description = "Tenants and API keys"),
        (name = "operations", description = "Health, statistics, tools")
    )
)]
struct Frame;

/// A router whose document has the frame: the start for merging the services' routers.
pub fn base<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::with_openapi(Frame::openapi())
}

/// The plain router behind `guard`, whose requests share `bodies`, with the whole document at `/openapi.json`, which needs
/// no key.
pub fn with_document(router: OpenApiRouter, guard: Guard, bodies: &Bodies) -> Router {
    let (routes, mut document) = router.split_for_parts();
    let routes = auth::protect(routes, &mut document, guard, bodies);
    relay_runtime::openapi::show(routes, &document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes;

    #[test]
    fn the_document_is_what_users_were_given() {
        let mut document = base().merge(routes::documented()).into_openapi();
        auth::declare(&mut document);
        document.info.version = "(of the release)".to_owned();
        insta::assert_json_snapshot!(document);
    }
}
