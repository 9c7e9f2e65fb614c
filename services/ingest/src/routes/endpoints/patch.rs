//! `PATCH /api/v1/endpoints/{endpoint_id}`.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use relay_core::endpoint::limits;
use relay_core::headers::{GivenHeader, GivenHeaders};
use relay_core::ids::{EndpointId, TenantId};
use relay_core::signature::{Scheme, SigningKey};
use relay_core::subject::HINT_DUE;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_runtime::random;
use relay_store::EndpointChange;

use super::{BODY_BYTES_MAX, EndpointChangeRequest};
use crate::api::Api;
use crate::fields::Faults;
use crate::query;
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};
use crate::settings::{self, Settings, VALUE_NEEDED};
use crate::shapes::EndpointShape;

/// Change an endpoint
///
/// Only the fields that are there are changed; an explicit null changes nothing, but for
/// `retry_schedule_seconds`, where it goes back to the formula, and for `rate_limit`, which it takes away. `is_active: true` activates an endpoint again;
/// `paused: false` resumes it with all that waited (see `resume` for other ways).
#[utoipa::path(
    patch,
    path = "/api/v1/endpoints/{endpoint_id}",
    tag = "endpoints",
    operation_id = "change_endpoint",
    params(("endpoint_id" = uuid::Uuid, Path)),
    request_body = EndpointChangeRequest,
    responses(
        (status = 200, description = "The endpoint as it is now", body = EndpointShape),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn patch(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    said: SaysJson,
    sent: Sent,
) -> Result<Json<EndpointShape>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let body = body::json(said, sent, BODY_BYTES_MAX)?;
    let mut settings = settings::change(&body, &api.policy)?;
    let tenant = caller.tenant;
    if let Some(headers) = &mut settings.custom_headers {
        find_kept(&api, &tenant, id, headers).await?;
    }
    let change = change_of(settings);
    if change.is_active == Some(true) {
        check_room(&api, &tenant, id).await?;
    }
    let is_resumed = change.paused == Some(false);
    let changed = api.links.store.update_endpoint(&tenant, id, &change).await?;
    let endpoint = changed.ok_or(Refusal::UnknownEndpoint)?;
    api.directory_changed(&tenant).await;
    if is_resumed {
        // What waits for the endpoint starts at once instead of at the scheduler's next look.
        api.links.bus.hint(HINT_DUE, Bytes::from(id.to_string())).await;
    }
    Ok(Json(EndpointShape::new(&endpoint, api.links.clock.now())))
}

/// Looks up the headers whose stored value is to stay: one that isn't secret yet is written anew as such, and one that
/// isn't stored at all is refused.
async fn find_kept(api: &Api, tenant: &TenantId, id: EndpointId, headers: &mut GivenHeaders) -> Result<(), Refusal> {
    if !headers.values().any(|header| matches!(header, GivenHeader::Kept)) {
        return Ok(());
    }
    let endpoint = api.links.store.get_endpoint(tenant, id).await?.ok_or(Refusal::UnknownEndpoint)?;
    let mut faults = Faults::default();
    for (name, header) in headers.iter_mut().filter(|(_, header)| matches!(header, GivenHeader::Kept)) {
        let plain = endpoint.custom_headers.iter().find(|(stored, _)| stored.eq_ignore_ascii_case(name));
        if let Some((_, value)) = plain {
            *header = GivenHeader::Secret(value.clone().into());
        } else if !endpoint.secret_headers.iter().any(|stored| stored.eq_ignore_ascii_case(name)) {
            faults.add(format_args!("custom_headers.{name}"), VALUE_NEEDED);
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Refusal::Invalid(faults.0)) }
}

/// Refuses to activate one endpoint more than a tenant may have.
async fn check_room(api: &Api, tenant: &TenantId, id: EndpointId) -> Result<(), Refusal> {
    let store = &api.links.store;
    let is_new = store.get_endpoint(tenant, id).await?.is_some_and(|e| !e.is_active);
    if is_new
        && usize::try_from(store.count_active_endpoints(tenant).await?).unwrap_or(0) >= limits::ACTIVE_ENDPOINTS_MAX
    {
        return Err(Refusal::TooManyEndpoints { limit: limits::ACTIVE_ENDPOINTS_MAX });
    }
    Ok(())
}

fn change_of(settings: Settings) -> EndpointChange {
    let seconds = |given: Option<u32>| given.map(|s| Duration::from_secs(s.into()));
    EndpointChange {
        name: settings.name,
        url: settings.url,
        filter: settings.event_types_filter,
        custom_headers: settings.custom_headers,
        max_retries: settings.max_retries,
        backoff_base: settings.retry_backoff_base,
        max_delay_seconds: settings.retry_max_delay_seconds,
        schedule_seconds: settings.retry_schedule_seconds,
        timeout: seconds(settings.timeout_seconds),
        circuit_threshold: settings.circuit_failure_threshold,
        circuit_window: seconds(settings.circuit_window_seconds),
        circuit_recovery: seconds(settings.circuit_recovery_seconds),
        rate_limit: settings.rate_limit,
        schemes: settings.signature_schemes,
        key: settings
            .signature_schemes
            .filter(|schemes| schemes.has(Scheme::StandardV1a))
            .map(|_| SigningKey::generate(random::bytes32())),
        is_active: settings.is_active,
        paused: settings.paused,
    }
}
