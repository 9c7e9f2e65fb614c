//! Which part of a list is wanted, and what is answered. Lists are newest first and go on from a position
//! (time and id of the last item), so that a page costs the same wherever it is; page numbers work by offset,
//! up to [`TOTAL_MAX`] rows.

use chrono::{DateTime, Utc};
use relay_core::page::{Cursor, PageRequest};
use uuid::Uuid;

/// Totals are exact up to this many rows; more are not counted.
pub const TOTAL_MAX: i64 = 10_000;

/// The part of a list that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Only items after this position.
    pub after: Option<Cursor>,
    /// Items to skip (page numbers); 0 with a position.
    pub offset: i64,
    /// Items at most.
    pub limit: i64,
    /// Count them all too (up to [`TOTAL_MAX`]).
    pub with_total: bool,
}

impl Window {
    /// By page number.
    pub fn page(page: PageRequest) -> Self {
        Self { after: None, offset: page.offset(), limit: i64::from(page.size), with_total: true }
    }

    /// By position.
    pub fn after(after: Option<Cursor>, limit: i64) -> Self {
        Self { after, offset: 0, limit, with_total: false }
    }

    pub(crate) fn after_at(&self) -> Option<DateTime<Utc>> {
        self.after.map(|p| p.at)
    }

    pub(crate) fn after_id(&self) -> Option<Uuid> {
        self.after.map(|p| p.id)
    }
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    /// The items.
    pub items: Vec<T>,
    /// How many there are in all; `None` where it wasn't asked for or is over [`TOTAL_MAX`].
    pub total: Option<i64>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

impl<T> Listed<T> {
    /// `items` holds one more than `limit` where the list goes on.
    pub(crate) fn cut(
        mut items: Vec<T>,
        window: &Window,
        counted: Option<i64>,
        position: impl Fn(&T) -> Cursor,
    ) -> Self {
        let limit = usize::try_from(window.limit).unwrap_or(0);
        let goes_on = items.len() > limit;
        items.truncate(limit);
        let next = if goes_on { items.last().map(position) } else { None };
        Self { items, total: counted.filter(|n| *n <= TOTAL_MAX), next }
    }
}
