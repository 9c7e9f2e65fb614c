//! Path parameters of the routes, read strictly: what can't be read is a refusal that names it. Query parameters are
//! read by `relay_runtime::extract::QueryParams`.

use std::str::FromStr;

use relay_core::problem::FieldError;

use crate::refusal::Refusal;

/// An id in the path.
pub fn id<T: FromStr>(name: &'static str, text: &str) -> Result<T, Refusal> {
    let bad = || FieldError { field: format!("path.{name}"), message: "must be a UUID".to_owned() };
    text.parse().map_err(|_| bad().into())
}
