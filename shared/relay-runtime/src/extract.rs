//! What routes read of a request, strictly: everything that can't be read is a problem that names the field
//! (`body.max_retries`, `query.page`, `path.id`).

mod json;
mod query;

use std::collections::HashMap;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

pub use self::json::{JsonBody, OptionalJsonBody, is_json};
pub use self::query::QueryParams;
use crate::problem::ProblemResponse;

/// The id in a route's `{id}`, in any usual form of a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathId<T>(pub T);

impl<T: FromStr, S: Send + Sync> FromRequestParts<S> for PathId<T> {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let bad = || ProblemResponse::field("path.id", "must be a UUID");
        let Path(names) = Path::<HashMap<String, String>>::from_request_parts(parts, state).await.map_err(|_| bad())?;
        names.get("id").and_then(|text| text.parse().ok()).map(Self).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::extract::Request;
    use axum::routing::get;
    use relay_core::ids::EventId;
    use tower::ServiceExt;

    #[tokio::test]
    async fn ids_are_read_in_any_form() {
        for (path, status) in [
            ("/0192F3A4-0000-7000-8000-000000000001", 200),
            ("/0192f3a4000070008000000000000001", 200),
            ("/7", 422),
            ("/%ff", 422),
        ] {
            let app = Router::new().route("/{id}", get(|PathId(id): PathId<EventId>| async move { id.to_string() }));
            let answer = app.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{path}");
        }
    }
}
