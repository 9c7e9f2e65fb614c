//! What the streams and consumers look like, as JSON for JetStream's interface. Pure; [`crate::declare`] asks for
//! them. Durations are nanoseconds there.

use std::time::Duration;

use relay_core::mutation::{self, Safety};
use relay_core::shard::{Shard, StreamKind};
use relay_core::subject::{
    DISPATCHER_CONSUMER, DLQ_STREAM, DLQ_SUBJECTS, EVENTS_IMPORT_STREAM, EVENTS_IMPORT_SUBJECT, JOBS_SUBJECTS_BEFORE,
    Lane,
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

/// The streams, and their sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Streams that events are spread over, at most [`relay_core::shard::STREAMS_MAX`].
    pub event_streams: u8,
    /// Streams that jobs are spread over, likewise.
    pub job_streams: u8,
    /// Size of each EVENTS in bytes; when all are full, producers are refused.
    pub events_bytes_max: i64,
    /// Size of each JOBS in bytes; when it is full, the oldest jobs go (their leases bring them back).
    pub jobs_bytes_max: i64,
    /// Size of DLQ in bytes; when it is full, the oldest hints go.
    pub dlq_bytes_max: i64,
    /// Copies of each stream: 1, or 3 in a cluster.
    pub replicas: u8,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            event_streams: 1,
            job_streams: 1,
            events_bytes_max: 8 << 30,
            jobs_bytes_max: 2 << 30,
            dlq_bytes_max: 256 << 20,
            replicas: 1,
        }
    }
}

impl Topology {
    /// How many streams of a kind are used.
    pub(crate) fn count(&self, kind: StreamKind) -> u8 {
        match kind {
            StreamKind::Events => self.event_streams,
            StreamKind::Jobs => self.job_streams,
        }
    }

    /// The streams that every system has once, however many of the others: the first of them before the others are made.
    pub(crate) fn single_streams(&self) -> [Value; 2] {
        let import = [EVENTS_IMPORT_SUBJECT.to_owned()];
        [
            self.stream(EVENTS_IMPORT_STREAM, &import, 1 << 20, "new", json!({ "max_msgs": 1 })),
            self.stream(
                DLQ_STREAM,
                &[DLQ_SUBJECTS.to_owned()],
                self.dlq_bytes_max,
                "old",
                merged(self.cheap(), json!({ "max_age": nanos(DLQ_AGE_MAX) })),
            ),
        ]
    }

    /// One of the streams of a kind.
    pub(crate) fn stream_of(&self, kind: StreamKind, shard: Shard) -> Value {
        let (name, subjects) = (kind.stream(shard), kind.subjects(shard));
        match kind {
            StreamKind::Events => self.stream(
                name,
                &subjects,
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
            StreamKind::Jobs => self.stream(
                name,
                &subjects,
                self.jobs_bytes_max,
                "old",
                merged(
                    self.cheap(),
                    json!({ "max_msg_size": MESSAGE_BYTES_MAX, "duplicate_window": nanos(JOBS_DUPLICATE_WINDOW) }),
                ),
            ),
        }
    }

    /// Rebuildable streams don't pay for fsync: not written through on one server, in memory on several.
    fn cheap(&self) -> Value {
        if self.replicas > 1 {
            json!({ "storage": "memory" })
        } else {
            json!({ "storage": "file", "persist_mode": "async" })
        }
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
}

/// The durable consumers of each stream of a kind.
pub(crate) fn consumers(kind: StreamKind) -> Vec<Value> {
    match kind {
        StreamKind::Events => vec![consumer(DISPATCHER_CONSUMER, EVENTS_ACK_PENDING_MAX, None)],
        StreamKind::Jobs => {
            Lane::ALL.map(|lane| consumer(&lane.consumer(), JOBS_ACK_PENDING_MAX, Some(lane.filter()))).to_vec()
        }
    }
}

/// What is known of a stream's subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It takes its own subjects.
    Used,
    /// The first JOBS as it was made when there was only one: it takes every number.
    Wide,
    /// It isn't used any more, and takes nothing.
    Retired,
}

/// What the subjects in a stream's configuration say.
pub(crate) fn use_of(kind: StreamKind, shard: Shard, config: &Value) -> Use {
    let there: Vec<&str> = config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if kind == StreamKind::Jobs && shard == Shard::FIRST && there == [JOBS_SUBJECTS_BEFORE] {
        Use::Wide
    } else if kind.subjects(shard).iter().all(|subject| there.contains(&subject.as_str())) {
        Use::Used
    } else {
        Use::Retired
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
            let topology = Topology { replicas, ..Default::default() };
            let [import, letters] = topology.single_streams();
            let [events, jobs] = StreamKind::ALL.map(|kind| topology.stream_of(kind, Shard::FIRST));
            [import, events, jobs, letters].map(|s| s["storage"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(storage(1), ["file", "file", "file", "file"]);
        assert_eq!(storage(3), ["file", "file", "memory", "memory"]);
    }

    #[test]
    fn subjects_tell_whether_a_stream_is_used() {
        let second = Shard::used(2).last().expect("there are two");
        for kind in StreamKind::ALL {
            for shard in [Shard::FIRST, second] {
                let wanted = Topology::default().stream_of(kind, shard);
                assert_eq!(use_of(kind, shard, &wanted), Use::Used);
                let retired = json!({ "subjects": [kind.retired_subject(shard)] });
                assert_eq!(use_of(kind, shard, &retired), Use::Retired);
            }
        }
        let wide = json!({ "subjects": ["relay.jobs.>"] });
        assert_eq!(use_of(StreamKind::Jobs, Shard::FIRST, &wide), Use::Wide);
        assert_eq!(use_of(StreamKind::Jobs, second, &wide), Use::Retired);
    }
}
