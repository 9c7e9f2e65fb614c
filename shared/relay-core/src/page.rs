//! Pages of lists: by number and size as the Python WebhookRelay has them, and keyset cursors.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeZone, Utc};
use uuid::Uuid;

/// Rows of a page, unless asked otherwise.
pub const SIZE_DEFAULT: u32 = 20;
/// Rows of a page at most.
pub const SIZE_MAX: u32 = 200;

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

/// Which of the two numbers is wrong, and what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be between 1 and {max}")]
pub struct PageError {
    /// `page` or `size`.
    pub field: &'static str,
    /// Its greatest value.
    pub max: u32,
}

impl PageRequest {
    /// The greatest page number.
    pub const PAGE_MAX: u32 = 1_000_000;

    /// Checks both numbers.
    pub fn parse(page: Option<i64>, size: Option<i64>) -> Result<Self, PageError> {
        let check = |value: Option<i64>, default: u32, max: u32, field| match value {
            None => Ok(default),
            Some(v) => u32::try_from(v).ok().filter(|v| (1..=max).contains(v)).ok_or(PageError { field, max }),
        };
        Ok(Self { page: check(page, 1, Self::PAGE_MAX, "page")?, size: check(size, SIZE_DEFAULT, SIZE_MAX, "size")? })
    }

    /// Rows to skip.
    pub fn offset(&self) -> i64 {
        i64::from(self.page - 1) * i64::from(self.size)
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
        ] {
            assert_eq!(PageRequest::parse(page, size).unwrap_err().field, field);
        }
        assert_eq!([pages(0, 20), pages(1, 20), pages(20, 20), pages(21, 20)], [0, 1, 1, 2]);
    }

    proptest! {
        #[test]
        fn cursors_come_back(micros in -1_000_000_000_000_000i64..4_000_000_000_000_000, id: u128) {
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
