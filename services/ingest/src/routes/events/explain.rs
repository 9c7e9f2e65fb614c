//! `GET /api/v1/events/{event_id}/explain`: which endpoints an event went to, and why not to the others.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, State};
use chrono::{DateTime, Utc};
use relay_core::breaker::CircuitState;
use relay_core::endpoint::Endpoint;
use relay_core::explain::{Asked, Miss, misses};
use relay_core::ids::{DeliveryId, EndpointId, EventId};
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::list::{ListParams, Page};
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_store::DeliveryView;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;

/// What an event has to do with one endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Explanation)]
pub struct ExplanationShape {
    endpoint_id: Uuid,
    endpoint_name: String,
    /// Whether the event has a delivery to the endpoint.
    matched: bool,
    /// `ledger` (the delivery exists) or `current_settings` (there is none; the reasons are what speaks against it today,
    /// and the settings may have been others then).
    judged_by: &'static str,
    /// Why not: `addressed_to_another_endpoint`, `endpoint_created_later`, `endpoint_inactive`,
    /// `event_type_not_in_filter`, or `endpoint_changed_since` where nothing of today speaks against it.
    #[schema(example = json!(["event_type_not_in_filter"]))]
    reasons: Vec<&'static str>,
    /// The same in words.
    detail: String,
    /// What holds an open delivery now: `pause`, `circuit` or nothing.
    held_by: Option<&'static str>,
    delivery: Option<ExplainedDelivery>,
}

/// The delivery that there is.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExplainedDelivery {
    id: Uuid,
    status: &'static str,
    attempt_count: i32,
    next_retry_at: Option<DateTime<Utc>>,
    delivered_at: Option<DateTime<Utc>>,
    last_http_status: Option<u16>,
    last_error: Option<String>,
}

/// Explain where an event went
///
/// One item per endpoint of the tenant, newest first: whether the event matched it, and why not.
#[utoipa::path(
    get,
    path = "/api/v1/events/{event_id}/explain",
    tag = "events",
    operation_id = "explain_event",
    params(("event_id" = uuid::Uuid, Path), ListParams),
    responses(
        (status = 200, description = "A part of the list", body = Page<ExplanationShape>),
        (status = 404, description = "There is no such event", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn explain(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    query: QueryParams,
) -> Result<Json<Page<ExplanationShape>>, Refusal> {
    let id: EventId = query::id("event_id", &id)?;
    let listing = query.listing()?;
    let tenant = caller.tenant;
    let event = api.stored_id(&tenant, id).await?;
    let store = &api.links.store;
    let summary = store.event_summary(&tenant, event).await?.ok_or(Refusal::UnknownEvent)?;
    let listed = store.list_endpoints(&tenant, None, &listing.into()).await?;
    let ids: Vec<EndpointId> = listed.items.iter().map(|e| e.id).collect();
    let deliveries: HashMap<EndpointId, DeliveryView> =
        store.deliveries_to(event, &ids).await?.into_iter().map(|d| (d.endpoint, d)).collect();
    let asked =
        Asked { event_type: summary.event_type.as_str(), endpoint: summary.endpoint, accepted_at: summary.accepted_at };
    let items = listed
        .items
        .iter()
        .map(|endpoint| {
            let circuit = api.links.circuits.state(endpoint.id).state;
            shape(event, asked, endpoint, deliveries.get(&endpoint.id), circuit)
        })
        .collect();
    Ok(Json(Page::new(listing, items, listed.total, listed.next)))
}

fn shape(
    event: EventId,
    asked: Asked<'_>,
    endpoint: &Endpoint,
    delivery: Option<&DeliveryView>,
    circuit: CircuitState,
) -> ExplanationShape {
    let reasons = if delivery.is_some() { Vec::new() } else { misses(asked, endpoint) };
    let is_open = delivery.is_some_and(|d| d.status.is_open());
    let held_by = match (endpoint.paused, circuit) {
        _ if !is_open => None,
        (true, _) => Some("pause"),
        (false, CircuitState::Open | CircuitState::HalfOpen) => Some("circuit"),
        (false, CircuitState::Closed) => None,
    };
    ExplanationShape {
        endpoint_id: endpoint.id.0,
        endpoint_name: endpoint.name.clone(),
        matched: delivery.is_some(),
        judged_by: if delivery.is_some() { "ledger" } else { "current_settings" },
        detail: match delivery {
            Some(delivery) => format!("The event matched this endpoint; its delivery is {}", delivery.status.as_str()),
            None => reasons.iter().map(|miss| words(*miss, asked, endpoint)).collect::<Vec<_>>().join("; "),
        },
        reasons: reasons.into_iter().map(Miss::as_str).collect(),
        held_by,
        delivery: delivery.map(|d| ExplainedDelivery {
            id: DeliveryId::derive(event, endpoint.id).0,
            status: d.status.as_str(),
            attempt_count: d.attempts,
            next_retry_at: d.next_retry_at,
            delivered_at: d.delivered_at,
            last_http_status: d.last_status,
            last_error: d.last_error.clone(),
        }),
    }
}

fn words(miss: Miss, asked: Asked<'_>, endpoint: &Endpoint) -> String {
    match miss {
        Miss::AddressedToAnother => "the event was sent to one endpoint, and that is another".to_owned(),
        Miss::CreatedLater => format!("the endpoint was created at {}, after the event", endpoint.created_at),
        Miss::Inactive => "the endpoint is inactive".to_owned(),
        Miss::TypeNotInFilter => {
            let patterns = endpoint.filter.patterns().join(", ");
            format!("the type {} is not in the endpoint's filter ({patterns})", asked.event_type)
        }
        Miss::ChangedSince => {
            "it would match today; the endpoint's settings were others when the event was matched".to_owned()
        }
    }
}
