//! What all lists of the interface have in common: the parameters that say which part of a list is wanted
//! ([`ListParams`], read by [`QueryParams::listing`](crate::extract::QueryParams::listing)) and the shape of the
//! answer ([`Page`]). Called by the routes that list something.

use relay_core::page::{Cursor, Listing, pages};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

/// The parameters of every list, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters in the OpenAPI document")]
pub struct ListParams {
    /// Which page, from 1. Pages reach the first 10,000 items; a cursor goes further.
    #[param(minimum = 1, maximum = 10000, default = 1)]
    page: Option<u32>,
    /// How many items a page has
    #[param(minimum = 1, maximum = 200, default = 20)]
    size: Option<u32>,
    /// Walks the list instead: the `next_cursor` of the answer before, empty for the beginning. A walk repeats and misses
    /// nothing while items are added.
    cursor: Option<String>,
    /// How many items a step of a walk has
    #[param(minimum = 1, maximum = 200, default = 20)]
    limit: Option<u32>,
}

/// A part of a list: with `page` and `size` `items, total, page, size, pages`; with `cursor` and `limit`
/// `items, next_cursor`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// What is on this page.
    items: Vec<T>,
    /// How many there are in all; null above 10,000. Not with a cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    total: Option<Option<i64>>,
    /// Which page this is, from 1. Not with a cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<u32>,
    /// How many fit on a page. Not with a cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u32>,
    /// How many pages there are; null where the total is. Not with a cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pages: Option<Option<i64>>,
    /// Where to go on; null at the end. Only with a cursor, or where a search ended before its page was full.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    next_cursor: Option<Option<String>>,
}

impl<T> Page<T> {
    /// The part that `listing` asked for. `total` counts for pages, `next` (`None` at the end) for walks.
    pub fn new(listing: Listing, items: Vec<T>, total: Option<i64>, next: Option<Cursor>) -> Self {
        match listing {
            Listing::Page(request) => Self {
                items,
                total: Some(total),
                page: Some(request.page),
                size: Some(request.size),
                pages: Some(total.map(|total| pages(total, request.size))),
                next_cursor: None,
            },
            Listing::Walk { .. } => Self {
                items,
                total: None,
                page: None,
                size: None,
                pages: None,
                next_cursor: Some(next.map(|cursor| cursor.encode())),
            },
        }
    }
}

impl<T> Page<T> {
    /// With the place from which a walk goes on: of a page whose search ended before the page was full.
    #[must_use]
    pub fn going_on(self, next: Option<Cursor>) -> Self {
        Self { next_cursor: next.map(|cursor| Some(cursor.encode())), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_core::page::PageRequest;
    use serde_json::json;

    #[test]
    fn both_shapes_have_their_fields_and_no_others() {
        let shape = |listing, total| serde_json::to_value(Page::new(listing, vec![1, 2], total, None)).unwrap();
        let page = Listing::Page(PageRequest { page: 1, size: 2 });
        assert_eq!(shape(page, Some(5)), json!({"items": [1, 2], "total": 5, "page": 1, "size": 2, "pages": 3}));
        assert_eq!(shape(page, None), json!({"items": [1, 2], "total": null, "page": 1, "size": 2, "pages": null}));
        let walk = Listing::Walk { after: None, limit: 2 };
        assert_eq!(shape(walk, None), json!({"items": [1, 2], "next_cursor": null}));
    }
}
