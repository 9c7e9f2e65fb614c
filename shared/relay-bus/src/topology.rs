//! What the streams and consumers look like, as JSON for JetStream's interface. Pure; [`crate::declare`] asks for
//! them. Durations are nanoseconds there.

use std::time::Duration;

use relay_core::mutation::{self, Safety};
use relay_core::subject::{
    DISPATCHER_CONSUMER, DLQ_STREAM, DLQ_SUBJECTS, EVENTS_IMPORT_STREAM, EVENTS_IMPORT_SUBJECT, EVENTS_STREAM,
    EVENTS_SUBJECTS, JOBS_STREAM, JOBS_SUBJECTS, Lane, bundles,
};
use serde_json::{Value, json};

/// The largest message that EVENTS and JOBS store, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Unacknowledged for this long, a message is delivered again.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(10);
/// JetStream remembers the message ids of JOBS for this long.
const JOBS_DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Dead-letter hints are kept for this long.
const DLQ_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Unacknowledged messages of EVENTS, over all dispatchers.
const EVENTS_ACK_PENDING_MAX: u32 = 20_000;
/// Unacknowledged messages of one lane of JOBS, over all deliverers.
const JOBS_ACK_PENDING_MAX: u32 = 200_000;
/// Pull requests that wait at one consumer, over all pods (two or three each).
const WAITING_MAX: u32 = 2048;

/// Sizes of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Size of EVENTS in bytes; when it is full, producers are refused.
    pub events_bytes_max: i64,
    /// Size of JOBS in bytes; when it is full, the oldest jobs go (their leases bring them back).
    pub jobs_bytes_max: i64,
    /// Size of DLQ in bytes; when it is full, the oldest hints go.
    pub dlq_bytes_max: i64,
    /// Copies of each stream: 1, or 3 in a cluster.
    pub replicas: u8,
}

impl Default for Topology {
    fn default() -> Self {
        Self { events_bytes_max: 8 << 30, jobs_bytes_max: 2 << 30, dlq_bytes_max: 256 << 20, replicas: 1 }
    }
}

impl Topology {
    /// The streams, in the order in which they are made.
    pub(crate) fn streams(&self) -> Vec<Value> {
        // Rebuildable streams don't pay for fsync: not written through on one server, in memory on several.
        let cheap = if self.replicas > 1 {
            json!({ "storage": "memory" })
        } else {
            json!({ "storage": "file", "persist_mode": "async" })
        };
        vec![
            self.stream(
                EVENTS_IMPORT_STREAM,
                &[EVENTS_IMPORT_SUBJECT.to_owned()],
                1 << 20,
                "new",
                json!({ "max_msgs": 1 }),
            ),
            self.stream(
                EVENTS_STREAM,
                &[EVENTS_SUBJECTS.to_owned(), bundles(0)],
                self.events_bytes_max,
                if mutation::is_broken(Safety::RefuseWhenFull) { "old" } else { "new" },
                // Only a stream with a source may have no de-duplication at all. It works stream-wide, so it
                // would drop one tenant's accepted event because another used the same message id.
                json!({
                    "max_msg_size": MESSAGE_BYTES_MAX,
                    "duplicate_window": if mutation::is_broken(Safety::EqualIdsStored) { nanos(JOBS_DUPLICATE_WINDOW) } else { 0 },
                    "sources": [{ "name": EVENTS_IMPORT_STREAM }],
                }),
            ),
            self.stream(
                JOBS_STREAM,
                &[JOBS_SUBJECTS.to_owned()],
                self.jobs_bytes_max,
                "old",
                merged(
                    cheap.clone(),
                    json!({ "max_msg_size": MESSAGE_BYTES_MAX, "duplicate_window": nanos(JOBS_DUPLICATE_WINDOW) }),
                ),
            ),
            self.stream(
                DLQ_STREAM,
                &[DLQ_SUBJECTS.to_owned()],
                self.dlq_bytes_max,
                "old",
                merged(cheap, json!({ "max_age": nanos(DLQ_AGE_MAX) })),
            ),
        ]
    }

    fn stream(&self, name: &str, subjects: &[String], bytes_max: i64, discard: &str, more: Value) -> Value {
        let base = json!({
            "name": name,
            "subjects": subjects,
            "storage": "file",
            "retention": "limits",
            "discard": discard,
            "max_bytes": bytes_max,
            "num_replicas": self.replicas,
        });
        merged(base, more)
    }

    /// The consumers: their stream, their name, their configuration.
    pub(crate) fn consumers(&self) -> Vec<(&'static str, Value)> {
        let mut all = vec![(EVENTS_STREAM, consumer(DISPATCHER_CONSUMER, EVENTS_ACK_PENDING_MAX, None))];
        all.extend(
            Lane::ALL.map(|lane| (JOBS_STREAM, consumer(&lane.consumer(), JOBS_ACK_PENDING_MAX, Some(lane.filter())))),
        );
        all
    }
}

fn consumer(name: &str, ack_pending_max: u32, filter: Option<String>) -> Value {
    let base = json!({
        "name": name,
        "durable_name": name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": nanos(ACK_WAIT),
        "max_deliver": -1,
        "max_ack_pending": ack_pending_max,
        "max_waiting": WAITING_MAX,
        "replay_policy": "instant",
    });
    filter.map_or(base.clone(), |filter| merged(base, json!({ "filter_subject": filter })))
}

/// A duration as JetStream writes it.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn merged(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

/// How what is there differs from what is wanted: `key: there, wanted …`. Only keys that are wanted count, and a
/// missing key stands for zero, as JetStream leaves zeros out.
pub(crate) fn differences(wanted: &Value, there: &Value) -> Vec<String> {
    let is_zero = |v: &Value| v.is_null() || *v == json!(0) || *v == json!(false) || *v == json!("");
    let Some(wanted) = wanted.as_object() else { return Vec::new() };
    wanted
        .iter()
        .filter_map(|(key, want)| {
            let have = &there[key];
            let same = match (want, have) {
                // Sources come back with more keys than were asked for.
                (Value::Array(want), Value::Array(have)) if want.iter().all(Value::is_object) => {
                    want.len() == have.len() && want.iter().zip(have).all(|(w, h)| differences(w, h).is_empty())
                }
                _ => want == have || (is_zero(want) && is_zero(have)),
            };
            (!same).then(|| format!("{key}: {have}, wanted {want}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_compared() {
        let wanted = json!({ "max_bytes": 5, "duplicate_window": 0, "sources": [{ "name": "A" }] });
        let same = json!({ "max_bytes": 5, "sources": [{ "name": "A", "extra": 1 }], "other": true });
        assert_eq!(differences(&wanted, &same), Vec::<String>::new());
        let other = json!({ "max_bytes": 6, "duplicate_window": 7, "sources": [] });
        assert_eq!(differences(&wanted, &other).len(), 3);
    }

    #[test]
    fn a_cluster_keeps_rebuildable_streams_in_memory() {
        let storage = |replicas| {
            let streams = Topology { replicas, ..Default::default() }.streams();
            streams.iter().map(|s| s["storage"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(storage(1), ["file", "file", "file", "file"]);
        assert_eq!(storage(3), ["file", "file", "memory", "memory"]);
    }
}
