//! The routes of ingest, one file each, and the router that has them all.

mod body;
pub mod endpoints;
pub mod events;
mod health;
pub mod keys;
mod stats;
pub mod tenants;
mod verify;

use axum::extract::DefaultBodyLimit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Api;

/// All routes of ingest below `/api/v1`, with their part of the OpenAPI document. Can be merged with the routers
/// of other services. Whoever serves them limits bodies to [`crate::Config::body_bytes_max`]: a layer here for that would be
/// the dearest one of the hot path.
pub fn router(api: Api) -> OpenApiRouter {
    documented().with_state(api)
}

/// The routes without their state: what the OpenAPI document is made of.
pub fn documented() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(events::post::post, events::list::list))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(events::batch::batch))
                .layer(DefaultBodyLimit::max(crate::batch::BODY_BYTES_MAX)),
        )
        .routes(routes!(events::get::get))
        .routes(routes!(events::explain::explain))
        .routes(routes!(events::retry::retry))
        .routes(routes!(events::attempts::attempts))
        .routes(routes!(endpoints::create::create, endpoints::list::list))
        .routes(routes!(endpoints::get::get, endpoints::patch::patch, endpoints::delete::delete))
        .routes(routes!(endpoints::attempts::attempts))
        .routes(routes!(endpoints::stats::stats))
        .routes(routes!(endpoints::stats::series))
        .routes(routes!(endpoints::circuit::circuit))
        .routes(routes!(endpoints::rotate_secret::rotate_secret))
        .routes(routes!(endpoints::end_overlap::end_overlap))
        .routes(routes!(endpoints::resume::resume))
        .routes(routes!(endpoints::test::test))
        .routes(routes!(keys::create::create, keys::list::list))
        .routes(routes!(keys::revoke::revoke))
        .routes(routes!(tenants::create::create, tenants::list::list))
        .routes(routes!(stats::stats))
        .routes(routes!(stats::series))
        .routes(routes!(health::health))
        .routes(routes!(verify::verify))
}
