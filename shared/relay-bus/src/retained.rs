//! The accept log looked at afterwards: what EVENTS still holds, without a consumer and without acknowledging. Called by
//! `webhook-relay fsck`, whose NATS user must be permitted `$JS.API.STREAM.MSG.GET.EVENTS`.
//!
//! Invariant: nothing in here changes anything on the server.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, stream};
use relay_core::subject::{DISPATCHER_CONSUMER, EVENTS_STREAM, HEADER_ENDPOINT, HEADER_MSG_ID, HEADER_TRACE};
use serde_json::{Value, json};

use crate::api::{MESSAGE_NOT_FOUND, ask};
use crate::bus::Bus;
use crate::error::BusError;
use crate::history::floor;

/// Questions on their way at once: with the largest messages some 40 MiB.
const QUESTIONS: usize = 16;
/// A part ends after so many bytes of payload.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// What EVENTS holds, by sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The first message that is still there.
    pub first: u64,
    /// Up to here every message is acknowledged.
    pub acknowledged: u64,
    /// The last message.
    pub last: u64,
}

/// A message that EVENTS still holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedMessage {
    /// The subject it was published on.
    pub subject: String,
    /// Header `Nats-Msg-Id`.
    pub msg_id: Option<String>,
    /// Header `Relay-Endpoint-Id`.
    pub endpoint_id: Option<String>,
    /// Header `traceparent`.
    pub trace: Option<String>,
    /// The body.
    pub payload: Bytes,
    /// The stream.
    pub stream: &'static str,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream stored it, by the server's clock.
    pub published: DateTime<Utc>,
}

/// Some messages that follow each other.
#[derive(Clone, Debug)]
pub struct RetainedPart {
    /// Those that are still there.
    pub messages: Vec<RetainedMessage>,
    /// Where the next part begins.
    pub next: u64,
}

impl Bus {
    /// What EVENTS holds now.
    ///
    /// # Errors
    /// NATS doesn't answer, or the stream or its consumer doesn't exist.
    pub async fn retained(&self) -> Result<Retained, BusError> {
        // The stream first: see `floor`.
        let held = self.held(EVENTS_STREAM).await?;
        let acknowledged = floor(&self.consumer(EVENTS_STREAM, DISPATCHER_CONSUMER).await?, held.last);
        Ok(Retained { first: held.first, acknowledged, last: held.last })
    }

    /// Messages of EVENTS from the sequence `from` to `to`, at most `max` and some 8 MiB. Those that are purged meanwhile
    /// are left out.
    ///
    /// # Errors
    /// NATS doesn't answer, or refuses: the user may not read the stream.
    pub async fn retained_part(&self, from: u64, to: u64, max: u64) -> Result<RetainedPart, BusError> {
        let end = to.min(from.saturating_add(max.saturating_sub(1)));
        let mut answers = stream::iter(from..=end)
            .map(|sequence| async move { (sequence, self.retained_message(sequence).await) })
            .buffered(QUESTIONS);
        let mut part = RetainedPart { messages: Vec::new(), next: from };
        let mut bytes = 0;
        while bytes < PART_BYTES
            && let Some((sequence, answer)) = answers.next().await
        {
            part.next = sequence + 1;
            if let Some(message) = answer? {
                bytes += message.payload.len();
                part.messages.push(message);
            }
        }
        Ok(part)
    }

    async fn retained_message(&self, sequence: u64) -> Result<Option<RetainedMessage>, BusError> {
        let what = format!("STREAM.MSG.GET.{EVENTS_STREAM}");
        match ask(self.api(), &what, &json!({ "seq": sequence })).await {
            Ok(answer) => match read(&answer["message"]) {
                Some(message) => Ok(Some(message)),
                None => Err(BusError::Unanswered { what, why: "the answer is not a message".to_owned() }),
            },
            Err(error) if error.code() == Some(MESSAGE_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A message as `STREAM.MSG.GET` answers it: body and headers in base64.
fn read(message: &Value) -> Option<RetainedMessage> {
    let bytes = |key: &str| BASE64_STANDARD.decode(message[key].as_str().unwrap_or_default()).ok();
    let headers = String::from_utf8_lossy(&bytes("hdrs")?).into_owned();
    let header = |name: &str| {
        let found = headers.lines().skip(1).filter_map(|line| line.split_once(':')).find(|(key, _)| *key == name);
        found.map(|(_, value)| value.trim().to_owned())
    };
    Some(RetainedMessage {
        subject: message["subject"].as_str()?.to_owned(),
        msg_id: header(HEADER_MSG_ID),
        endpoint_id: header(HEADER_ENDPOINT),
        trace: header(HEADER_TRACE),
        payload: bytes("data")?.into(),
        stream: EVENTS_STREAM,
        sequence: message["seq"].as_u64()?,
        published: message["time"].as_str()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_with_its_headers() {
        let headers = "NATS/1.0\r\nNats-Msg-Id: order-1\r\nRelay-Endpoint-Id:7\r\nOther: x\r\n\r\n";
        let answer = json!({
            "subject": "relay.events.default.a", "seq": 7, "time": "2026-01-02T03:04:05.123456789Z",
            "data": BASE64_STANDARD.encode("{}"), "hdrs": BASE64_STANDARD.encode(headers),
        });
        let message = read(&answer).expect("it is a message");
        assert_eq!((message.msg_id.as_deref(), message.endpoint_id.as_deref()), (Some("order-1"), Some("7")));
        assert_eq!((&message.payload[..], message.sequence, message.trace), (&b"{}"[..], 7, None));
        assert_eq!(message.published.timestamp_nanos_opt(), Some(1_767_323_045_123_456_789));
        assert!(read(&json!({ "subject": "a" })).is_none());
    }
}
