//! The accept log looked at afterwards: what each EVENTS still holds, without a consumer and without acknowledging. Called by
//! `webhook-relay fsck` and `webhook-relay recover`, whose NATS user must be permitted `$JS.API.STREAM.MSG.GET` of
//! each.
//!
//! Invariant: nothing in here changes anything on the server.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, stream};
use relay_core::shard::{Shard, StreamKind};
use relay_core::subject::{DISPATCHER_CONSUMER, HEADER_ENDPOINT, HEADER_MSG_ID, HEADER_TRACE};
use serde_json::{Value, json};

use crate::api::{MESSAGE_NOT_FOUND, ask};
use crate::bus::Bus;
use crate::error::BusError;
use crate::history::{Held, floor};
use crate::shards::Presence;
use crate::source::StoredMessage;

/// Questions on their way at once: with the largest messages some 40 MiB.
const QUESTIONS: usize = 16;
/// A part ends after so many bytes of payload.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// What one of EVENTS holds, by sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Which.
    pub shard: Shard,
    /// The first message that is still there.
    pub first: u64,
    /// Up to here every message is acknowledged.
    pub acknowledged: u64,
    /// Up to here messages were given to dispatchers: nothing behind it is acknowledged.
    pub delivered: u64,
    /// The last message.
    pub last: u64,
    /// Every message published since then is held, by the server's clock; `None`: the server can't tell, so none is.
    pub whole_since: Option<DateTime<Utc>>,
}

/// Some messages that follow each other.
#[derive(Clone, Debug)]
pub struct RetainedPart {
    /// Those that are still there.
    pub messages: Vec<StoredMessage>,
    /// Where the next part begins.
    pub next: u64,
}

/// A stream that isn't used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unused {
    /// Its name.
    pub stream: &'static str,
    /// What is in it; with nothing in it, it can be deleted.
    pub messages: u64,
}

impl Bus {
    /// What each EVENTS holds now, also one that isn't used any more.
    ///
    /// # Errors
    /// NATS doesn't answer, or a stream or its consumer doesn't exist.
    pub async fn retained(&self) -> Result<Vec<Retained>, BusError> {
        let known = self.discover().await?;
        let mut all = Vec::new();
        for shard in known.existing(StreamKind::Events) {
            all.push(self.retained_of(shard).await?);
        }
        Ok(all)
    }

    async fn retained_of(&self, shard: Shard) -> Result<Retained, BusError> {
        let stream = StreamKind::Events.stream(shard);
        // The stream first: see `floor`.
        let info = ask(self.api(), &format!("STREAM.INFO.{stream}"), &json!({})).await?;
        let Held { first, last, .. } = Held::read(&info);
        let consumer = self.consumer(stream, DISPATCHER_CONSUMER).await?;
        Ok(Retained {
            shard,
            first,
            acknowledged: floor(&consumer, last),
            delivered: delivered(&consumer, last),
            last,
            whole_since: whole_since(shard, &info),
        })
    }

    /// The streams of both kinds that aren't used any more.
    ///
    /// # Errors
    /// NATS doesn't answer.
    pub async fn unused(&self) -> Result<Vec<Unused>, BusError> {
        let known = self.discover().await?;
        let mut all = Vec::new();
        for kind in StreamKind::ALL {
            let unused = known.existing(kind).into_iter().filter(|shard| known.get(kind, *shard) == Presence::Retired);
            for stream in unused.map(|shard| kind.stream(shard)) {
                all.push(Unused { stream, messages: self.held(stream).await?.messages });
            }
        }
        Ok(all)
    }

    /// The sequence of the first message of one of EVENTS, from `first` to `last`, that was published at `since` or later;
    /// `last` + 1 where all are older.
    ///
    /// # Errors
    /// NATS doesn't answer, or refuses: the user may not read the stream.
    pub async fn first_since(
        &self,
        shard: Shard,
        since: DateTime<Utc>,
        first: u64,
        last: u64,
    ) -> Result<u64, BusError> {
        // A stream's times never go back.
        let (mut low, mut high) = (first, last.saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            let question = json!({ "seq": middle, "next_by_subj": ">" });
            match self.get(shard, &question).await? {
                Some(message) if message.published < since => low = message.sequence + 1,
                _ => high = middle,
            }
        }
        Ok(low.min(last.saturating_add(1)))
    }

    /// Messages of one of EVENTS from the sequence `from` to `to`, at most `max` and some 8 MiB. Those that are purged
    /// meanwhile are left out.
    ///
    /// # Errors
    /// NATS doesn't answer, or refuses: the user may not read the stream.
    pub async fn retained_part(&self, shard: Shard, from: u64, to: u64, max: u64) -> Result<RetainedPart, BusError> {
        let end = to.min(from.saturating_add(max.saturating_sub(1)));
        let mut answers = stream::iter(from..=end)
            .map(|sequence| async move { (sequence, self.get(shard, &json!({ "seq": sequence })).await) })
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

    async fn get(&self, shard: Shard, question: &Value) -> Result<Option<StoredMessage>, BusError> {
        let stream = StreamKind::Events.stream(shard);
        let what = format!("STREAM.MSG.GET.{stream}");
        match ask(self.api(), &what, question).await {
            Ok(answer) => match read(&answer["message"], stream) {
                Some(message) => Ok(Some(message)),
                None => Err(BusError::Unanswered { what, why: "the answer is not a message".to_owned() }),
            },
            Err(error) if error.code() == Some(MESSAGE_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Up to where a consumer's messages were given to somebody. `last` as in [`floor`].
fn delivered(consumer: &Value, last: u64) -> u64 {
    match consumer["num_pending"].as_u64() {
        Some(0) => last,
        _ => consumer["delivered"]["stream_seq"].as_u64().unwrap_or_default().min(last),
    }
}

/// Since when a stream holds all that was published: since it was made, if nothing was ever removed from its begin; else
/// since its first message, or the last one that was removed. A further stream lacks nothing of the time before it was made:
/// all went to others then.
fn whole_since(shard: Shard, info: &Value) -> Option<DateTime<Utc>> {
    let state = &info["state"];
    let at = match (state["first_seq"].as_u64()?, state["messages"].as_u64()?) {
        (0 | 1, _) if shard != Shard::FIRST => return Some(DateTime::UNIX_EPOCH),
        (0 | 1, _) => &info["created"],
        (_, 0) => &state["last_ts"],
        _ => &state["first_ts"],
    };
    // Times that the server doesn't know are in the year 1.
    at.as_str()?.parse().ok().filter(|at| *at > DateTime::UNIX_EPOCH)
}

/// A message as `STREAM.MSG.GET` answers it: body and headers in base64.
fn read(message: &Value, stream: &'static str) -> Option<StoredMessage> {
    let bytes = |key: &str| BASE64_STANDARD.decode(message[key].as_str().unwrap_or_default()).ok();
    let headers = String::from_utf8_lossy(&bytes("hdrs")?).into_owned();
    let header = |name: &str| {
        let found = headers.lines().skip(1).filter_map(|line| line.split_once(':')).find(|(key, _)| *key == name);
        found.map(|(_, value)| value.trim().to_owned())
    };
    Some(StoredMessage {
        subject: message["subject"].as_str()?.to_owned(),
        msg_id: header(HEADER_MSG_ID),
        endpoint_id: header(HEADER_ENDPOINT),
        trace: header(HEADER_TRACE),
        payload: bytes("data")?.into(),
        stream,
        sequence: message["seq"].as_u64()?,
        published: message["time"].as_str()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_whole_since_its_first_message() {
        let (made, first, last) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z");
        let of = |shard: Shard, seq: u64, messages: u64, last_ts: &str| {
            let state = json!({ "first_seq": seq, "messages": messages, "first_ts": first, "last_ts": last_ts });
            whole_since(shard, &json!({ "created": made, "state": state })).map(|at| at.format("%FT%TZ").to_string())
        };
        let since = |seq, messages, last_ts| of(Shard::FIRST, seq, messages, last_ts);
        assert_eq!(since(0, 0, "0001-01-01T00:00:00Z").as_deref(), Some(made));
        assert_eq!(since(1, 5, last).as_deref(), Some(made));
        assert_eq!(since(7, 5, last).as_deref(), Some(first));
        assert_eq!(since(7, 0, last).as_deref(), Some(last));
        assert_eq!(since(7, 0, "0001-01-01T00:00:00Z"), None);

        let further = Shard::used(2).last().expect("there are two");
        assert_eq!(of(further, 1, 5, last).as_deref(), Some("1970-01-01T00:00:00Z"), "it lacks nothing");
        assert_eq!(of(further, 7, 5, last).as_deref(), Some(first));
    }

    #[test]
    fn what_was_never_delivered_is_told_from_the_rest() {
        let consumer = |pending: u64| json!({ "num_pending": pending, "delivered": { "stream_seq": 40 } });
        assert_eq!(
            (delivered(&consumer(3), 43), delivered(&consumer(0), 43), delivered(&consumer(3), 30)),
            (40, 43, 30)
        );
    }

    #[test]
    fn a_message_is_read_with_its_headers() {
        let headers = "NATS/1.0\r\nNats-Msg-Id: order-1\r\nRelay-Endpoint-Id:7\r\nOther: x\r\n\r\n";
        let answer = json!({
            "subject": "relay.events.default.a", "seq": 7, "time": "2026-01-02T03:04:05.123456789Z",
            "data": BASE64_STANDARD.encode("{}"), "hdrs": BASE64_STANDARD.encode(headers),
        });
        let message = read(&answer, "EVENTS").expect("it is a message");
        assert_eq!((message.msg_id.as_deref(), message.endpoint_id.as_deref()), (Some("order-1"), Some("7")));
        assert_eq!((&message.payload[..], message.sequence, message.trace), (&b"{}"[..], 7, None));
        assert_eq!(message.published.timestamp_nanos_opt(), Some(1_767_323_045_123_456_789));
        assert!(read(&json!({ "subject": "a" }), "EVENTS").is_none());
    }
}
