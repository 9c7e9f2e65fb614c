//! What the server says about its promises: read once at start, shown in health.

use std::time::Duration;

use async_nats::Request;
use relay_core::subject::EVENTS_STREAM;
use serde_json::{Value, json};

use crate::api;
use crate::bus::Bus;
use crate::declare::is_window_zero;
use crate::error::BusError;

/// Only a user of the system account gets an answer to this, so the wait is short.
const SYSTEM_TIMEOUT: Duration = Duration::from_millis(500);

/// How durable an accepted event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusDurability {
    /// Whether the server writes through before it acknowledges; `None` where it doesn't tell this user.
    pub sync_always: Option<bool>,
    /// The server's version.
    pub server_version: String,
    /// Whether EVENTS has JetStream's own de-duplication switched off, as it must.
    pub duplicate_window_zero: bool,
}

impl Bus {
    /// Asks the server. EVENTS must exist.
    ///
    /// # Errors
    /// NATS doesn't answer, or there is no stream EVENTS.
    pub async fn durability(&self) -> Result<BusDurability, BusError> {
        let events = api::ask(self.api(), &format!("STREAM.INFO.{EVENTS_STREAM}"), &json!({})).await?;
        Ok(BusDurability {
            sync_always: self.sync_always().await,
            server_version: self.api().server_info().version,
            duplicate_window_zero: is_window_zero(&events),
        })
    }

    async fn sync_always(&self) -> Option<bool> {
        let body = json!({ "config": true }).to_string();
        let request = Request::new().payload(body.into()).timeout(Some(SYSTEM_TIMEOUT));
        let answer = self.api().send_request("$SYS.REQ.SERVER.PING.JSZ", request).await.ok()?;
        let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
        let config = answer["data"]["config"].as_object()?;
        Some(config.get("sync_always").and_then(Value::as_bool).unwrap_or(false))
    }
}
