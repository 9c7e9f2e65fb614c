//! `GET /api/v1/endpoints/{endpoint_id}/circuit`: the circuit as it is now, and how it came to be so.

use axum::Json;
use axum::extract::{Path, State};
use chrono::{DateTime, Utc};
use relay_core::problem::FieldError;
use relay_runtime::auth::Caller;
use relay_runtime::extract::QueryParams;
use relay_runtime::openapi::{CommonProblems, ProblemBody};
use relay_store::CircuitChange;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::api::Api;
use crate::query;
use crate::refusal::Refusal;

/// Changes shown, unless asked otherwise.
const CHANGES_DEFAULT: u32 = 20;
/// Changes shown at most.
const CHANGES_MAX: u32 = 200;

/// The parameters, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters in the OpenAPI document")]
pub struct CircuitParams {
    /// How many changes are shown
    #[param(minimum = 1, maximum = 200, default = 20)]
    limit: Option<u32>,
    /// Only changes before this time, as RFC 3339 has it: to go on, the `at` of the last one shown
    before: Option<DateTime<Utc>>,
}

/// A change of the circuit's state.
#[derive(Serialize, ToSchema)]
pub struct Change {
    /// When.
    at: DateTime<Utc>,
    /// The state before: `closed`, `open` or `half_open`.
    #[schema(example = "closed")]
    from: String,
    /// The state after.
    #[schema(example = "open")]
    to: String,
    /// Why, in words.
    #[schema(example = "too many failures")]
    why: String,
    /// The deliverer whose call made the change.
    #[schema(example = "deliverer-1")]
    pod: String,
}

impl Change {
    fn new(change: CircuitChange) -> Self {
        let CircuitChange { at, from, to, why, pod } = change;
        Self { at, from, to, why, pod }
    }
}

/// An endpoint's circuit.
#[derive(Serialize, ToSchema)]
pub struct Circuit {
    endpoint_id: Uuid,
    /// `closed`, `open` or `half_open`.
    #[schema(example = "open")]
    state: &'static str,
    /// While it isn't closed: when the next probe may go. While it is closed: until when the endpoint asked us to wait.
    until: Option<DateTime<Utc>>,
    /// Its changes, newest first.
    history: Vec<Change>,
}

/// Circuit of an endpoint, with its history
#[utoipa::path(
    get,
    path = "/api/v1/endpoints/{endpoint_id}/circuit",
    description = "The state that the pods share, and its changes as the deliverers saw them. Changes are kept as long as dead letters are.",
    tag = "endpoints",
    operation_id = "get_endpoint_circuit",
    params(("endpoint_id" = uuid::Uuid, Path), CircuitParams),
    responses(
        (status = 200, description = "State and history", body = Circuit),
        (status = 404, description = "There is no such endpoint", body = ProblemBody, content_type = "application/problem+json"),
        CommonProblems,
    )
)]
pub async fn circuit(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    parameters: QueryParams,
) -> Result<Json<Circuit>, Refusal> {
    let id = query::id("endpoint_id", &id)?;
    let limit = limit(&parameters)?;
    let before = parameters.time("before")?;
    api.endpoint(&caller.tenant, id).await?;
    let history = api.links.store.circuit_history(id, before, limit).await?;
    let view = api.links.circuits.state(id);
    Ok(Json(Circuit {
        endpoint_id: id.0,
        state: view.state.as_str(),
        until: view.until,
        history: history.into_iter().map(Change::new).collect(),
    }))
}

fn limit(parameters: &QueryParams) -> Result<u32, FieldError> {
    let bad =
        || FieldError { field: "query.limit".to_owned(), message: format!("must be between 1 and {CHANGES_MAX}") };
    let limit = parameters.value("limit", "be an integer")?.unwrap_or(i64::from(CHANGES_DEFAULT));
    u32::try_from(limit).ok().filter(|n| (1..=CHANGES_MAX).contains(n)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_bounded() {
        let read = |raw| limit(&QueryParams::parse(raw));
        assert_eq!((read("").unwrap(), read("limit=200").unwrap()), (20, 200));
        for raw in ["limit=0", "limit=201", "limit=-1", "limit=x", "limit="] {
            assert_eq!(read(raw).unwrap_err().field, "query.limit", "{raw}");
        }
    }
}
