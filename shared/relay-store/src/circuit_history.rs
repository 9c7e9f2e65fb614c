//! The changes of circuits: written by the deliverer whose call made them, read by the interface. Retention deletes old
//! ones with the statistics.

use chrono::{DateTime, Utc};
use relay_core::ids::EndpointId;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;

/// A change of a circuit, for the history.
#[derive(Clone, Debug)]
pub struct CircuitEventRow {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// When.
    pub at: DateTime<Utc>,
    /// From which state.
    pub from: &'static str,
    /// To which state.
    pub to: &'static str,
    /// Why.
    pub why: String,
}

/// A change of a circuit as it was put on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitChange {
    /// When.
    pub at: DateTime<Utc>,
    /// From which state.
    pub from: String,
    /// To which state.
    pub to: String,
    /// Why.
    pub why: String,
    /// The deliverer that made it.
    pub pod: String,
}

impl Store {
    /// Puts changes of circuits on record. Safe to repeat.
    pub async fn record_transitions(&self, pod: &str, transitions: &[CircuitEventRow]) -> Result<(), StoreError> {
        let endpoints: Vec<Uuid> = transitions.iter().map(|t| t.endpoint.0).collect();
        let times: Vec<DateTime<Utc>> = transitions.iter().map(|t| t.at).collect();
        let from: Vec<&str> = transitions.iter().map(|t| t.from).collect();
        let to: Vec<&str> = transitions.iter().map(|t| t.to).collect();
        let why: Vec<&str> = transitions.iter().map(|t| t.why.as_str()).collect();
        self.keyed
            .execute(sqlx::query!(
                "insert into circuit_events (endpoint_id, at, from_state, to_state, why, pod)
                select x.endpoint_id, x.at, x.from_state, x.to_state, x.why, $6
                from unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[]) as x (endpoint_id, at, from_state, to_state, why)
                on conflict do nothing",
                &endpoints,
                &times,
                &from as _,
                &to as _,
                &why as _,
                pod
            ))
            .await
            .map(|_| ())
    }

    /// The last changes of an endpoint's circuit, newest first, only those before `before` where it is given.
    pub async fn circuit_history(
        &self,
        endpoint: EndpointId,
        before: Option<DateTime<Utc>>,
        limit: u32,
    ) -> Result<Vec<CircuitChange>, StoreError> {
        self.queries
            .all(sqlx::query_as!(
                CircuitChange,
                r#"select c.at, c.from_state as "from", c.to_state as "to", c.why, c.pod
                from circuit_events c where c.endpoint_id = $1 and c.at < coalesce($2, 'infinity'::timestamptz)
                order by c.at desc, c.pod desc, c.to_state desc limit $3"#,
                endpoint.0,
                before,
                i64::from(limit)
            ))
            .await
    }
}
