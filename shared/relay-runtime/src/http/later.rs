//! A router that comes later: a service listens before the servers are there that its routes need, and says so. Used by
//! the mains.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use futures_util::FutureExt;
use relay_core::problem::{Problem, ProblemType};
use tokio::net::TcpListener;
use tower::ServiceExt;

use super::Interface;
use super::front::Front;
use super::observe::{Lines, observe};
use super::serve::{Serve, serve_behind};
use crate::problem::{ProblemResponse, RETRY_AFTER};
use crate::shutdown::Group;

/// The place of a router that isn't made yet. Cheap to clone.
#[derive(Clone, Default)]
pub struct Later(Arc<OnceLock<Interface>>);

impl Later {
    /// Serves from now on, as a task of `interface`.
    pub fn serving(front: Front, listener: TcpListener, interface: &Group) -> Self {
        let later = Self::default();
        interface.spawn("http", serve_behind(front, listener, later.service(), interface.stop()));
        later
    }

    /// 503 to everything until [`Later::open`], then the router.
    fn service(&self) -> impl Serve {
        let later = self.clone();
        let closed = Router::new().fallback(starting).layer(middleware::from_fn_with_state(Lines::default(), observe));
        tower::service_fn(move |request: Request| match later.0.get() {
            Some(open) => open.clone().oneshot(request).left_future(),
            None => closed.clone().oneshot(request).right_future(),
        })
    }

    /// The router is there. Only the first one counts.
    pub fn open(&self, router: Interface) {
        if self.0.set(router).is_err() {
            tracing::error!("a router was given to a listener that has one");
        }
    }
}

async fn starting() -> ProblemResponse {
    let why = "the service is starting: it waits for its servers";
    ProblemResponse(Problem::new(ProblemType::ServiceUnavailable, why).retry_after(RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::extract::MatchedPath;
    use axum::http::StatusCode;
    use axum::routing::get;

    #[tokio::test]
    async fn it_says_so_until_it_is_there() {
        let later = Later::default();
        let service = later.service();
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let (parts, body) = service.clone().oneshot(request).await.unwrap().into_parts();
            (parts.status, parts.headers, String::from_utf8(to_bytes(body, 1000).await.unwrap().to_vec()).unwrap())
        };
        let (status, headers, _) = ask("/events/7").await;
        assert_eq!((status, &headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
        assert_eq!(
            (&headers["content-type"], &headers["x-content-type-options"]),
            (&"application/problem+json".parse().unwrap(), &"nosniff".parse().unwrap())
        );
        let router = Router::new().route("/events/{id}", get(async |path: MatchedPath| path.as_str().to_owned()));
        later.open(crate::http::layers(router, 1000));
        assert_eq!(ask("/events/7").await.2, "/events/{id}", "routes are known by their patterns");
        assert_eq!(ask("/other").await.0, StatusCode::NOT_FOUND);
    }
}
