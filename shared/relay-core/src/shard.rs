//! The streams of one kind among which a system spreads its events or its jobs, where one of NATS is not enough: their
//! numbers, names and subjects. Stream 0 is the one that every system has.
//!
//! A stream that is used takes its subject. One that isn't used any more has another subject, on which nobody publishes:
//! so the server itself refuses what is published for it, and what is in it can still be taken.

use crate::subject::{self, EVENTS_SUBJECTS};

/// Streams of one kind at most: the permissions in `nats/accounts.conf` name them one by one.
pub const STREAMS_MAX: u8 = 8;

const EVENTS: [&str; STREAMS_MAX as usize] =
    ["EVENTS", "EVENTS_1", "EVENTS_2", "EVENTS_3", "EVENTS_4", "EVENTS_5", "EVENTS_6", "EVENTS_7"];
const JOBS: [&str; STREAMS_MAX as usize] =
    ["JOBS", "JOBS_1", "JOBS_2", "JOBS_3", "JOBS_4", "JOBS_5", "JOBS_6", "JOBS_7"];

/// The number of a stream among those of its kind: below [`STREAMS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Shard(u8);

impl Shard {
    /// The stream that every system has.
    pub const FIRST: Self = Self(0);

    /// All that there can be.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..STREAMS_MAX).map(Self)
    }

    /// Those that a system with `count` streams of a kind uses; at least the first.
    pub fn used(count: u8) -> impl Iterator<Item = Self> + Clone {
        Self::all().take(usize::from(count.max(1)))
    }

    /// Those that a system with `count` streams of a kind doesn't use.
    pub fn unused(count: u8) -> impl Iterator<Item = Self> + Clone {
        Self::all().skip(usize::from(count.max(1)))
    }

    /// Its place in a list of [`STREAMS_MAX`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The number, as it stands in subjects.
    pub fn number(self) -> u16 {
        u16::from(self.0)
    }
}

/// What a stream holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StreamKind {
    /// Accepted events.
    Events,
    /// Delivery jobs.
    Jobs,
}

impl StreamKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Events, Self::Jobs];

    /// The name of the stream.
    pub fn stream(self, shard: Shard) -> &'static str {
        match self {
            Self::Events => EVENTS[shard.index()],
            Self::Jobs => JOBS[shard.index()],
        }
    }

    /// What the stream takes while it is used. Producers of their own know no numbers, so the first takes theirs.
    pub fn subjects(self, shard: Shard) -> Vec<String> {
        let number = shard.number();
        match self {
            Self::Events if shard == Shard::FIRST => vec![EVENTS_SUBJECTS.to_owned(), subject::bundles(number)],
            Self::Events => vec![subject::bundles(number)],
            Self::Jobs => vec![format!("relay.jobs.*.{number}")],
        }
    }

    /// What the stream takes when it isn't used any more: nothing is ever published on it.
    pub fn retired_subject(self, shard: Shard) -> String {
        let kind = match self {
            Self::Events => "events",
            Self::Jobs => "jobs",
        };
        format!("relay.retired.{kind}.{}", shard.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::Lane;

    #[test]
    fn the_first_streams_keep_the_names_and_subjects_of_a_system_without_shards() {
        let first = |kind: StreamKind| (kind.stream(Shard::FIRST), kind.subjects(Shard::FIRST).join(" "));
        assert_eq!(first(StreamKind::Events), ("EVENTS", "relay.events.> relay.bundles.0".to_owned()));
        assert_eq!(first(StreamKind::Jobs), ("JOBS", "relay.jobs.*.0".to_owned()));
    }

    #[test]
    fn names_and_subjects_have_the_number() {
        for shard in Shard::all().skip(1) {
            let n = shard.number();
            assert_eq!(StreamKind::Events.stream(shard), format!("EVENTS_{n}"));
            assert_eq!(StreamKind::Events.subjects(shard), [subject::bundles(n)]);
            assert_eq!(StreamKind::Jobs.stream(shard), format!("JOBS_{n}"));
            assert_eq!(StreamKind::Jobs.subjects(shard), [subject::jobs(Lane::Slow, n).replace("slow", "*")]);
        }
    }

    #[test]
    fn used_and_unused_are_all() {
        for count in 0..=STREAMS_MAX {
            let both: Vec<_> = Shard::used(count).chain(Shard::unused(count)).collect();
            assert_eq!(both, Shard::all().collect::<Vec<_>>());
            assert_eq!(Shard::used(count).count(), usize::from(count.max(1)));
        }
    }
}
