//! Which streams of a kind there are, and which of them a publisher tries first. Pure: [`crate::discover`] asks the server,
//! [`crate::publish`] publishes.
//!
//! Invariant: the first stream of each kind always counts as used, so there is always one to try.

use std::time::Duration;

use relay_core::shard::{STREAMS_MAX, Shard, StreamKind};
use tokio::time::Instant;

/// So long others are preferred to a stream that refused: it is full, or can't store now.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// The same for a stream that didn't answer at all, which costs a publish its whole time.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// Whether a stream is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Presence {
    /// It doesn't exist.
    #[default]
    Absent,
    /// It takes what is published for it.
    Used,
    /// It only gives what is in it.
    Retired,
}

/// What is known of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    events: [Presence; STREAMS_MAX as usize],
    jobs: [Presence; STREAMS_MAX as usize],
}

impl Default for Known {
    fn default() -> Self {
        let mut only_first = [Presence::Absent; STREAMS_MAX as usize];
        only_first[Shard::FIRST.index()] = Presence::Used;
        Self { events: only_first, jobs: only_first }
    }
}

impl Known {
    fn of(&self, kind: StreamKind) -> &[Presence; STREAMS_MAX as usize] {
        match kind {
            StreamKind::Events => &self.events,
            StreamKind::Jobs => &self.jobs,
        }
    }

    pub fn get(&self, kind: StreamKind, shard: Shard) -> Presence {
        self.of(kind)[shard.index()]
    }

    /// Notes what a stream was found to be; the first is there whatever is seen of it.
    pub fn set(&mut self, kind: StreamKind, shard: Shard, presence: Presence) {
        let of_kind = match kind {
            StreamKind::Events => &mut self.events,
            StreamKind::Jobs => &mut self.jobs,
        };
        if shard != Shard::FIRST {
            of_kind[shard.index()] = presence;
        }
    }

    /// Those that take what is published.
    pub fn used(&self, kind: StreamKind) -> Vec<Shard> {
        Shard::all().filter(|s| self.get(kind, *s) == Presence::Used).collect()
    }

    /// Those from which is taken.
    pub fn existing(&self, kind: StreamKind) -> Vec<Shard> {
        Shard::all().filter(|s| self.get(kind, *s) != Presence::Absent).collect()
    }
}

/// What a publish said of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It answers and stores.
    Stores,
    /// It answers that it is full.
    Refuses,
    /// It answers that it isn't there, or can't store now.
    Fails,
    /// It didn't answer.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    is_silent: bool,
    since: Instant,
}

impl Trouble {
    /// How far back the stream stands among those to try.
    fn rank(self, now: Instant) -> u8 {
        let (rank, span) = if self.is_silent { (2, SILENT_FOR) } else { (1, REFUSED_FOR) };
        if now.duration_since(self.since) < span { rank } else { 0 }
    }
}

/// Whose turn it is among the streams of a kind, how much is on its way to each, and which of them have trouble.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    turn: usize,
    on_their_way: [usize; STREAMS_MAX as usize],
    trouble: [Option<Trouble>; STREAMS_MAX as usize],
}

impl Turns {
    /// The streams in the order in which the next publish tries them: in turn, those behind to which more is on its way (it may
    /// be a long one), then those that refused, silent ones last.
    pub fn order(&mut self, mut used: Vec<Shard>, now: Instant) -> Vec<Shard> {
        if used.len() > 1 {
            let first = self.turn % used.len();
            used.rotate_left(first);
            self.turn = self.turn.wrapping_add(1);
            let rank = |s: &Shard| self.trouble[s.index()].map_or(0, |trouble| trouble.rank(now));
            used.sort_by_key(|s| (rank(s), self.on_their_way[s.index()]));
        }
        used
    }

    /// Notes that a publish to a stream began.
    pub fn began(&mut self, shard: Shard) {
        self.on_their_way[shard.index()] += 1;
    }

    /// Notes that it ended, whatever it said.
    pub fn ended(&mut self, shard: Shard) {
        self.on_their_way[shard.index()] = self.on_their_way[shard.index()].saturating_sub(1);
    }

    /// Notes what a publish to a stream said.
    pub fn note(&mut self, shard: Shard, heard: Heard, now: Instant) {
        self.trouble[shard.index()] = match heard {
            Heard::Stores => None,
            Heard::Refuses => Some(Trouble { is_silent: false, since: now }),
            // No proof that it stores again, where it was silent before.
            Heard::Fails => Some(Trouble { is_silent: self.is_silent(shard), since: now }),
            Heard::Nothing => Some(Trouble { is_silent: true, since: now }),
        };
    }

    /// Whether the last publish to a stream had no answer.
    pub fn is_silent(&self, shard: Shard) -> bool {
        self.trouble[shard.index()].is_some_and(|trouble| trouble.is_silent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn numbers(shards: &[Shard]) -> Vec<u16> {
        shards.iter().map(|s| s.number()).collect()
    }

    fn three() -> Vec<Shard> {
        Shard::used(3).collect()
    }

    #[test]
    fn the_first_stream_is_always_used() {
        let mut known = Known::default();
        for shard in Shard::all() {
            known.set(StreamKind::Events, shard, Presence::Absent);
            known.set(StreamKind::Jobs, shard, Presence::Retired);
        }
        assert_eq!(known.used(StreamKind::Events), [Shard::FIRST]);
        assert_eq!(known.existing(StreamKind::Events), [Shard::FIRST]);
        assert_eq!(known.used(StreamKind::Jobs), [Shard::FIRST]);
        assert_eq!(known.existing(StreamKind::Jobs), Shard::all().collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn publishes_go_round() {
        let mut turns = Turns::default();
        let now = Instant::now();
        let firsts: Vec<u16> = (0..6).map(|_| turns.order(three(), now)[0].number()).collect();
        assert_eq!(firsts, [0, 1, 2, 0, 1, 2]);
        assert_eq!(numbers(&turns.order(vec![Shard::FIRST], now)), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_yet_keeps_others_away() {
        let (mut turns, shards) = (Turns::default(), three());
        let now = Instant::now();
        turns.began(shards[1]);
        for _ in 0..6 {
            assert_eq!(turns.order(three(), now)[2], shards[1]);
        }
        turns.ended(shards[1]);
        let firsts: HashSet<u16> = (0..3).map(|_| turns.order(three(), now)[0].number()).collect();
        assert_eq!(firsts.len(), 3);
        turns.ended(shards[1]);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_in_trouble_come_last_for_a_while() {
        let (mut turns, shards) = (Turns::default(), three());
        let begin = Instant::now();
        turns.note(shards[0], Heard::Nothing, begin);
        turns.note(shards[1], Heard::Refuses, begin);
        for _ in 0..3 {
            assert_eq!(numbers(&turns.order(three(), begin)), [2, 1, 0]);
        }
        let later = begin + REFUSED_FOR;
        assert_eq!(turns.order(three(), later)[2], shards[0], "silent still");
        assert!(turns.is_silent(shards[0]) && !turns.is_silent(shards[1]));
        let much_later = begin + SILENT_FOR;
        let firsts: Vec<u16> = (0..3).map(|_| turns.order(three(), much_later)[0].number()).collect();
        assert_eq!(firsts.iter().sum::<u16>(), 3, "each has its turn again: {firsts:?}");
        turns.note(shards[0], Heard::Fails, much_later);
        assert!(turns.is_silent(shards[0]), "it has stored nothing since");
        turns.note(shards[0], Heard::Stores, much_later);
        assert!(!turns.is_silent(shards[0]));
    }

    #[test]
    fn every_stream_is_tried_whatever_its_trouble() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        for shard in Shard::all() {
            turns.note(shard, if shard.number() % 2 == 0 { Heard::Nothing } else { Heard::Refuses }, now);
            let mut order = turns.order(Shard::all().collect(), now);
            order.sort();
            assert_eq!(order, Shard::all().collect::<Vec<_>>());
        }
    }
}
