//! The page at `/docs`, on which the interface is read and tried: Swagger UI, with all that it loads from this program.
//!
//! The files are served by routes of our own, since a slash at the end of a path is ignored here: the page is at `/docs`
//! and says by its `base` that what it loads lies below.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use relay_core::problem::ProblemType;
use utoipa_swagger_ui::Config;

use crate::problem::ProblemResponse;

/// Adds the page, which shows the document at `document`.
pub(super) fn add(routes: Router, document: &'static str) -> Router {
    // No validator badge: it would ask a server on the internet.
    let config = Config::from(document)
        .validator_url("none")
        .try_it_out_enabled(true)
        .display_request_duration(true)
        .filter(true);
    let config = Arc::new(config);
    let index = Arc::clone(&config);
    routes
        .route("/docs", get(async move || file("", &index)))
        .route("/docs/{file}", get(async move |Path(name): Path<String>| file(&name, &config)))
}

fn file(name: &str, config: &Arc<Config<'static>>) -> Response {
    match utoipa_swagger_ui::serve(name, Arc::clone(config)) {
        Ok(Some(file)) if name.is_empty() => {
            let page = String::from_utf8_lossy(&file.bytes).replacen("<head>", "<head><base href=\"/docs/\">", 1);
            ([(header::CONTENT_TYPE, file.content_type)], page).into_response()
        }
        Ok(Some(file)) => ([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response(),
        _ => ProblemResponse::new(ProblemType::NotFound, format!("the page has no file {name}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Interface, layers};
    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use tower::ServiceExt as _;

    async fn get_text(router: &Interface, path: &str) -> (StatusCode, String) {
        let answer = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status();
        (status, String::from_utf8_lossy(&to_bytes(answer.into_body(), 10_000_000).await.unwrap()).into_owned())
    }

    #[tokio::test]
    async fn the_page_comes_with_all_that_it_loads() {
        // With the layers of a service: they change paths.
        let router = layers(add(Router::new(), "/openapi.json"), 1000);
        for path in ["/docs", "/docs/"] {
            let (status, page) = get_text(&router, path).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            assert!(page.contains("<base href=\"/docs/\">"), "{page}");
            let ends = [".js", ".css", ".png"];
            let loaded: Vec<_> = page.split(['"', '\'']).filter(|t| ends.iter().any(|e| t.ends_with(e))).collect();
            assert!(loaded.len() > 3, "{page}");
            for asset in loaded {
                assert!(!asset.contains("//") && !asset.starts_with('/'), "{asset} comes from elsewhere");
                let (status, _) = get_text(&router, &format!("/docs/{}", asset.trim_start_matches("./"))).await;
                assert_eq!(status, StatusCode::OK, "{asset}");
            }
        }
        let (_, start) = get_text(&router, "/docs/swagger-initializer.js").await;
        assert!(start.contains("/openapi.json") && !start.contains("petstore"), "{start}");
        assert_eq!(get_text(&router, "/docs/nothing.js").await.0, StatusCode::NOT_FOUND);
    }
}
