//! The routes of dead letters and of jobs on them, one file each.

mod bulk;
mod discard;
mod discard_bulk;
mod get;
mod groups;
mod jobs;
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
        .routes(routes!(groups::groups))
        .routes(routes!(replay_bulk::replay_bulk))
        .routes(routes!(discard_bulk::discard_bulk))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::get))
        .routes(routes!(jobs::cancel))
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
            ("/api/v1/dlq/groups", "get"),
            ("/api/v1/dlq/replay/bulk", "post"),
            ("/api/v1/dlq/discard/bulk", "post"),
            ("/api/v1/jobs", "get"),
            ("/api/v1/jobs/{id}", "get"),
            ("/api/v1/jobs/{id}/cancel", "post"),
        ] {
            assert!(document["paths"][path][method]["responses"].is_object(), "{method} {path}");
        }
        for schema in ["DeadLetter", "Replay", "BulkRequest", "BulkReplayed", "DryRun", "Job", "Page_DeadLetter"] {
            assert!(document["components"]["schemas"][schema].is_object(), "{schema}");
        }
    }
}
