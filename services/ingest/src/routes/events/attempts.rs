//! `GET /api/v1/events/{event_id}/attempts`: every POST that was made for an event, oldest first.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use relay_core::ids::EventId;
use relay_core::page::PageRequest;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_store::Window;

use crate::api::Api;
use crate::query::{self, Query};
use crate::refusal::Refusal;
use crate::shapes::{AttemptShape, Page};

/// List an event's attempts
#[utoipa::path(
    get,
    path = "/api/v1/events/{event_id}/attempts",
    tag = "events",
    operation_id = "list_attempts",
    params(("event_id" = uuid::Uuid, Path), ("page" = Option<u32>, Query, minimum = 1),
        ("size" = Option<u32>, Query, minimum = 1, maximum = 200)),
    responses(
        (status = 200, description = "A page, by number", body = Page<AttemptShape>),
        (status = 404, description = "There is no such event", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn attempts(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Json<Page<AttemptShape>>, Refusal> {
    let id: EventId = query::id("event_id", &id)?;
    let page = Query::parse(raw.as_deref()).page()?;
    let tenant = caller.tenant;
    let store = &api.links.store;
    let event = api.stored_id(&tenant, id).await?;
    let listed = store.attempts_of_event(&tenant, event, &Window::page(page)).await?.ok_or(Refusal::UnknownEvent)?;
    let items = match listed.total {
        // Over the limit of counting the ledger's own order has to do.
        None => listed.items,
        Some(total) => {
            let window = from_the_end(total, page);
            let wanted = store.attempts_of_event(&tenant, event, &window).await?.ok_or(Refusal::UnknownEvent)?;
            wanted.items.into_iter().rev().collect()
        }
    };
    Ok(Json(Page::new(items.iter().map(|a| AttemptShape::new(event, a)).collect(), listed.total, page)))
}

/// The part of the ledger's list, which begins with the newest, that a page which begins with the oldest shows.
fn from_the_end(total: i64, page: PageRequest) -> Window {
    let limit = (total - page.offset()).clamp(0, i64::from(page.size));
    Window { after: None, offset: (total - page.offset() - limit).max(0), limit, with_total: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_count_from_the_oldest() {
        let part = |total, page, size| {
            let window = from_the_end(total, PageRequest { page, size });
            (window.offset, window.limit)
        };
        assert_eq!(part(3, 1, 20), (0, 3));
        assert_eq!(part(5, 1, 2), (3, 2));
        assert_eq!(part(5, 2, 2), (1, 2));
        assert_eq!(part(5, 3, 2), (0, 1));
        assert_eq!(part(5, 4, 2), (0, 0));
        assert_eq!(part(0, 1, 20), (0, 0));
    }
}
