//! JSON bodies: 415 for another content type, 413 over the limit, 429 or 503 without room, 400 for what is no JSON, 422 with the field's
//! path for wrong types. Types are strict (`"7"` is no integer); fields that nobody asked for are ignored.

use std::fmt::Display;

use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use relay_core::problem::ProblemType;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::http::NotRead;
use crate::problem::ProblemResponse;

/// A JSON body, read into `T`.
#[derive(Clone, Copy, Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        if !is_json(request.headers()) {
            let detail = "the body must be JSON, with the header `Content-Type: application/json`";
            return Err(ProblemResponse::new(ProblemType::UnsupportedMediaType, detail));
        }
        let body = Bytes::from_request(request, state).await.map_err(unread)?;
        read(&body).map(Self)
    }
}

/// A JSON body that may be left out: no body at all is the default.
#[derive(Clone, Copy, Debug)]
pub struct OptionalJsonBody<T>(pub T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJsonBody<T> {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        if request.body().is_end_stream() {
            return Ok(Self(T::default()));
        }
        JsonBody::from_request(request, state).await.map(|JsonBody(value)| Self(value))
    }
}

/// Whether a request says that its body is JSON. Saying nothing is not enough: a web page can send such a
/// request to an interface on loopback without asking anybody.
pub fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(text)) = headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn unread(rejection: BytesRejection) -> ProblemResponse {
    if let Some(why) = NotRead::in_error(&rejection) {
        return ProblemResponse(why.into());
    }
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ProblemResponse::new(ProblemType::PayloadTooLarge, "the body is over the limit")
        }
        _ => ProblemResponse::new(ProblemType::BadRequest, "the body could not be read to its end"),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ProblemResponse> {
    let text = std::str::from_utf8(body).map_err(|error| malformed(format_args!("not UTF-8: {error}")))?;
    let mut json = serde_json::Deserializer::from_str(text);
    // Without this, an array would pass for an object by its order.
    let wrong = if text.trim_ascii_start().starts_with('{') {
        match serde_path_to_error::deserialize(&mut json) {
            Ok(value) => return json.end().map(|()| value).map_err(malformed),
            Err(wrong) => Some(wrong),
        }
    } else {
        None
    };
    // A wrong type ends the reading; what comes behind it may be no JSON at all, and that is said first.
    serde_json::from_str::<IgnoredAny>(text).map_err(malformed)?;
    let Some(wrong) = wrong else { return Err(ProblemResponse::field("body", "must be an object")) };
    let at = match wrong.path().to_string() {
        root if root == "." => "body".to_owned(),
        path => format!("body.{path}"),
    };
    let message = without_place(&wrong.inner().to_string());
    Err(missing(&message, &at).unwrap_or_else(|| ProblemResponse::field(at, message)))
}

/// `missing field` is said of the object around it: name the field itself.
fn missing(message: &str, at: &str) -> Option<ProblemResponse> {
    let field = message.strip_prefix("missing field `")?.strip_suffix('`')?;
    Some(ProblemResponse::field(format!("{at}.{field}"), "is required"))
}

fn malformed(error: impl Display) -> ProblemResponse {
    ProblemResponse::new(ProblemType::BadJson, format!("the body is not valid JSON: {error}"))
}

/// The message without the line and column, which say little where the path is known.
fn without_place(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(text, _)| text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Order {
        url: String,
        max_retries: Option<i32>,
        #[serde(default)]
        lines: Vec<Line>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Line {
        count: u8,
    }

    fn refused(body: &str) -> (u16, String) {
        let ProblemResponse(problem) = read::<Order>(body.as_bytes()).unwrap_err();
        (problem.status(), problem.errors.first().map(|e| e.field.clone()).unwrap_or_default())
    }

    #[test]
    fn errors_name_the_field() {
        for (body, field) in [
            (r#"{"url": "x", "max_retries": "7"}"#, "body.max_retries"),
            (r#"{"url": "x", "max_retries": 5.0}"#, "body.max_retries"),
            (r#"{"url": "x", "max_retries": true}"#, "body.max_retries"),
            (r#"{"max_retries": 7}"#, "body.url"),
            (r#"{"url": null}"#, "body.url"),
            (r#"{"url": "x", "lines": [{"count": 1}, {"count": 300}]}"#, "body.lines[1].count"),
            (r#"{"url": "x", "lines": [{}]}"#, "body.lines[0].count"),
            ("[\"x\", 1, []]", "body"),
            ("7", "body"),
        ] {
            let (status, named) = refused(body);
            assert_eq!((status, named.as_str()), (422, field), "{body}");
        }
        assert!(read::<Order>(br#"{"url": "x", "unknown": 1}"#).is_ok(), "unknown fields are ignored");
    }

    #[test]
    fn what_is_no_json_is_said_first() {
        for body in ["", "{", r#"{"url": 7, "#, r#"{"url": "x"} x"#, r#"{"max_retries": "7"} x"#] {
            assert_eq!(refused(body).0, 400, "{body}");
        }
        let ProblemResponse(problem) = read::<Order>(b"{\"url\": \"\xff\"}").unwrap_err();
        assert_eq!(problem.status(), 400);
    }

    #[test]
    fn only_json_is_taken() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, text.parse().unwrap());
            is_json(&headers)
        };
        assert!(with("application/json") && with("Application/JSON; charset=utf-8") && with("application/x+json"));
        assert!(!with("text/plain") && !with("application/x-www-form-urlencoded") && !is_json(&HeaderMap::new()));
    }

    proptest! {
        #[test]
        fn nothing_panics(body: Vec<u8>) {
            let _ = read::<Order>(&body);
        }
    }
}
