//! Lists of events, newest first. Called by the interface.
//!
//! Without a filter by status, endpoint or a pattern of types an index gives exactly what is asked for. With one, a
//! source of candidates is read step by step (`Source`), and each candidate's deliveries are looked at. One request
//! looks at a bounded number of rows and hands out an honest place to go on from, however few matched.
//!
//! Two orders: by time of acceptance; and, where the candidates come from deliveries or dead letters, by event id, which
//! is the same but for events with an idempotency key (their ids begin with the start of their UTC day).

use chrono::{DateTime, Utc};
use relay_core::delivery::{Closed, Status};
use relay_core::ids::{EndpointId, TenantId, day_floor, id_time};
use relay_core::matching::is_exact;
use relay_core::page::Cursor;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::events::EventSummary;
use crate::window::{Listed, TOTAL_MAX, Window};

/// Rows that one step of a filtered list looks at.
const STEP_ROWS: i64 = 4_000;
/// Candidates of one step, from each part of its source.
const STEP_CANDIDATES: i64 = 100;
/// Steps that one list makes.
const STEPS_MAX: usize = 4;

/// Which events are meant.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Of types that match this pattern (see [`relay_core::matching`]).
    pub event_type: Option<String>,
    /// With a delivery to this endpoint; the summaries then speak of that delivery.
    pub endpoint: Option<EndpointId>,
    /// With this status; with an endpoint, that of its delivery.
    pub status: Option<Status>,
    /// Accepted after this time.
    pub after: Option<DateTime<Utc>>,
    /// Accepted before this time.
    pub before: Option<DateTime<Utc>>,
}

impl EventFilter {
    /// The times that events lie between, both exclusive.
    pub(crate) fn span(&self) -> (DateTime<Utc>, DateTime<Utc>) {
        (self.after.unwrap_or(DateTime::UNIX_EPOCH), self.before.unwrap_or(last_time()))
    }

    /// Whether an index gives exactly the events that are meant.
    fn is_indexed(&self) -> bool {
        self.endpoint.is_none() && self.status.is_none() && self.event_type.as_deref().is_none_or(is_exact)
    }

    /// Where the candidates come from.
    fn source(&self) -> Source {
        match (self.status, self.endpoint) {
            (Some(status), _) if status.is_open() => Source::ByEvent { open: true, letters: false, closed: None },
            (Some(Status::DeadLettered), _) => Source::ByEvent { open: false, letters: true, closed: None },
            (None, Some(_)) => Source::ByEvent { open: true, letters: false, closed: Some(None) },
            (Some(Status::Discarded), Some(_)) => {
                Source::ByEvent { open: false, letters: false, closed: Some(Some(Closed::Discarded)) }
            }
            (Some(_), Some(_)) => {
                Source::ByEvent { open: false, letters: false, closed: Some(Some(Closed::Delivered)) }
            }
            (Some(Status::Unmatched), None) => Source::ByTime { has_deliveries: Some(false) },
            (Some(_), None) => Source::ByTime { has_deliveries: Some(true) },
            (None, None) => Source::ByTime { has_deliveries: None },
        }
    }

    /// Where a walk begins.
    fn top(&self, window: &Window) -> Cursor {
        let (_, before) = self.span();
        let top = Cursor { at: before, id: Uuid::nil() };
        window.after.filter(|c| (c.at, c.id) < (top.at, top.id)).unwrap_or(top)
    }

    fn exact_type(&self) -> Option<&str> {
        self.event_type.as_deref().filter(|p| is_exact(p))
    }

    fn type_regex(&self) -> Option<String> {
        self.event_type.as_deref().filter(|p| !is_exact(p)).map(pattern_regex)
    }
}

/// Where the candidates of a filtered list come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// The tenant's events, all or those with or without deliveries.
    ByTime { has_deliveries: Option<bool> },
    /// Deliveries and dead letters, by the event's id.
    ByEvent { open: bool, letters: bool, closed: Option<Option<Closed>> },
}

/// One step down a source.
struct Step {
    /// Newest first.
    candidates: Vec<Cursor>,
    /// Down to which event it looked; `None`: to the end.
    reached: Option<Cursor>,
}

/// A row of a source; the last one of a step may not be wanted and only says how far the step looked.
struct Looked {
    position: Cursor,
    is_wanted: bool,
    n: i64,
}

/// A row of a source that goes by event id.
struct ByEvent {
    id: Uuid,
    wanted: bool,
    n: i64,
}

impl From<ByEvent> for Looked {
    fn from(row: ByEvent) -> Self {
        Self { position: by_id(row.id), is_wanted: row.wanted, n: row.n }
    }
}

/// The latest time that the ledger compares with.
fn last_time() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The smallest id after all ids of this millisecond.
fn ids_end(at: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(at.timestamp_millis().saturating_add(1)).unwrap_or(0);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    Uuid::from_bytes(bytes)
}

fn by_id(id: Uuid) -> Cursor {
    Cursor { at: id_time(id), id }
}

/// A pattern of event types as Postgres's regular expression.
pub(crate) fn pattern_regex(pattern: &str) -> String {
    let mut regex = String::from("^");
    for (i, token) in pattern.split('.').enumerate() {
        if i > 0 {
            regex.push_str("\\.");
        }
        match token {
            "*" => regex.push_str("[^.]+"),
            ">" => regex.push_str(".+"),
            _ => {
                for c in token.chars() {
                    if !c.is_ascii_alphanumeric() && c != '_' {
                        regex.push('\\');
                    }
                    regex.push(c);
                }
            }
        }
    }
    regex.push('$');
    regex
}

/// How far a statement looked: to the last row that it gave, where it ended at one of its limits.
fn reached(rows: &[Looked], looked_max: i64, rows_max: i64) -> Option<Cursor> {
    let is_cut = |last: &Looked| last.n == looked_max || i64::try_from(rows.len()).is_ok_and(|n| n == rows_max);
    rows.last().filter(|last| is_cut(last)).map(|last| last.position)
}

impl Store {
    /// Events of a tenant. Filtered lists may have fewer items than asked for and a `next` all the same. Of a page by
    /// number, `next` is where its search ended early, and `total` is there only where it came to the end.
    pub async fn list_events(
        &self,
        tenant: &TenantId,
        filter: &EventFilter,
        window: &Window,
    ) -> Result<Listed<EventSummary>, StoreError> {
        if !filter.is_indexed() {
            return self.search_events(tenant, filter, window).await;
        }
        let rows_max = window.limit.saturating_add(1);
        let top = filter.top(window);
        let rows = self.events_by_time(tenant, filter, top, window.offset, None, rows_max, rows_max).await?;
        let total = window.total(rows.len(), self.count_events(tenant, filter)).await?;
        let positions = rows.iter().map(|r| r.position).collect();
        let part = Listed::cut(positions, window, total, |position: &Cursor| *position);
        let ids: Vec<Uuid> = part.items.iter().map(|p| p.id).collect();
        let rows = self.summaries(tenant, &ids, filter).await?;
        Ok(Listed { items: rows.iter().map(EventSummary::from).collect(), total, next: part.next })
    }

    async fn search_events(
        &self,
        tenant: &TenantId,
        filter: &EventFilter,
        window: &Window,
    ) -> Result<Listed<EventSummary>, StoreError> {
        let wanted = usize::try_from(window.limit).unwrap_or(0);
        let skipped = usize::try_from(window.offset).unwrap_or(usize::MAX);
        let source = filter.source();
        let (mut items, mut matched, mut steps) = (Vec::new(), 0, 0);
        let mut position = filter.top(window);
        loop {
            let step = self.step(tenant, filter, source, position).await?;
            let ids: Vec<Uuid> = step.candidates.iter().map(|c| c.id).collect();
            let rows = if ids.is_empty() { Vec::new() } else { self.summaries(tenant, &ids, filter).await? };
            for row in &rows {
                let summary = EventSummary { endpoint: filter.endpoint.or(row.endpoint()), ..EventSummary::from(row) };
                let is_wanted = filter
                    .status
                    .map_or(filter.endpoint.is_none() || summary.status != Status::Unmatched, |s| s == summary.status);
                if !is_wanted {
                    continue;
                }
                matched += 1;
                if matched <= skipped || items.len() == wanted {
                    continue;
                }
                items.push(summary);
                if !window.with_total && items.len() == wanted {
                    let last = step.candidates.iter().position(|c| c.id == row.id);
                    let is_end = step.reached.is_none() && last.is_some_and(|n| n + 1 == step.candidates.len());
                    let next = last.map(|n| step.candidates[n]).filter(|_| !is_end);
                    return Ok(Listed { items, total: None, next });
                }
            }
            steps += 1;
            let Some(reached) = step.reached else {
                let total = i64::try_from(matched).ok().filter(|_| window.with_total);
                return Ok(Listed { items, total, next: None });
            };
            position = reached;
            if steps == STEPS_MAX {
                return Ok(Listed { items, total: None, next: Some(position) });
            }
        }
    }

    /// One step down the source from a position.
    async fn step(
        &self,
        tenant: &TenantId,
        filter: &EventFilter,
        source: Source,
        below: Cursor,
    ) -> Result<Step, StoreError> {
        let mut parts = Vec::new();
        match source {
            Source::ByTime { has_deliveries } => {
                let rows =
                    self.events_by_time(tenant, filter, below, 0, has_deliveries, STEP_ROWS, STEP_CANDIDATES).await?;
                let reached = reached(&rows, STEP_ROWS, STEP_CANDIDATES);
                let candidates = rows.into_iter().filter(|r| r.is_wanted).map(|r| r.position).collect();
                return Ok(Step { candidates, reached });
            }
            Source::ByEvent { open, letters, closed } => {
                let (after, _) = filter.span();
                let (below, floor) = (if below.id.is_nil() { ids_end(below.at) } else { below.id }, day_floor(after));
                if open {
                    parts.push(self.open_by_event(tenant, filter, below, floor).await?);
                }
                if letters {
                    parts.push(self.letters_by_event(tenant, filter, below, floor).await?);
                }
                if let (Some(status), Some(endpoint)) = (closed, filter.endpoint) {
                    parts.push(self.closed_by_event(endpoint, status, below, floor).await?);
                }
            }
        }
        // What lies below the place that a part didn't come to waits for the next step.
        let ends = parts.iter().map(|rows| reached(rows, STEP_ROWS, STEP_CANDIDATES));
        let reached = ends.flatten().max_by_key(|c| c.id);
        let mut ids: Vec<Uuid> = parts
            .iter()
            .flatten()
            // Of the event at which a part was cut other rows may match: the summary tells.
            .filter(|r| r.is_wanted || reached.is_some_and(|c| c.id == r.position.id))
            .map(|r| r.position.id)
            .filter(|id| reached.is_none_or(|c| *id >= c.id))
            .collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.dedup();
        Ok(Step { candidates: ids.into_iter().map(by_id).collect(), reached })
    }

    #[expect(clippy::too_many_arguments, reason = "the parameters of one statement")]
    async fn events_by_time(
        &self,
        tenant: &TenantId,
        filter: &EventFilter,
        below: Cursor,
        offset: i64,
        has_deliveries: Option<bool>,
        looked_max: i64,
        rows_max: i64,
    ) -> Result<Vec<Looked>, StoreError> {
        let (after, _) = filter.span();
        macro_rules! rows {
            ($file:literal, $event_type:expr) => {
                self.keyed
                    .all(sqlx::query_file!(
                        $file,
                        tenant.as_str(),
                        after,
                        below.at,
                        below.id,
                        looked_max,
                        $event_type,
                        has_deliveries,
                        rows_max,
                        offset
                    ))
                    .await?
                    .into_iter()
                    .map(|r| Looked { position: Cursor { at: r.accepted_at, id: r.id }, is_wanted: r.wanted, n: r.n })
                    .collect()
            };
        }
        Ok(match filter.exact_type() {
            Some(event_type) => rows!("src/sql/events_of_type_by_time.sql", event_type),
            None => rows!("src/sql/events_by_time.sql", filter.type_regex()),
        })
    }

    async fn open_by_event(
        &self,
        tenant: &TenantId,
        filter: &EventFilter,
        below: Uuid,
        floor: Uuid,
    ) -> Result<Vec<Looked>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_file_as!(
                ByEvent,
                "src/sql/open_by_event.sql",
                below,
                floor,
                STEP_ROWS,
                tenant.as_str(),
                filter.endpoint.map(|e| e.0),
                filter.status.map(Status::as_str),
                STEP_CANDIDATES
            ))
            .await?;
        Ok(rows.into_iter().map(Looked::from).collect())
    }

    async fn letters_by_event(
        &self,
        tenant: &TenantId,
        filter: &EventFilter,
        below: Uuid,
        floor: Uuid,
    ) -> Result<Vec<Looked>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_file_as!(
                ByEvent,
                "src/sql/letters_by_event.sql",
                below,
                floor,
                STEP_ROWS,
                tenant.as_str(),
                filter.endpoint.map(|e| e.0),
                STEP_CANDIDATES
            ))
            .await?;
        Ok(rows.into_iter().map(Looked::from).collect())
    }

    async fn closed_by_event(
        &self,
        endpoint: EndpointId,
        status: Option<Closed>,
        below: Uuid,
        floor: Uuid,
    ) -> Result<Vec<Looked>, StoreError> {
        let rows = self
            .keyed
            .all(sqlx::query_file_as!(
                ByEvent,
                "src/sql/closed_by_event.sql",
                below,
                floor,
                STEP_ROWS,
                endpoint.0,
                status.map(|s| s as i16),
                STEP_CANDIDATES
            ))
            .await?;
        Ok(rows.into_iter().map(Looked::from).collect())
    }

    /// Counts events up to one more than [`TOTAL_MAX`].
    async fn count_events(&self, tenant: &TenantId, filter: &EventFilter) -> Result<i64, StoreError> {
        let (after, before) = filter.span();
        match filter.exact_type() {
            None => {
                self.keyed
                    .one(sqlx::query_scalar!(
                        r#"select count(*) as "n!" from (
                            select 1 from events e where e.tenant = $1 and e.accepted_at > $2 and e.accepted_at < $3 limit $4
                        ) x"#,
                        tenant.as_str(),
                        after,
                        before,
                        TOTAL_MAX + 1
                    ))
                    .await
            }
            Some(event_type) => {
                self.keyed
                    .one(sqlx::query_scalar!(
                        r#"select count(*) as "n!" from (
                            select 1 from events e where e.tenant = $1 and e.type = $5 and e.accepted_at > $2 and e.accepted_at < $3 limit $4
                        ) x"#,
                        tenant.as_str(),
                        after,
                        before,
                        TOTAL_MAX + 1,
                        event_type
                    ))
                    .await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_written_so_that_nothing_in_them_is_special() {
        assert_eq!(pattern_regex("order.*"), "^order\\.[^.]+$");
        assert_eq!(pattern_regex("a-b_1.>"), "^a\\-b_1\\..+$");
        assert_eq!(pattern_regex("*.(x|y)+"), "^[^.]+\\.\\(x\\|y\\)\\+$");
    }

    #[test]
    fn a_cut_part_says_how_far_it_looked() {
        let row = |id: u128, n| Looked { position: by_id(Uuid::from_u128(id)), is_wanted: true, n };
        assert_eq!(reached(&[], 10, 10), None);
        assert_eq!(reached(&[row(9, 1), row(8, 2)], 10, 3), None);
        assert_eq!(reached(&[row(9, 1), row(8, 10)], 10, 3), Some(by_id(Uuid::from_u128(8))));
        assert_eq!(reached(&[row(9, 1), row(8, 2)], 10, 2), Some(by_id(Uuid::from_u128(8))));
    }
}
