//! How much waits in the streams, and the purging of what is acknowledged. Called by the dispatchers' leader each
//! 10 to 30 s.
//!
//! Invariant: only messages below every consumer's ack floor are purged.

use std::time::Duration;

use futures_util::future::join_all;
use relay_core::shard::{Shard, StreamKind};
use relay_core::subject::{DISPATCHER_CONSUMER, Lane};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::ask;
use crate::bus::Bus;
use crate::error::BusError;
use crate::shards::Presence;

/// Samples kept of how far each EVENTS was.
const SAMPLES_MAX: usize = 4096;
/// Between two samples at least; more where the history is kept for long: twice its length must fit.
const SAMPLE_PERIOD: Duration = Duration::from_secs(10);

/// What waits at a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Lag {
    /// Messages not delivered yet.
    pub pending: u64,
    /// Messages delivered and not acknowledged.
    pub ack_pending: u64,
}

impl std::iter::Sum for Lag {
    fn sum<I: Iterator<Item = Self>>(lags: I) -> Self {
        lags.fold(Self::default(), |sum, lag| Self {
            pending: sum.pending + lag.pending,
            ack_pending: sum.ack_pending + lag.ack_pending,
        })
    }
}

/// How far one of EVENTS was at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    at: Instant,
    last: u64,
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) messages: u64,
    bytes: u64,
    bytes_max: u64,
}

impl Held {
    pub(crate) fn read(info: &Value) -> Self {
        let number = |key: &str| info["state"][key].as_u64().unwrap_or_default();
        Self {
            first: number("first_seq"),
            last: number("last_seq"),
            messages: number("messages"),
            bytes: number("bytes"),
            bytes_max: info["config"]["max_bytes"].as_u64().unwrap_or(u64::MAX),
        }
    }
}

impl Bus {
    /// What waits for the dispatchers, in all streams.
    ///
    /// # Errors
    /// NATS doesn't answer for one of them, or a consumer doesn't exist.
    pub async fn events_lag(&self) -> Result<Lag, BusError> {
        let lags = join_all(self.lags(StreamKind::Events, DISPATCHER_CONSUMER)).await;
        lags.into_iter().sum()
    }

    /// What waits for the deliverers in a lane, in bundles, in all streams that answer.
    ///
    /// # Errors
    /// NATS answers for none of them, or no consumer exists.
    pub async fn jobs_lag(&self, lane: Lane) -> Result<Lag, BusError> {
        let consumer = lane.consumer();
        let lags = join_all(self.lags(StreamKind::Jobs, &consumer)).await;
        if lags.iter().any(Result::is_ok) { Ok(lags.into_iter().flatten().sum()) } else { lags.into_iter().sum() }
    }

    fn lags<'a>(
        &'a self,
        kind: StreamKind,
        consumer: &'a str,
    ) -> impl Iterator<Item = impl Future<Output = Result<Lag, BusError>>> {
        self.known()
            .existing(kind)
            .into_iter()
            .map(move |shard| async move { Ok(lag(&self.consumer(kind.stream(shard), consumer).await?)) })
    }

    pub(crate) async fn consumer(&self, stream: &str, name: &str) -> Result<Value, BusError> {
        ask(self.api(), &format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await
    }

    /// Purges acknowledged messages: all of JOBS; of each EVENTS what is older than `keep` (as far as this process has
    /// watched), and more while the acknowledged part is over `percent` of the stream's size. Says of unused streams when
    /// they are empty.
    ///
    /// # Errors
    /// NATS doesn't answer for one of the streams; nothing that isn't acknowledged is ever purged.
    pub async fn purge_history(&self, keep: Duration, percent: u8) -> Result<(), BusError> {
        let known = self.known();
        let mut outcome = Ok(());
        for kind in StreamKind::ALL {
            for shard in known.existing(kind) {
                let purged = match kind {
                    StreamKind::Events => self.purge_events(shard, keep, percent).await,
                    StreamKind::Jobs => self.purge_jobs(shard).await,
                };
                match purged {
                    Ok(held) => self.say_empty(kind.stream(shard), known.get(kind, shard), held),
                    // The others go on.
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
        }
        outcome
    }

    async fn purge_events(&self, shard: Shard, keep: Duration, percent: u8) -> Result<Held, BusError> {
        let stream = StreamKind::Events.stream(shard);
        let held = self.held(stream).await?;
        let acked = floor(&self.consumer(stream, DISPATCHER_CONSUMER).await?, held.last);
        let up_to = by_age(&self.sample(shard, held.last, sample_period(keep)), keep, Instant::now())
            .max(by_size(held, acked, percent))
            .min(acked);
        self.purge(stream, held, up_to).await?;
        Ok(held)
    }

    async fn purge_jobs(&self, shard: Shard) -> Result<Held, BusError> {
        let stream = StreamKind::Jobs.stream(shard);
        // The stream first: what a lane without backlog shows afterwards covers all that was in it by then.
        let held = self.held(stream).await?;
        let mut floor_of_all = held.last;
        for lane in Lane::ALL {
            floor_of_all = floor_of_all.min(floor(&self.consumer(stream, &lane.consumer()).await?, held.last));
        }
        self.purge(stream, held, floor_of_all).await?;
        Ok(held)
    }

    /// Says once of an unused stream that nothing is in it, as it was before the purge: so it is said a round later.
    fn say_empty(&self, stream: &'static str, presence: Presence, held: Held) {
        let mut said = self.said_empty.lock().expect("no code panics while it holds this lock");
        if presence != Presence::Retired || held.messages > 0 {
            said.remove(stream);
        } else if said.insert(stream) {
            tracing::info!(stream, "the stream isn't used any more, and nothing is in it: it can be deleted");
        }
    }

    pub(crate) async fn held(&self, stream: &str) -> Result<Held, BusError> {
        Ok(Held::read(&ask(self.api(), &format!("STREAM.INFO.{stream}"), &json!({})).await?))
    }

    /// Purges messages up to a sequence, this one included.
    async fn purge(&self, stream: &str, held: Held, up_to: u64) -> Result<(), BusError> {
        if up_to < held.first || held.bytes == 0 {
            return Ok(());
        }
        let answer = ask(self.api(), &format!("STREAM.PURGE.{stream}"), &json!({ "seq": up_to + 1 })).await?;
        tracing::debug!(stream, purged = answer["purged"].as_u64(), "acknowledged history purged");
        Ok(())
    }

    /// Notes how far one of EVENTS is, and returns what was noted of it so far, oldest first.
    fn sample(&self, shard: Shard, last: u64, period: Duration) -> Vec<Sample> {
        let now = Instant::now();
        let mut history = self.history.lock().expect("no code panics while it holds this lock");
        let samples = history.entry(shard).or_default();
        if samples.back().is_some_and(|s| s.last > last) {
            samples.clear(); // The stream was made anew.
        }
        if samples.back().is_none_or(|s| now.duration_since(s.at) >= period) {
            samples.push_back(Sample { at: now, last });
        }
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
        samples.iter().copied().collect()
    }
}

fn lag(info: &Value) -> Lag {
    let number = |key: &str| info[key].as_u64().unwrap_or_default();
    Lag { pending: number("num_pending"), ack_pending: number("num_ack_pending") }
}

/// Up to where everything is acknowledged. `last` is the stream's last sequence from before `info`: a consumer
/// with nothing left has acknowledged all of that (its own floor stays behind where others' messages follow).
pub(crate) fn floor(info: &Value, last: u64) -> u64 {
    match lag(info) {
        Lag { pending: 0, ack_pending: 0 } => last,
        _ => info["ack_floor"]["stream_seq"].as_u64().unwrap_or_default(),
    }
}

fn sample_period(keep: Duration) -> Duration {
    SAMPLE_PERIOD.max(keep / (SAMPLES_MAX as u32 / 2))
}

/// The last sequence that is at least `keep` old.
fn by_age(samples: &[Sample], keep: Duration, now: Instant) -> u64 {
    samples.iter().rev().find(|s| now.duration_since(s.at) >= keep).map_or(0, |s| s.last)
}

/// Up to where to purge so that the acknowledged part takes no more than its share, if messages are equally large.
fn by_size(held: Held, floor: u64, percent: u8) -> u64 {
    let messages = (held.last + 1).saturating_sub(held.first);
    let acknowledged = (floor + 1).saturating_sub(held.first);
    if messages == 0 || acknowledged == 0 {
        return 0;
    }
    let share = u128::from(held.bytes_max) * u128::from(percent) / 100;
    let bytes = u128::from(held.bytes) * u128::from(acknowledged) / u128::from(messages);
    if bytes <= share {
        return 0;
    }
    let kept = u64::try_from(u128::from(acknowledged) * share / bytes).unwrap_or(0);
    floor.saturating_sub(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_with_nothing_left_is_at_the_end() {
        let idle = json!({ "num_pending": 0, "num_ack_pending": 0, "ack_floor": { "stream_seq": 3 } });
        let busy = json!({ "num_pending": 0, "num_ack_pending": 1, "ack_floor": { "stream_seq": 3 } });
        assert_eq!(floor(&idle, 90), 90);
        assert_eq!(floor(&busy, 90), 3);
    }

    #[test]
    fn the_acknowledged_part_shrinks_to_its_share() {
        let held = Held { first: 1, last: 1000, messages: 1000, bytes: 1000, bytes_max: 1000 };
        assert_eq!(by_size(held, 800, 25), 550);
        assert_eq!(by_size(held, 200, 25), 0);
        assert_eq!(by_size(held, 0, 25), 0);
        assert_eq!(by_size(Held { first: 0, last: 0, messages: 0, bytes: 0, bytes_max: 1000 }, 0, 25), 0);
    }

    #[test]
    fn samples_reach_back_as_far_as_history_is_kept() {
        for hours in [0, 1, 11, 24, 720] {
            let keep = Duration::from_secs(hours * 3600);
            assert!(sample_period(keep) * (SAMPLES_MAX as u32) > keep, "{hours}");
        }
        assert_eq!(sample_period(Duration::from_secs(3600)), SAMPLE_PERIOD);
    }

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_the_samples() {
        let begin = Instant::now();
        let samples: Vec<_> =
            (0..10).map(|i| Sample { at: begin + Duration::from_secs(i * 10), last: i * 100 }).collect();
        let now = begin + Duration::from_secs(100);
        assert_eq!(by_age(&samples, Duration::from_secs(35), now), 600);
        assert_eq!(by_age(&samples, Duration::from_secs(101), now), 0);
    }
}
