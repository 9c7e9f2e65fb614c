//! Making what is missing, comparing what is there, deleting nothing; using more or fewer streams of a kind by giving them
//! their subjects, or taking these away. At start by [`Bus::declare`], at run time by publishers and pullers that find no
//! stream or consumer.

use std::sync::atomic::Ordering;

use async_nats::Client;
use relay_core::shard::{Shard, StreamKind};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{self, CONSUMER_EXISTS, CONSUMER_NOT_FOUND, STORAGE_EXCEEDED, STREAM_EXISTS, STREAM_NOT_FOUND};
use crate::bus::Bus;
use crate::error::BusError;
use crate::topology::{Topology, Use, consumers, differences, use_of};

/// A stream is made no smaller than this to fit the server's disk.
const STREAM_BYTES_LEAST: i64 = 64 << 20;

impl Bus {
    /// Makes the streams and consumers that are missing, and logs how existing ones differ from what is wanted. It also makes
    /// the used streams as many as wanted: further ones stay, with what is in them, and take nothing any more. For the
    /// dispatchers, which decide that.
    ///
    /// # Errors
    /// NATS doesn't answer, or refuses to make or change one of them.
    pub async fn declare(&self, topology: &Topology) -> Result<(), BusError> {
        *self.topology.lock().expect("no code panics while it holds this lock") = *topology;
        self.resize(topology).await?;
        self.look_once().await;
        Ok(())
    }

    /// Declares what is wanted, and notes whether a further stream didn't answer: then it is to be done again.
    async fn resize(&self, topology: &Topology) -> Result<(), BusError> {
        let begun = Instant::now();
        let mut last = self.declaring.lock().await;
        let unanswered = declare_all(self.api(), topology, Resize::Yes).await?;
        *last = Some(begun);
        let before = self.is_unsettled.swap(unanswered.is_some(), Ordering::Relaxed);
        match unanswered {
            Some(error) if !before => {
                tracing::warn!(%error, "one of the streams doesn't answer; going on without it until it does");
            }
            None if before => tracing::info!("all streams answer and are as they should be"),
            _ => {}
        }
        Ok(())
    }

    /// Does again what was left over because a stream didn't answer.
    pub(crate) async fn settle(&self) {
        if self.is_unsettled.load(Ordering::Relaxed) {
            let topology = *self.topology.lock().expect("no code panics while it holds this lock");
            if let Err(error) = self.resize(&topology).await {
                tracing::debug!(%error, "the streams are not as they should be; trying again");
            }
        }
    }

    /// Looks which streams there are; what doesn't answer is looked for later.
    pub(crate) async fn look_once(&self) {
        if let Err(error) = self.discover().await {
            tracing::debug!(%error, "not known of every stream whether it is there");
        }
    }

    /// Makes what is missing of what this process declared last, or of the defaults. It changes nothing.
    ///
    /// # Errors
    /// NATS doesn't answer, or refuses to make one of them.
    pub async fn declare_missing(&self) -> Result<(), BusError> {
        self.declare_after(Instant::now()).await?;
        self.look_once().await;
        Ok(())
    }

    /// The same, unless somebody of this process has begun to do so after `missed`, when the caller found something missing.
    /// One call at a time.
    pub(crate) async fn declare_after(&self, missed: Instant) -> Result<(), BusError> {
        let topology = *self.topology.lock().expect("no code panics while it holds this lock");
        let mut last = self.declaring.lock().await;
        if last.is_some_and(|begun| begun > missed) {
            return Ok(());
        }
        let begun = Instant::now();
        if let Some(error) = declare_all(self.api(), &topology, Resize::No).await? {
            tracing::debug!(%error, "one of the streams doesn't answer");
        }
        *last = Some(begun);
        Ok(())
    }

    /// Makes the consumers of one stream where they are missing: whoever takes from a stream needs them, also where it was told
    /// of fewer streams.
    pub(crate) async fn declare_consumers(&self, kind: StreamKind, shard: Shard) -> Result<(), BusError> {
        ensure_consumers(self.api(), kind.stream(shard), kind).await
    }
}

/// Whether subjects of existing streams are changed, so that as many are used as wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resize {
    Yes,
    No,
}

/// The first streams must be there; of the further ones each is for itself, and where one doesn't answer, that is returned.
async fn declare_all(client: &Client, topology: &Topology, resize: Resize) -> Result<Option<BusError>, BusError> {
    for wanted in topology.single_streams() {
        let name = wanted["name"].as_str().unwrap_or_default();
        let (wanted, there) = ensure_stream(client, name, wanted.clone()).await?;
        compare(name, &wanted, &there["config"]);
    }
    let mut unanswered = None;
    for kind in StreamKind::ALL {
        // In this order: the first JOBS may have the subjects of all.
        for shard in Shard::used(topology.count(kind)) {
            let declared = async {
                ensure_used(client, topology, (kind, shard), resize).await?;
                ensure_consumers(client, kind.stream(shard), kind).await
            };
            leave_unanswered(shard, declared.await, &mut unanswered)?;
        }
        for shard in Shard::unused(topology.count(kind)).filter(|_| resize == Resize::Yes) {
            leave_unanswered(shard, retire(client, kind, shard).await, &mut unanswered)?;
        }
    }
    Ok(unanswered)
}

fn leave_unanswered(shard: Shard, done: Result<(), BusError>, left: &mut Option<BusError>) -> Result<(), BusError> {
    match done {
        Err(error @ BusError::Unanswered { .. }) if shard != Shard::FIRST => {
            left.get_or_insert(error);
            Ok(())
        }
        done => done,
    }
}

/// A stream that takes what is published for it.
async fn ensure_used(
    client: &Client,
    topology: &Topology,
    (kind, shard): (StreamKind, Shard),
    resize: Resize,
) -> Result<(), BusError> {
    let name = kind.stream(shard);
    let (mut wanted, there) = ensure_stream(client, name, topology.stream_of(kind, shard)).await?;
    let used_as = use_of(kind, shard, &there["config"]);
    let changed = match used_as {
        Use::Used => None,
        Use::Wide if topology.count(kind) > 1 => Some("leaves its other subjects to further streams"),
        Use::Wide => None,
        Use::Retired if shard == Shard::FIRST => None,
        Use::Retired => Some("is used again"),
    };
    match changed.filter(|_| resize == Resize::Yes) {
        Some(what) => {
            set_subjects(client, name, &there["config"], kind.subjects(shard)).await?;
            tracing::info!(stream = name, "the stream {what}");
        }
        None if changed.is_none() && used_as == Use::Wide => {
            wanted["subjects"] = there["config"]["subjects"].clone();
        }
        None => {}
    }
    compare(name, &wanted, &there["config"]);
    if kind == StreamKind::Events && !is_window_zero(&there) {
        tracing::error!(
            stream = name,
            "the stream drops messages by their Nats-Msg-Id, whatever their tenant: accepted events may be lost. It needs \
             duplicate_window 0, which takes nats-server 2.14 or newer"
        );
    }
    Ok(())
}

async fn ensure_consumers(client: &Client, stream: &str, kind: StreamKind) -> Result<(), BusError> {
    for wanted in consumers(kind) {
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

/// A stream beyond those that are wanted takes nothing any more: the server refuses what is published for it. What is in it
/// stays, and is taken.
async fn retire(client: &Client, kind: StreamKind, shard: Shard) -> Result<(), BusError> {
    let name = kind.stream(shard);
    let there = match api::ask(client, &format!("STREAM.INFO.{name}"), &json!({})).await {
        Ok(there) => there,
        Err(error) if error.code() == Some(STREAM_NOT_FOUND) => return Ok(()),
        Err(error) => return Err(error),
    };
    if use_of(kind, shard, &there["config"]) == Use::Used {
        set_subjects(client, name, &there["config"], vec![kind.retired_subject(shard)]).await?;
        tracing::info!(
            stream = name,
            messages = there["state"]["messages"].as_u64(),
            "the stream isn't used any more: what is in it is still taken, and it can be deleted when it is empty"
        );
    }
    Ok(())
}

/// Changes the subjects of a stream and nothing else.
async fn set_subjects(client: &Client, name: &str, config: &Value, subjects: Vec<String>) -> Result<(), BusError> {
    let mut config = config.clone();
    config["subjects"] = json!(subjects);
    let changed = api::ask(client, &format!("STREAM.UPDATE.{name}"), &config).await;
    if let Err(BusError::Unanswered { .. }) = &changed {
        tracing::error!(
            stream = name,
            "NATS doesn't say that the stream has other subjects now: the dispatcher's user must be permitted \
             $JS.API.STREAM.UPDATE.{name}, as it is in nats/accounts.conf"
        );
    }
    changed.map(drop)
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
