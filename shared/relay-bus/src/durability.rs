//! What the server says about its promises: read once at start, shown in health.

use std::time::Duration;

use async_nats::Request;
use futures_util::future::try_join_all;
use relay_core::shard::StreamKind;
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
    /// Whether every used EVENTS has JetStream's own de-duplication switched off, as it must.
    pub duplicate_window_zero: bool,
}

impl Bus {
    /// Asks the server. EVENTS must exist.
    ///
    /// # Errors
    /// NATS doesn't answer, or there is no stream EVENTS.
    pub async fn durability(&self) -> Result<BusDurability, BusError> {
        let used = self.known().used(StreamKind::Events).into_iter();
        let asked = used.map(|shard| async move {
            let info = format!("STREAM.INFO.{}", StreamKind::Events.stream(shard));
            api::ask(self.api(), &info, &json!({})).await.map(|stream| is_window_zero(&stream))
        });
        let (windows, sync_always) = tokio::join!(try_join_all(asked), self.sync_always());
        Ok(BusDurability {
            sync_always,
            server_version: self.api().server_info().version,
            duplicate_window_zero: windows?.into_iter().all(|is_zero| is_zero),
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
