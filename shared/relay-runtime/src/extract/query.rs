//! Query parameters, read one by one. The last value of a name counts, an empty one counts as not given, names that
//! nobody asks for are ignored.

use std::convert::Infallible;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use relay_core::page::PageRequest;
use url::form_urlencoded;

use crate::problem::ProblemResponse;

/// The query of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryParams(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for QueryParams {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl QueryParams {
    /// Splits a raw query string.
    pub fn parse(raw: &str) -> Self {
        Self(form_urlencoded::parse(raw.as_bytes()).into_owned().collect())
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// A value that is read from its text; `must` completes the message "must …".
    pub fn value<T: FromStr>(&self, name: &str, must: &str) -> Result<Option<T>, ProblemResponse> {
        self.text(name).map(|text| text.parse().map_err(|_| bad(name, must))).transpose()
    }

    /// An id.
    pub fn id<T: FromStr>(&self, name: &str) -> Result<Option<T>, ProblemResponse> {
        self.value(name, "be a UUID")
    }

    /// A boolean, in the spellings that the Python WebhookRelay takes.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ProblemResponse> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => Ok(Some(true)),
            "false" | "0" | "no" | "off" | "f" | "n" => Ok(Some(false)),
            _ => Err(bad(name, "be true or false")),
        }
    }

    /// `page` and `size`.
    pub fn page(&self) -> Result<PageRequest, ProblemResponse> {
        let number = |name| self.value::<i64>(name, "be an integer");
        PageRequest::parse(number("page")?, number("size")?)
            .map_err(|e| ProblemResponse::field(format!("query.{}", e.field), e.to_string()))
    }
}

fn bad(name: &str, must: &str) -> ProblemResponse {
    ProblemResponse::field(format!("query.{name}"), format!("must {must}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_strict() {
        let page = |raw| QueryParams::parse(raw).page();
        assert_eq!(page("page=2&size=50&x=1").unwrap(), PageRequest { page: 2, size: 50 });
        assert_eq!(page("page=&size=").unwrap(), PageRequest::default());
        assert_eq!(page("page=1&page=3").unwrap().page, 3);
        for (raw, field) in [
            ("page=0", "query.page"),
            ("size=201", "query.size"),
            ("page=x", "query.page"),
            ("size=1.0", "query.size"),
            ("page=99999999999999999999", "query.page"),
        ] {
            assert_eq!(page(raw).unwrap_err().0.errors[0].field, field, "{raw}");
        }
        let flag = |raw| QueryParams::parse(raw).boolean("force");
        assert_eq!(flag("force=True").unwrap(), Some(true));
        assert_eq!(flag("force=off").unwrap(), Some(false));
        assert_eq!(flag("").unwrap(), None);
        assert_eq!(flag("force=maybe").unwrap_err().0.errors[0].field, "query.force");
        assert_eq!(QueryParams::parse("a=x%20y").text("a"), Some("x y"));
    }
}
