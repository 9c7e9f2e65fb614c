//! Path and query parameters of the routes, read strictly: what can't be read is a refusal that names it.

use std::fmt::Display;
use std::str::FromStr;

use relay_core::page::PageRequest;
use relay_core::problem::FieldError;
use url::form_urlencoded;

use crate::refusal::Refusal;

/// The query of a request.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Splits a raw query string.
    pub fn parse(raw: Option<&str>) -> Self {
        Self(form_urlencoded::parse(raw.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The last value of `name`; an empty one counts as not given.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    fn integer(&self, name: &'static str) -> Result<Option<i64>, Refusal> {
        self.get(name)
            .map(|text| text.parse().map_err(|_| invalid(format!("query.{name}"), "must be an integer")))
            .transpose()
    }

    /// A boolean, in the spellings of the seed's framework.
    pub fn boolean(&self, name: &'static str) -> Result<Option<bool>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => Ok(Some(true)),
            "false" | "0" | "no" | "off" | "f" | "n" => Ok(Some(false)),
            _ => Err(invalid(format!("query.{name}"), "must be true or false")),
        }
    }

    /// `page` and `size`.
    pub fn page(&self) -> Result<PageRequest, Refusal> {
        PageRequest::parse(self.integer("page")?, self.integer("size")?)
            .map_err(|e| invalid(format!("query.{}", e.field), e))
    }
}

/// An id in the path.
pub fn id<T: FromStr>(name: &'static str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| invalid(format!("path.{name}"), "must be a UUID"))
}

fn invalid(field: String, why: impl Display) -> Refusal {
    Refusal::Invalid(vec![FieldError { field, message: why.to_string() }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_booleans_are_strict() {
        let page = |raw| Query::parse(Some(raw)).page();
        assert_eq!(page("page=2&size=50&x=1").unwrap(), PageRequest { page: 2, size: 50 });
        assert_eq!(page("").unwrap(), PageRequest::default());
        assert_eq!(page("page=&size=").unwrap(), PageRequest::default());
        for bad in ["page=0", "size=0", "size=201", "page=x", "page=1.0", "page=-1", "page=99999999999999999999"] {
            assert!(matches!(page(bad), Err(Refusal::Invalid(_))), "{bad}");
        }
        let boolean = |raw| Query::parse(Some(raw)).boolean("is_active");
        assert_eq!(boolean("is_active=True").unwrap(), Some(true));
        assert_eq!(boolean("is_active=off").unwrap(), Some(false));
        assert_eq!(boolean("other=1").unwrap(), None);
        assert!(boolean("is_active=maybe").is_err());
    }
}
