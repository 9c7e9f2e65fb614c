//! Requests to JetStream's own interface (`$JS.API.…`, JSON), as the server documents it. Used for declaring,
//! measuring and purging; never per message.

use std::time::Duration;

use async_nats::{Client, Request};
use serde_json::Value;

use crate::error::BusError;

/// Time for an answer. Making a stream on a busy disk takes the longest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// JetStream's error code for streams that the server's storage has no room for.
pub(crate) const STORAGE_EXCEEDED: u64 = 10047;
/// JetStream's error code for a stream that doesn't exist.
pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
/// JetStream's error code for a message that isn't there (any more).
pub(crate) const MESSAGE_NOT_FOUND: u64 = 10037;
/// JetStream's error code for a consumer that doesn't exist.
pub(crate) const CONSUMER_NOT_FOUND: u64 = 10014;
/// JetStream's error code for a stream that exists with another configuration.
pub(crate) const STREAM_EXISTS: u64 = 10058;
/// JetStream's error code for a consumer that exists with another configuration.
pub(crate) const CONSUMER_EXISTS: u64 = 10148;

/// Asks; `what` is the subject below `$JS.API.`.
pub(crate) async fn ask(client: &Client, what: &str, body: &Value) -> Result<Value, BusError> {
    let unanswered = |why: String| BusError::Unanswered { what: what.to_owned(), why };
    let request = Request::new().payload(body.to_string().into()).timeout(Some(ANSWER_TIMEOUT));
    // The client waits for its command channel too while it has no connection: a deadline around everything.
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send_request(format!("$JS.API.{what}"), request))
        .await
        .map_err(|_| unanswered("timed out".to_owned()))?
        .map_err(|e| unanswered(e.to_string()))?;
    let answer: Value = serde_json::from_slice(&answer.payload).map_err(|e| unanswered(e.to_string()))?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) => Err(BusError::Refused {
            what: what.to_owned(),
            code: error["err_code"].as_u64().or_else(|| error["code"].as_u64()).unwrap_or_default(),
            description: error["description"].as_str().unwrap_or("no description").to_owned(),
        }),
    }
}
