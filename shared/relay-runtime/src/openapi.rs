//! What the OpenAPI documents of the services have in common: the shape of a problem and the answers that every
//! route can give.

mod examples;
mod page;

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use utoipa::{IntoResponses, OpenApi, ToSchema};

/// The document that routes are added to: without it, the shape of a problem is pointed at and not there.
pub fn document(title: &str, description: &str) -> utoipa::openapi::OpenApi {
    let mut document = Base::openapi();
    document.info.title = title.to_owned();
    document.info.description = Some(description.to_owned());
    document
}

/// Where the document is.
const DOCUMENT: &str = "/openapi.json";
/// Shows the document at `/openapi.json` beside the routes that it describes, and at `/docs` a page on which it is read
/// and tried.
pub fn show(routes: Router, document: &utoipa::openapi::OpenApi) -> Router {
    let mut document = serde_json::to_value(document).expect("the document has only texts as keys");
    examples::add(&mut document);
    let text: Arc<str> = document.to_string().into();
    let answer = move || async move { ([(header::CONTENT_TYPE, "application/json")], text.to_string()) };
    page::add(routes.route(DOCUMENT, get(answer)), DOCUMENT)
}

#[derive(OpenApi)]
#[openapi(components(schemas(ProblemBody, FieldErrorBody)))]
struct Base;

/// An error, as RFC 9457 has it.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "describes relay_core::problem::Problem, which writes itself")]
pub struct ProblemBody {
    /// Stable identifier of the kind of error
    #[schema(example = "urn:webhook-relay:problem:validation-failed")]
    r#type: String,
    /// Short title of the kind of error
    title: String,
    /// The HTTP status
    status: u16,
    /// What happened, for people
    detail: String,
    /// What is wrong, field by field
    errors: Option<Vec<FieldErrorBody>>,
}

/// What is wrong with one field.
#[derive(ToSchema)]
#[schema(as = FieldError)]
#[expect(dead_code, reason = "describes relay_core::problem::FieldError, which writes itself")]
pub struct FieldErrorBody {
    /// Where: `body.max_retries`, `query.page`, `path.id`
    field: String,
    /// What
    message: String,
}

/// Answers that every route can give: add it to the `responses` of a path.
#[derive(IntoResponses)]
pub enum CommonProblems {
    /// No key, or a wrong one
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(ProblemBody),
    /// A parameter or field is missing, of the wrong type or out of its limits
    #[response(status = 422, content_type = "application/problem+json")]
    ValidationFailed(ProblemBody),
    /// An error of the service itself
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemBody),
    /// A server that this needs is away, or too much is waiting: try again after `Retry-After`
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(ProblemBody),
}

/// Answers of routes that read a JSON body.
#[derive(IntoResponses)]
pub enum BodyProblems {
    /// The body is not JSON
    #[response(status = 400, content_type = "application/problem+json")]
    BadJson(ProblemBody),
    /// The body is over the limit
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemBody),
    /// The content type is not application/json
    #[response(status = 415, content_type = "application/problem+json")]
    UnsupportedMediaType(ProblemBody),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_answers_point_at_the_one_shape() {
        let all: Vec<_> = CommonProblems::responses().into_iter().chain(BodyProblems::responses()).collect();
        assert_eq!(
            all.iter().map(|(status, _)| status.as_str()).collect::<Vec<_>>(),
            ["401", "422", "500", "503", "400", "413", "415"]
        );
        let text = serde_json::to_string(&all[0].1).unwrap();
        assert!(text.contains("#/components/schemas/Problem\""), "{text}");
        let document = serde_json::to_value(document("A title", "What it is")).unwrap();
        assert_eq!(document["info"]["title"], "A title");
        assert!(document["components"]["schemas"]["Problem"]["properties"]["errors"].is_object());
        assert!(document["components"]["schemas"]["FieldError"].is_object());
    }
}
