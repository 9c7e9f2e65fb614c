//! The habits of our HTTP interfaces, around any router: [`layers`] makes them, [`Bodies`] bounds what requests hold,
//! [`serve`] runs them on a listener, [`serve_behind`] on one with TLS.

mod bodies;
mod front;
mod hurried;
mod later;
mod observe;
mod serve;
mod tls;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use relay_core::problem::ProblemType;
use tower::Layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::normalize_path::{NormalizePath, NormalizePathLayer};

pub(crate) use self::bodies::hold_room;
pub use self::bodies::{BODIES_BYTES_MAX, Bodies, Held, NotRead};
pub use self::front::{Front, FrontError, FrontFlags};
pub use self::later::Later;
pub use self::observe::RequestId;
pub use self::serve::{BindError, ClientAddress, bind, serve, serve_behind};
pub use self::tls::{Tls, TlsError};
use crate::problem::ProblemResponse;

/// A router with its habits, ready to be served.
pub type Interface = NormalizePath<Router>;

/// Puts the habits around all routes of `router`: `X-Request-ID`, `X-Response-Time-Ms`, `nosniff` and `no-store` on
/// every answer, one log line and one measurement a request, panics, unknown paths and wrong methods as problems, a
/// slash at the end of a path ignored (without a redirect), bodies of at most `body_bytes_max` bytes.
pub fn layers(router: Router, body_bytes_max: usize) -> Interface {
    let inner = router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        // One layer of three: each layer of a router by itself costs a box and a copy of the request.
        .layer((
            middleware::from_fn_with_state(observe::Lines::default(), observe::observe),
            CatchPanicLayer::custom(panicked),
            DefaultBodyLimit::max(body_bytes_max),
        ));
    // Around the router, not in it: the path must change before a route is chosen by it.
    NormalizePathLayer::trim_trailing_slash().layer(inner)
}

async fn not_found(uri: Uri) -> ProblemResponse {
    ProblemResponse::new(ProblemType::NotFound, format!("there is nothing at {}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ProblemResponse {
    ProblemResponse::new(ProblemType::MethodNotAllowed, format!("{} has no method {method}", uri.path()))
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    ProblemResponse::internal(format_args!("a handler panicked: {}", text.unwrap_or("without words"))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::JsonBody;
    use axum::body::{Body, to_bytes};
    use axum::extract::Request;
    use axum::http::HeaderMap;
    use axum::routing::{get, post};
    use tower::ServiceExt;

    async fn call(request: Request) -> (u16, HeaderMap, serde_json::Value) {
        let router = Router::new()
            .route("/events", get(|| async { "fine" }))
            .route("/panic", get(|| async { panic!("on purpose") as () }))
            .route("/body", post(|JsonBody(value): JsonBody<serde_json::Value>| async move { value.to_string() }));
        let answer = layers(router, 100).oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn request(method: &str, path: &str) -> Request {
        Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn both_forms_of_a_path_are_answered_directly() {
        for path in ["/events", "/events/", "/events/?x=1"] {
            assert_eq!(call(request("GET", path)).await.0, 200, "{path}");
        }
    }

    #[tokio::test]
    async fn every_answer_is_measured_and_errors_are_problems() {
        for (method, path, status, slug) in [
            ("GET", "/nothing", 404, "not-found"),
            ("GET", "/", 404, "not-found"),
            ("DELETE", "/events", 405, "method-not-allowed"),
            ("GET", "/panic", 500, "internal"),
        ] {
            let (got, headers, body) = call(request(method, path)).await;
            assert_eq!(got, status, "{path}");
            assert_eq!(body["type"], format!("urn:webhook-relay:problem:{slug}"));
            assert_eq!(headers["content-type"], "application/problem+json");
            assert!(headers["x-response-time-ms"].to_str().unwrap().parse::<f64>().is_ok());
            assert_eq!(headers["x-request-id"].len(), 36);
            assert_eq!(headers["x-content-type-options"], "nosniff");
            assert_eq!(headers["cache-control"], "no-store");
        }
        assert_eq!(call(request("DELETE", "/events")).await.1["allow"], "GET,HEAD");
    }

    #[tokio::test]
    async fn a_request_id_is_echoed_when_it_is_harmless() {
        for (given, echoed) in [("abc-1.2_3:4", true), ("bad id", false), ("", false), (&*"x".repeat(200), false)] {
            let request = Request::get("/events").header("x-request-id", given).body(Body::empty()).unwrap();
            assert_eq!(call(request).await.1["x-request-id"] == given, echoed, "{given}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let post = |body: String| {
            Request::post("/body").header("content-type", "application/json").body(Body::from(body)).unwrap()
        };
        assert_eq!(call(post(format!("{{\"a\":\"{}\"}}", "x".repeat(90)))).await.0, 200);
        let (status, _, body) = call(post(format!("{{\"a\":\"{}\"}}", "x".repeat(100)))).await;
        assert_eq!((status, &body["type"]), (413, &"urn:webhook-relay:problem:payload-too-large".into()));
    }
}
