//! `POST /api/v1/tenants`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use relay_core::ids::TenantId;
use relay_runtime::auth::Caller;
use relay_runtime::openapi::{BodyProblems, CommonProblems};

use crate::access::TenantShape;
use crate::api::Api;
use crate::fields::{self, Faults, is_null};
use crate::refusal::Refusal;
use crate::routes::body::{self, SaysJson, Sent};

/// Bytes of the request at most.
const BODY_BYTES_MAX: usize = 4 * 1024;

const FIELDS: &[&str; 1] = &["id"];

/// A tenant to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"id": "acme"}))]
#[expect(dead_code, reason = "describes the request in the OpenAPI document")]
pub struct TenantRequest {
    /// Its name, also in NATS subjects: lower-case letters, digits, `_` and `-`, not beginning with one of the latter two.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9][a-z0-9_-]*$")]
    id: String,
}

/// Create a tenant
///
/// Repeating it is fine. Keys for it are made with `POST /api/v1/keys` and the header `X-Relay-Tenant`.
#[utoipa::path(
    post,
    path = "/api/v1/tenants",
    tag = "access",
    operation_id = "create_tenant",
    request_body = TenantRequest,
    security(("api_key" = ["operator"])),
    responses(
        (status = 201, description = "Created", body = TenantShape),
        (status = 200, description = "It was there already", body = TenantShape),
        CommonProblems,
        BodyProblems,
    )
)]
pub async fn create(
    State(api): State<Api>,
    _: Caller,
    said: SaysJson,
    sent: Sent,
) -> Result<(StatusCode, Json<TenantShape>), Refusal> {
    let tenant = read(&body::json(said, sent, BODY_BYTES_MAX)?)?;
    let (view, is_new) = api.links.store.create_tenant(&tenant).await?;
    if is_new {
        api.directory_changed(&tenant).await;
    }
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(TenantShape::from(&view))))
}

fn read(body: &[u8]) -> Result<TenantId, Refusal> {
    let [id] = fields::read(body, FIELDS)?.map(|value| value.filter(|v| !is_null(v)));
    let mut faults = Faults::default();
    if id.is_none() {
        faults.add("id", "is required");
    }
    let text = id.and_then(|value| faults.string("id", value));
    let tenant = text.and_then(|text| TenantId::parse(&text).map_err(|why| faults.add("id", why)).ok());
    tenant.ok_or(Refusal::Invalid(faults.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(read(br#"{"id":"acme-2"}"#).unwrap().as_str(), "acme-2");
        for bad in ["{}", r#"{"id":7}"#, r#"{"id":"_relay"}"#, r#"{"id":"A"}"#, r#"{"id":"a.b"}"#, r#"{"id":""}"#] {
            let Err(Refusal::Invalid(errors)) = read(bad.as_bytes()) else { panic!("{bad}") };
            assert_eq!((errors.len(), errors[0].field.as_str()), (1, "body.id"), "{bad}");
        }
    }
}
