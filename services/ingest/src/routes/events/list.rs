//! `GET /api/v1/events`: the tenant's events, newest first.

use axum::Json;
use axum::extract::State;
use relay_core::delivery::Status;
use relay_core::matching::TypeFilter;
use relay_core::page::Listing;
use relay_core::problem::FieldError;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;
use relay_store::EventFilter;

use crate::api::Api;
use crate::refusal::Refusal;
use crate::shapes::EventShape;

/// The statuses, for the documentation: they are read by [`Status::parse`].
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes a parameter in the OpenAPI document")]
enum StatusParam {
    Pending,
    Delivering,
    Failed,
    Delivered,
    DeadLettered,
    Discarded,
    Unmatched,
}

/// List events
///
/// Newest first by the time of acceptance. With `endpoint_id` or one of the statuses `pending`, `delivering`, `failed`
/// and `dead_lettered`, by event id: events with an idempotency key then come after the others of their UTC day. With
/// `endpoint_id`, status, attempts and times of each item are those of its delivery to that endpoint.
///
/// A filter by status, endpoint or a pattern with wildcards searches a bounded number of rows: a step of a walk may have
/// fewer items than asked for, even none, and a `next_cursor` all the same. A page whose search ended early has no
/// `total`, and a `next_cursor` from which to go on.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "events",
    operation_id = "list_events",
    params(
        ListParams,
        ("event_type" = Option<String>, Query, description = "A type, or a pattern as in the filters of endpoints: `order.*`, `order.>`", example = "order.*"),
        ("endpoint_id" = Option<uuid::Uuid>, Query, description = "With a delivery to this endpoint"),
        ("status" = inline(Option<StatusParam>), Query, description = "With this status"),
        ("created_after" = Option<chrono::DateTime<chrono::Utc>>, Query, description = "Accepted after this time"),
        ("created_before" = Option<chrono::DateTime<chrono::Utc>>, Query, description = "Accepted before this time"),
    ),
    responses(
        (status = 200, description = "A part of the list", body = Page<EventShape>),
        CommonProblems,
    )
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: QueryParams,
) -> Result<Json<Page<EventShape>>, Refusal> {
    let listing = query.listing()?;
    let filter = filter(&query)?;
    let events = api.links.store.list_events(&caller.tenant, &filter, &listing.into()).await?;
    let items: Vec<EventShape> = events.items.iter().map(EventShape::of_summary).collect();
    let ended_early = match listing {
        Listing::Page(page) => events.total.is_none() && items.len() < usize::try_from(page.size).unwrap_or(0),
        Listing::Walk { .. } => false,
    };
    let page = Page::new(listing, items, events.total, events.next);
    Ok(Json(if ended_early { page.going_on(events.next) } else { page }))
}

fn filter(query: &QueryParams) -> Result<EventFilter, FieldError> {
    let event_type = query.text("event_type").map(str::to_owned);
    if let Some(pattern) = &event_type {
        TypeFilter::parse(std::slice::from_ref(pattern))
            .map_err(|e| FieldError { field: "query.event_type".to_owned(), message: e.why.to_owned() })?;
    }
    let must = "be one of pending, delivering, failed, delivered, dead_lettered, discarded, unmatched";
    let status = query.text("status").map(|text| {
        Status::parse(text)
            .ok_or_else(|| FieldError { field: "query.status".to_owned(), message: format!("must {must}") })
    });
    Ok(EventFilter {
        event_type,
        endpoint: query.id("endpoint_id")?,
        status: status.transpose()?,
        after: query.time("created_after")?,
        before: query.time("created_before")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_strict() {
        let read = |raw| filter(&QueryParams::parse(raw));
        let full = read("event_type=order.*&status=dead_lettered&created_after=2026-01-31T12:00:00Z").unwrap();
        assert_eq!((full.event_type.as_deref(), full.status), (Some("order.*"), Some(Status::DeadLettered)));
        assert!(full.after.is_some() && full.before.is_none() && full.endpoint.is_none());
        for (raw, field) in [
            ("event_type=a..b", "query.event_type"),
            ("event_type=a%00", "query.event_type"),
            ("status=done", "query.status"),
            ("status=Pending", "query.status"),
            ("endpoint_id=7", "query.endpoint_id"),
            ("created_after=yesterday", "query.created_after"),
            ("created_before=1", "query.created_before"),
        ] {
            assert_eq!(read(raw).unwrap_err().field, field, "{raw}");
        }
    }
}
