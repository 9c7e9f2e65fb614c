//! Which part of a list is wanted, and what is answered. Lists are newest first and go on from a position
//! (time and id of the last item), so that a page costs the same wherever it is; page numbers work by offset,
//! up to [`TOTAL_MAX`] rows.

use chrono::{DateTime, Utc};
pub use relay_core::page::TOTAL_MAX;
use relay_core::page::{Cursor, Listing, PageRequest};
use uuid::Uuid;

use crate::error::StoreError;

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

impl From<Listing> for Window {
    fn from(listing: Listing) -> Self {
        match listing {
            Listing::Page(page) => Self::page(page),
            Listing::Walk { after, limit } => Self::after(after, i64::from(limit)),
        }
    }
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

    /// How many items there are in all, where that is asked for: so that it agrees with the `found` rows (one more
    /// than the limit where the list goes on), whatever came between the two statements. Often they tell it alone.
    pub(crate) async fn total(
        &self,
        found: usize,
        count: impl Future<Output = Result<i64, StoreError>>,
    ) -> Result<Option<i64>, StoreError> {
        if !self.with_total {
            return Ok(None);
        }
        let found = i64::try_from(found).unwrap_or(i64::MAX);
        let seen = self.offset.saturating_add(found);
        let total = if found > self.limit {
            count.await?.max(seen)
        } else if found > 0 || self.offset == 0 {
            seen
        } else {
            count.await?.min(self.offset)
        };
        Ok(Some(total).filter(|n| *n <= TOTAL_MAX))
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
    pub(crate) fn cut(mut items: Vec<T>, window: &Window, total: Option<i64>, position: impl Fn(&T) -> Cursor) -> Self {
        let limit = usize::try_from(window.limit).unwrap_or(0);
        let goes_on = items.len() > limit;
        items.truncate(limit);
        let next = if goes_on { items.last().map(position) } else { None };
        Self { items, total, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn totals_agree_with_the_rows() {
        let total = |page, found, count| async move {
            let window = Window::page(PageRequest { page, size: 10 });
            window.total(found, async move { Ok(count) }).await.unwrap()
        };
        assert_eq!(total(1, 0, 99).await, Some(0), "nothing was counted");
        assert_eq!(total(2, 3, 99).await, Some(13));
        assert_eq!(total(2, 10, 99).await, Some(20));
        assert_eq!(total(1, 11, 30).await, Some(30));
        assert_eq!(total(1, 11, 5).await, Some(11), "rows went between the two");
        assert_eq!(total(9, 0, 30).await, Some(30));
        assert_eq!(total(2, 0, 11).await, Some(10), "rows came between the two");
        assert_eq!(total(1, 11, TOTAL_MAX + 1).await, None);
        let walk = Window::after(None, 10);
        assert_eq!(walk.total(3, async { Ok(3) }).await.unwrap(), None);
    }
}
