//! Making what is missing, comparing what is there, deleting nothing. At start by [`Bus::declare`], at run time
//! by publishers and pullers that find no stream or consumer.

use async_nats::Client;
use relay_core::subject::EVENTS_STREAM;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{self, CONSUMER_EXISTS, CONSUMER_NOT_FOUND, STORAGE_EXCEEDED, STREAM_EXISTS, STREAM_NOT_FOUND};
use crate::bus::Bus;
use crate::error::BusError;
use crate::topology::{Topology, differences};

/// A stream is made no smaller than this to fit the server's disk.
const STREAM_BYTES_LEAST: i64 = 64 << 20;

impl Bus {
    /// Makes the streams and consumers that are missing, and logs how existing ones differ from what is wanted.
    ///
    /// # Errors
    /// NATS doesn't answer, or refuses to make one of them.
    pub async fn declare(&self, topology: &Topology) -> Result<(), BusError> {
        *self.topology.lock().expect("no code panics while it holds this lock") = *topology;
        self.declare_after(Instant::now()).await
    }

    /// Declares again what was declared last (or the defaults), unless somebody of this process has begun to do so
    /// after `missed`, when the caller found something missing. One call at a time.
    pub(crate) async fn declare_after(&self, missed: Instant) -> Result<(), BusError> {
        let topology = *self.topology.lock().expect("no code panics while it holds this lock");
        let mut last = self.declaring.lock().await;
        if last.is_some_and(|begun| begun > missed) {
            return Ok(());
        }
        let begun = Instant::now();
        declare_all(self.api(), &topology).await?;
        *last = Some(begun);
        Ok(())
    }
}

async fn declare_all(client: &Client, topology: &Topology) -> Result<(), BusError> {
    for wanted in topology.streams() {
        let name = wanted["name"].as_str().unwrap_or_default();
        let (wanted, there) = ensure_stream(client, name, wanted.clone()).await?;
        compare(name, &wanted, &there["config"]);
        if name == EVENTS_STREAM && !is_window_zero(&there) {
            tracing::error!(
                "stream EVENTS drops messages by their Nats-Msg-Id, whatever their tenant: accepted events may be \
                 lost. It needs duplicate_window 0, which takes nats-server 2.14 or newer"
            );
        }
    }
    for (stream, wanted) in topology.consumers() {
        let name = wanted["name"].as_str().unwrap_or_default();
        let filter = wanted["filter_subject"].as_str().map_or(String::new(), |f| format!(".{f}"));
        let path = format!("{stream}.{name}{filter}");
        let body = json!({ "stream_name": stream, "config": wanted, "action": "create" });
        let info = format!("CONSUMER.INFO.{stream}.{name}");
        let there =
            ensure(client, &info, CONSUMER_NOT_FOUND, &path, ("CONSUMER.CREATE", body, CONSUMER_EXISTS)).await?;
        compare(name, &wanted, &there["config"]);
    }
    Ok(())
}

/// A stream that is there, or that was made: smaller where the server's disk has no room for all of it. Returns what
/// was asked for in the end, and what there is.
async fn ensure_stream(client: &Client, name: &str, mut wanted: Value) -> Result<(Value, Value), BusError> {
    loop {
        let created = ("STREAM.CREATE", wanted.clone(), STREAM_EXISTS);
        let made = ensure(client, &format!("STREAM.INFO.{name}"), STREAM_NOT_FOUND, name, created).await;
        let half = wanted["max_bytes"].as_i64().unwrap_or_default() / 2;
        match made {
            Err(error) if error.code() == Some(STORAGE_EXCEEDED) && half >= STREAM_BYTES_LEAST => {
                tracing::warn!(name, bytes_max = half, "NATS has no room for a stream of this size; trying half of it");
                wanted["max_bytes"] = json!(half);
            }
            made => return made.map(|there| (wanted, there)),
        }
    }
}

/// What is there, or what was made because it was missing. Another process may make it at the same time.
async fn ensure(
    client: &Client,
    info: &str,
    missing: u64,
    path: &str,
    (create, body, exists): (&str, Value, u64),
) -> Result<Value, BusError> {
    match api::ask(client, info, &json!({})).await {
        Err(error) if error.code() == Some(missing) => {}
        other => return other,
    }
    match api::ask(client, &format!("{create}.{path}"), &body).await {
        Ok(there) => {
            tracing::info!("declared {path}");
            Ok(there)
        }
        Err(error) if error.code() == Some(exists) => api::ask(client, info, &json!({})).await,
        Err(error) => Err(error),
    }
}

fn compare(name: &str, wanted: &Value, there: &Value) {
    let differences = differences(wanted, there);
    if !differences.is_empty() {
        tracing::warn!(name, differences = differences.join("; "), "NATS has it otherwise; left as it is");
    }
}

/// Whether a stream's information shows that it doesn't de-duplicate.
pub(crate) fn is_window_zero(info: &Value) -> bool {
    info["config"]["duplicate_window"].as_u64().unwrap_or_default() == 0
}
