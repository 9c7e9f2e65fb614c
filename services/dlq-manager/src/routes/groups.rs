//! `GET /api/v1/dlq/groups`: open dead letters by endpoint and reason, the group that began last first.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use relay_core::delivery::DeadReason;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::CommonProblems;
use relay_runtime::problem::ProblemResponse;
use relay_store::LetterGroup;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::filter;
use crate::refusal;

/// Open dead letters with the same endpoint and reason.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetterGroup)]
pub struct GroupShape {
    /// Whose letters they are; null: nobody's.
    tenant: Option<String>,
    /// Null for messages that never became events.
    endpoint_id: Option<Uuid>,
    /// Why they are here.
    #[schema(value_type = String, example = "exhausted")]
    reason: DeadReason,
    /// How many there are, counted up to 10,000.
    count: i64,
    /// Whether there are more than `count`.
    more: bool,
    /// When the first came here.
    first_at: DateTime<Utc>,
    /// When the last came here.
    last_at: DateTime<Utc>,
    /// The last one.
    example_id: Uuid,
}

impl From<LetterGroup> for GroupShape {
    fn from(group: LetterGroup) -> Self {
        Self {
            tenant: group.tenant.map(|tenant| tenant.as_str().to_owned()),
            endpoint_id: group.endpoint.map(|endpoint| endpoint.0),
            reason: group.reason,
            count: group.count,
            more: group.more,
            first_at: group.first_at,
            last_at: group.last_at,
            example_id: group.example.0,
        }
    }
}

/// Group dead letters
///
/// Open dead letters by endpoint and reason. The group whose first letter is the newest comes first.
#[utoipa::path(
    get,
    path = "/api/v1/dlq/groups",
    tag = "dead letters",
    operation_id = "group_dead_letters",
    params(
        ListParams,
        ("endpoint_id" = Option<Uuid>, Query, description = "Only letters for this endpoint"),
        ("reason" = Option<String>, Query, description = "Only letters with this reason"),
    ),
    responses((status = 200, description = "A page of groups", body = Page<GroupShape>), CommonProblems)
)]
pub async fn groups(
    State(api): State<Api>,
    caller: Caller,
    query: QueryParams,
) -> Result<Json<Page<GroupShape>>, ProblemResponse> {
    let (endpoint, reason, listing) = (query.id("endpoint_id")?, filter::reason(&query)?, query.listing()?);
    let window = listing.into();
    let listed = api
        .links
        .store
        .letter_groups(caller.only_tenant(), endpoint, reason, &window)
        .await
        .map_err(refusal::ledger)?;
    let items = listed.items.into_iter().map(GroupShape::from).collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}
