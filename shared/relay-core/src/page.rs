//! Parts of lists: by page number and size as the Python WebhookRelay has them, or by keyset cursor. Read by
//! `relay_runtime::list`, carried out by `relay_store::Window`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeZone, Utc};
use uuid::Uuid;

/// Rows of a page, unless asked otherwise.
pub const SIZE_DEFAULT: u32 = 20;
/// Rows of a page at most.
pub const SIZE_MAX: u32 = 200;
/// Totals are exact up to this many rows, and page numbers reach no further: more are neither counted nor skipped.
pub const TOTAL_MAX: i64 = 10_000;

/// A page by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// From 1.
    pub page: u32,
    /// Rows, 1 to [`SIZE_MAX`].
    pub size: u32,
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { page: 1, size: SIZE_DEFAULT }
    }
}

/// Why a request for a part of a list can't be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// A number is out of its limits.
    #[error("must be between 1 and {max}")]
    OutOfRange {
        /// `page`, `size` or `limit`.
        field: &'static str,
        /// Its greatest value.
        max: u32,
    },
    /// Page numbers and cursors together.
    #[error("page and size don't go together with cursor and limit")]
    Mixed {
        /// The cursor's parameter that was given.
        field: &'static str,
    },
    /// The page lies beyond what is counted.
    #[error("pages reach the first {TOTAL_MAX} items; use cursor and limit to go further")]
    TooFar,
    /// The cursor is none.
    #[error("{0}")]
    Cursor(#[from] BadCursor),
}

impl ListingError {
    /// The parameter at fault.
    pub fn field(&self) -> &'static str {
        match self {
            Self::OutOfRange { field, .. } | Self::Mixed { field } => field,
            Self::TooFar => "page",
            Self::Cursor(_) => "cursor",
        }
    }
}

impl PageRequest {
    /// The greatest page number: that of the last page with one row each.
    pub const PAGE_MAX: u32 = 10_000;

    /// Checks both numbers.
    pub fn parse(page: Option<i64>, size: Option<i64>) -> Result<Self, ListingError> {
        let request = Self {
            page: within("page", page, 1, Self::PAGE_MAX)?,
            size: within("size", size, SIZE_DEFAULT, SIZE_MAX)?,
        };
        if request.offset() >= TOTAL_MAX { Err(ListingError::TooFar) } else { Ok(request) }
    }

    /// Rows to skip.
    pub fn offset(&self) -> i64 {
        i64::from(self.page - 1) * i64::from(self.size)
    }
}

fn within(field: &'static str, value: Option<i64>, default: u32, max: u32) -> Result<u32, ListingError> {
    match value {
        None => Ok(default),
        Some(v) => {
            u32::try_from(v).ok().filter(|v| (1..=max).contains(v)).ok_or(ListingError::OutOfRange { field, max })
        }
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// A page by number, and how many items there are in all.
    Page(PageRequest),
    /// What follows a position: walking so repeats and misses nothing, whatever comes meanwhile.
    Walk {
        /// The position; `None`: from the beginning.
        after: Option<Cursor>,
        /// Items at most, 1 to [`SIZE_MAX`].
        limit: u32,
    },
}

/// The parameters of a list as they were given. An empty cursor begins a walk.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListingParams<'a> {
    /// `page`, from 1.
    pub page: Option<i64>,
    /// `size`.
    pub size: Option<i64>,
    /// `cursor`.
    pub cursor: Option<&'a str>,
    /// `limit`.
    pub limit: Option<i64>,
}

impl Listing {
    /// Checks the parameters. Without any it is the first page.
    pub fn parse(given: ListingParams<'_>) -> Result<Self, ListingError> {
        let field = match (given.cursor, given.limit) {
            (None, None) => return PageRequest::parse(given.page, given.size).map(Self::Page),
            (Some(_), _) => "cursor",
            (None, Some(_)) => "limit",
        };
        if given.page.is_some() || given.size.is_some() {
            return Err(ListingError::Mixed { field });
        }
        let after = given.cursor.filter(|text| !text.is_empty()).map(Cursor::decode).transpose()?;
        Ok(Self::Walk { after, limit: within("limit", given.limit, SIZE_DEFAULT, SIZE_MAX)? })
    }
}

/// How many pages `total` rows make.
pub fn pages(total: i64, size: u32) -> i64 {
    let size = i64::from(size.max(1));
    total.max(0).div_euclid(size) + i64::from(total.max(0) % size != 0)
}

/// A place in a list that is sorted by time and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The time of the last row seen, in microseconds.
    pub at: DateTime<Utc>,
    /// Its id.
    pub id: Uuid,
}

/// A text that is no cursor of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor that this interface gave out")]
pub struct BadCursor;

impl Cursor {
    /// Times of cursors, in seconds: the years 1970 to 9999, which Postgres has too.
    const SECONDS: std::ops::Range<i64> = 0..253_402_300_800;

    /// As text: base64url of 8 bytes of time and 16 of id.
    pub fn encode(&self) -> String {
        let mut bytes = [0u8; 24];
        bytes[..8].copy_from_slice(&self.at.timestamp_micros().to_be_bytes());
        bytes[8..].copy_from_slice(self.id.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Back from text.
    pub fn decode(text: &str) -> Result<Self, BadCursor> {
        let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCursor)?.try_into().map_err(|_| BadCursor)?;
        let (micros, id) = bytes.split_first_chunk::<8>().ok_or(BadCursor)?;
        let at = Utc.timestamp_micros(i64::from_be_bytes(*micros)).single().ok_or(BadCursor)?;
        if !Self::SECONDS.contains(&at.timestamp()) {
            return Err(BadCursor);
        }
        Ok(Self { at, id: Uuid::from_slice(id).map_err(|_| BadCursor)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_are_checked_and_counted() {
        assert_eq!(PageRequest::parse(None, None), Ok(PageRequest { page: 1, size: 20 }));
        assert_eq!(PageRequest::parse(Some(3), Some(50)).unwrap().offset(), 100);
        for (page, size, field) in [
            (Some(0), None, "page"),
            (Some(-1), None, "page"),
            (None, Some(0), "size"),
            (None, Some(201), "size"),
            (Some(i64::MAX), None, "page"),
            (Some(51), Some(200), "page"),
            (Some(10_000), Some(2), "page"),
        ] {
            assert_eq!(PageRequest::parse(page, size).unwrap_err().field(), field);
        }
        assert!(PageRequest::parse(Some(50), Some(200)).is_ok());
        assert_eq!([pages(0, 20), pages(1, 20), pages(20, 20), pages(21, 20)], [0, 1, 1, 2]);
    }

    #[test]
    fn a_list_is_paged_or_walked() {
        let cursor = Cursor { at: Utc.timestamp_opt(1_700_000_000, 0).unwrap(), id: Uuid::from_u128(7) };
        let text = cursor.encode();
        let none = ListingParams::default();
        assert_eq!(Listing::parse(none), Ok(Listing::Page(PageRequest::default())));
        let walk = |after, limit| Ok(Listing::Walk { after, limit });
        assert_eq!(Listing::parse(ListingParams { limit: Some(5), ..none }), walk(None, 5));
        assert_eq!(Listing::parse(ListingParams { cursor: Some(""), ..none }), walk(None, 20));
        assert_eq!(Listing::parse(ListingParams { cursor: Some(&text), ..none }), walk(Some(cursor), 20));
        for (given, field) in [
            (ListingParams { cursor: Some(&text), page: Some(1), ..none }, "cursor"),
            (ListingParams { limit: Some(5), size: Some(5), ..none }, "limit"),
            (ListingParams { limit: Some(0), ..none }, "limit"),
            (ListingParams { limit: Some(201), ..none }, "limit"),
            (ListingParams { cursor: Some("x"), ..none }, "cursor"),
        ] {
            assert_eq!(Listing::parse(given).unwrap_err().field(), field);
        }
    }

    #[test]
    fn cursors_stay_within_what_the_ledger_can_compare() {
        for seconds in [-1, 253_402_300_800] {
            let cursor = Cursor { at: Utc.timestamp_opt(seconds, 0).unwrap(), id: Uuid::nil() };
            assert_eq!(Cursor::decode(&cursor.encode()), Err(BadCursor));
        }
    }

    proptest! {
        #[test]
        fn cursors_come_back(micros in 0i64..4_000_000_000_000_000, id: u128) {
            let cursor = Cursor { at: Utc.timestamp_micros(micros).unwrap(), id: Uuid::from_u128(id) };
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn strange_texts_are_refused(text in "\\PC{0,40}") {
            let _ = Cursor::decode(&text);
        }

        #[test]
        fn any_24_bytes_are_a_cursor_or_none(bytes: [u8; 24]) {
            let text = URL_SAFE_NO_PAD.encode(bytes);
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(cursor.encode(), text);
            }
        }

        #[test]
        fn pages_hold_all_rows(total in 0i64..1_000_000_000, size in 1u32..=SIZE_MAX) {
            let pages = pages(total, size);
            prop_assert!(pages * i64::from(size) >= total && (pages - 1).max(0) * i64::from(size) <= total);
        }
    }
}
