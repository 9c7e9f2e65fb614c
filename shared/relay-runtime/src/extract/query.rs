//! Query parameters, read one by one. The last value of a name counts, names that nobody asks for are ignored. An empty
//! text counts as not given; an empty id, number, time or flag is an error: `?endpoint_id=$UNSET` must not mean all.

use std::convert::Infallible;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use relay_core::page::{Listing, ListingParams};
use relay_core::problem::FieldError;
use url::form_urlencoded;

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

    fn last(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.last(name).filter(|value| !value.is_empty())
    }

    /// A value that is read from its text; `must` completes the message "must …".
    pub fn value<T: FromStr>(&self, name: &str, must: &str) -> Result<Option<T>, FieldError> {
        self.last(name).map(|text| text.parse().map_err(|_| bad(name, must))).transpose()
    }

    /// An id.
    pub fn id<T: FromStr>(&self, name: &str) -> Result<Option<T>, FieldError> {
        self.value(name, "be a UUID")
    }

    /// A boolean, in the spellings that the Python WebhookRelay takes.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, FieldError> {
        let Some(text) = self.last(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => Ok(Some(true)),
            "false" | "0" | "no" | "off" | "f" | "n" => Ok(Some(false)),
            _ => Err(bad(name, "be true or false")),
        }
    }

    /// A time, as RFC 3339 has it.
    pub fn time(&self, name: &str) -> Result<Option<DateTime<Utc>>, FieldError> {
        self.value(name, "be a time like 2026-01-31T12:00:00Z (a + in it is written %2B)")
    }

    /// Which part of a list is wanted: `page` and `size`, or `cursor` and `limit`. An empty `cursor` begins a walk.
    pub fn listing(&self) -> Result<Listing, FieldError> {
        let number = |name| self.value::<i64>(name, "be an integer");
        let given = ListingParams {
            page: number("page")?,
            size: number("size")?,
            cursor: self.last("cursor"),
            limit: number("limit")?,
        };
        Listing::parse(given).map_err(|e| field(e.field(), e.to_string()))
    }
}

fn bad(name: &str, must: &str) -> FieldError {
    field(name, format!("must {must}"))
}

fn field(name: &str, message: String) -> FieldError {
    FieldError { field: format!("query.{name}"), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_core::page::PageRequest;

    #[test]
    fn parameters_are_strict() {
        let listing = |raw| QueryParams::parse(raw).listing();
        let page = |page, size| Ok(Listing::Page(PageRequest { page, size }));
        assert_eq!(listing("page=2&size=50&x=1"), page(2, 50));
        assert_eq!(listing("page=1&page=3"), page(3, 20));
        assert_eq!(listing("cursor="), Ok(Listing::Walk { after: None, limit: 20 }));
        assert_eq!(listing("limit=7"), Ok(Listing::Walk { after: None, limit: 7 }));
        for (raw, field) in [
            ("page=0", "query.page"),
            ("size=201", "query.size"),
            ("page=x", "query.page"),
            ("page=", "query.page"),
            ("size=1.0", "query.size"),
            ("page=99999999999999999999", "query.page"),
            ("limit=0", "query.limit"),
            ("limit=x", "query.limit"),
            ("cursor=x", "query.cursor"),
            ("cursor=&page=1", "query.cursor"),
            ("limit=1&size=1", "query.limit"),
        ] {
            assert_eq!(listing(raw).unwrap_err().field, field, "{raw}");
        }
        let flag = |raw| QueryParams::parse(raw).boolean("force");
        assert_eq!(flag("force=True").unwrap(), Some(true));
        assert_eq!(flag("force=off").unwrap(), Some(false));
        assert_eq!(flag("").unwrap(), None);
        assert_eq!(flag("force=").unwrap_err().field, "query.force");
        assert_eq!(flag("force=maybe").unwrap_err().field, "query.force");
        let time = |raw| QueryParams::parse(raw).time("after");
        assert_eq!(time("after=2026-01-31T12:00:00Z").unwrap(), time("after=2026-01-31T13:00:00%2B01:00").unwrap());
        for odd in ["after=yesterday", "after=2026-01-31", "after=2026-01-31T13:00:00+01:00", "after=%00"] {
            assert_eq!(time(odd).unwrap_err().field, "query.after");
        }
        assert_eq!(QueryParams::parse("a=x%20y").text("a"), Some("x y"));
    }
}
