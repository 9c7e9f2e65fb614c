//! The routes of dead letters, one file each.

mod discard;
mod get;
mod list;
mod replay;
mod replay_bulk;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Api;

/// The routes with their part of the OpenAPI document, without their state.
pub fn documented() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list::list))
        .routes(routes!(get::get, discard::discard))
        .routes(routes!(replay::replay))
        .routes(routes!(replay_bulk::replay_bulk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_all_routes() {
        let document = serde_json::to_value(documented().into_openapi()).unwrap();
        for (path, method) in [
            ("/api/v1/dlq", "get"),
            ("/api/v1/dlq/{id}", "get"),
            ("/api/v1/dlq/{id}", "delete"),
            ("/api/v1/dlq/{id}/replay", "post"),
            ("/api/v1/dlq/replay/bulk", "post"),
        ] {
            assert!(document["paths"][path][method]["responses"].is_object(), "{method} {path}");
        }
        for schema in ["DeadLetter", "Replay", "BulkReplay", "BulkReplayed", "Page_DeadLetter"] {
            assert!(document["components"]["schemas"][schema].is_object(), "{schema}");
        }
    }
}
