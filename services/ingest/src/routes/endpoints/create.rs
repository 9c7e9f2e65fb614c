//! `POST /api/v1/endpoints`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use relay_core::breaker::CircuitRule;
use relay_core::endpoint::{RetrySettings, limits};
use relay_core::ids::{EndpointId, TenantId, uuid_v7};
use relay_core::signature::{Scheme, SigningKey, SigningSecret};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems};
use relay_runtime::random;
use relay_store::NewEndpoint;

use super::{BODY_BYTES_MAX, EndpointRequest};
use crate::api::Api;
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};
use crate::settings::{self, Settings};
use crate::shapes::EndpointWithSecret;

/// Time-out of one attempt, unless the request says otherwise.
const TIMEOUT_SECONDS_DEFAULT: u32 = 30;

/// Create an endpoint
///
/// The answer shows the signing secret; later ones don't. An endpoint with the scheme `standard-v1a` gets a key pair as
/// well, whose public half is shown whenever the endpoint is.
#[utoipa::path(
    post,
    path = "/api/v1/endpoints",
    tag = "endpoints",
    operation_id = "create_endpoint",
    request_body = EndpointRequest,
    responses(
        (status = 201, description = "Created", body = EndpointWithSecret),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    said: SaysJson,
    sent: Sent,
) -> Result<(StatusCode, Json<EndpointWithSecret>), Refusal> {
    let body = body::json(said, sent, BODY_BYTES_MAX)?;
    let settings = settings::creation(&body, &api.policy)?;
    let tenant = caller.tenant;
    let active = api.links.store.count_active_endpoints(&tenant).await?;
    if usize::try_from(active).unwrap_or(0) >= limits::ACTIVE_ENDPOINTS_MAX {
        return Err(Refusal::TooManyEndpoints { limit: limits::ACTIVE_ENDPOINTS_MAX });
    }
    let now = api.links.clock.now();
    let new = new_endpoint(settings, tenant.clone(), EndpointId(uuid_v7(now, random::bytes10())), random::bytes32);
    let made = api.links.store.create_endpoint(&new).await?;
    let endpoint = made.ok_or_else(|| Refusal::Internal(format!("there is no tenant {tenant}")))?;
    api.directory_changed(&tenant).await;
    Ok((StatusCode::CREATED, Json(EndpointWithSecret::new(&endpoint, &new.secret, now))))
}

/// The endpoint that checked settings mean, with the defaults of the interface.
fn new_endpoint(settings: Settings, tenant: TenantId, id: EndpointId, random: impl Fn() -> [u8; 32]) -> NewEndpoint {
    let retry = RetrySettings::default();
    let circuit = CircuitRule::default();
    let schemes = settings.signature_schemes.unwrap_or_default();
    let seconds = |given: Option<u32>, default: Duration| given.map_or(default, |s| Duration::from_secs(s.into()));
    NewEndpoint {
        id,
        tenant,
        name: settings.name.unwrap_or_default(),
        url: settings.url.unwrap_or_default(),
        filter: settings.event_types_filter.unwrap_or_default(),
        custom_headers: settings.custom_headers.unwrap_or_default(),
        retry: RetrySettings {
            max_retries: settings.max_retries.unwrap_or(retry.max_retries),
            backoff_base: settings.retry_backoff_base.unwrap_or(retry.backoff_base),
            max_delay_seconds: settings.retry_max_delay_seconds.unwrap_or(retry.max_delay_seconds),
            schedule_seconds: settings.retry_schedule_seconds.flatten(),
        },
        timeout: Duration::from_secs(settings.timeout_seconds.unwrap_or(TIMEOUT_SECONDS_DEFAULT).into()),
        circuit: CircuitRule {
            threshold: settings.circuit_failure_threshold.unwrap_or(circuit.threshold),
            window: seconds(settings.circuit_window_seconds, circuit.window),
            recovery: seconds(settings.circuit_recovery_seconds, circuit.recovery),
        },
        rate_limit: settings.rate_limit.flatten(),
        schemes,
        secret: settings.signing_secret.unwrap_or_else(|| SigningSecret::generate(random())),
        key: schemes.has(Scheme::StandardV1a).then(|| SigningKey::generate(random())),
        is_active: true,
    }
}
