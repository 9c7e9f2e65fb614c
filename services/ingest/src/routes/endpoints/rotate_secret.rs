//! `POST /api/v1/endpoints/{endpoint_id}/rotate-secret`: a new secret, while the old one signs as well for a time.

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use relay_core::signature::{SigningKey, SigningSecret};
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems, ProblemBody};
use relay_runtime::random;

use super::BODY_BYTES_MAX;
use crate::api::Api;
use crate::fields::{self, Faults, is_null};
use crate::query;
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};
use crate::shapes::EndpointWithSecret;

/// How long both secrets sign, unless the request says otherwise.
const OVERLAP_SECONDS_DEFAULT: u32 = 86_400;
/// How long they may.
const OVERLAP_SECONDS: RangeInclusive<u32> = 0..=30 * 86_400;

const FIELDS: &[&str; 2] = &["overlap_seconds", "signing_secret"];

/// Body of a rotation; may be left out.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct RotationRequest {
    /// How long the previous secret signs as well; 0: not at all.
    #[schema(minimum = 0, maximum = 2_592_000, default = 86400)]
    overlap_seconds: Option<u32>,
    /// The new secret, 16 to 256 printable characters; without it one is made.
    #[schema(min_length = 16, max_length = 256)]
    signing_secret: Option<String>,
}

/// Rotate the signing secret
///
/// The answer shows the new secret; later ones don't. An endpoint with a key pair (`standard-v1a`) gets a new pair too.
/// During the overlap deliveries carry the signatures of both, the new one's first.
#[utoipa::path(
    post,
    path = "/api/v1/endpoints/{endpoint_id}/rotate-secret",
    tag = "endpoints",
    operation_id = "rotate_secret",
    params(("endpoint_id" = uuid::Uuid, Path)),
    request_body = Option<RotationRequest>,
    responses(
        (status = 200, description = "The endpoint with its new secret", body = EndpointWithSecret),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn rotate_secret(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    said: SaysJson,
    sent: Sent,
) -> Result<Json<EndpointWithSecret>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let rotation = match sent {
        Sent(Ok(body)) if body.is_empty() => Rotation::default(),
        sent => read(&body::json(said, sent, BODY_BYTES_MAX)?)?,
    };
    let secret = rotation.secret.unwrap_or_else(|| SigningSecret::generate(random::bytes32()));
    let tenant = caller.tenant;
    let key = SigningKey::generate(random::bytes32());
    let rotated = api.links.store.rotate_secret(&tenant, id, &secret, &key, rotation.overlap).await?;
    let endpoint = rotated.ok_or(Refusal::UnknownEndpoint)?;
    api.directory_changed(&tenant).await;
    Ok(Json(EndpointWithSecret::new(&endpoint, &secret, api.links.clock.now())))
}

/// A rotation as it was asked for.
struct Rotation {
    overlap: Duration,
    secret: Option<SigningSecret>,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { overlap: Duration::from_secs(OVERLAP_SECONDS_DEFAULT.into()), secret: None }
    }
}

fn read(body: &[u8]) -> Result<Rotation, Refusal> {
    let [overlap, secret] = fields::read(body, FIELDS)?.map(|value| value.filter(|v| !is_null(v)));
    let mut faults = Faults::default();
    let overlap = overlap.map(|value| faults.integer("overlap_seconds", value, &OVERLAP_SECONDS).unwrap_or(0));
    let secret = secret.and_then(|value| faults.secret("signing_secret", value));
    if !faults.is_empty() {
        return Err(Refusal::Invalid(faults.0));
    }
    let overlap = Duration::from_secs(overlap.unwrap_or(OVERLAP_SECONDS_DEFAULT).into());
    Ok(Rotation { overlap, secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_and_secret_are_optional_and_checked() {
        let plain = read(b"{}").unwrap();
        assert_eq!(plain.overlap, Rotation::default().overlap);
        assert!(plain.secret.is_none());
        assert_eq!(read(br#"{"overlap_seconds":0}"#).unwrap().overlap, Duration::ZERO);
        assert!(read(br#"{"signing_secret":"0123456789abcdef"}"#).unwrap().secret.is_some());
        for bad in [r#"{"overlap_seconds":-1}"#, r#"{"overlap_seconds":"1"}"#, r#"{"signing_secret":"short"}"#, "[]"] {
            assert!(matches!(read(bad.as_bytes()), Err(Refusal::Invalid(_))), "{bad}");
        }
    }
}
