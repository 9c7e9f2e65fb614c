//! What events there are, which endpoints they go to, and what each endpoint does with them: the part of the truth that
//! is known before a run.

use std::time::Duration;

/// An endpoint; its path on the receivers' listener is its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Hook {
    /// Answers 200 at once; the only one of its events.
    Plain,
    /// One of three: answers 200 at once.
    First,
    /// One of three: answers 200 after up to a second.
    Slow,
    /// One of three: answers 500 to the first one or two requests of one event in eight.
    Failing,
    /// Leaves the first request of one event in eight without an answer for longer than its time-out.
    Hanging,
    /// Answers 503 to everything for two seconds of every eight.
    Flapping,
    /// Answers 400, which is final: its deliveries become dead letters.
    Refusing,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Plain, Self::First, Self::Slow, Self::Failing, Self::Hanging, Self::Flapping, Self::Refusing];

    /// Its path without the slash.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::First => "first",
            Self::Slow => "slow",
            Self::Failing => "failing",
            Self::Hanging => "hanging",
            Self::Flapping => "flapping",
            Self::Refusing => "refusing",
        }
    }

    /// The endpoint with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    /// The event type that it takes.
    pub fn takes(self) -> &'static str {
        match self {
            Self::Plain => "chaos.one",
            Self::First | Self::Slow | Self::Failing => "chaos.three",
            Self::Hanging => "chaos.hanging",
            Self::Flapping => "chaos.flapping",
            Self::Refusing => "chaos.refusing",
        }
    }

    /// What its secret header says.
    pub fn header(self) -> String {
        format!("known-to-{}-alone", self.name())
    }

    /// Whether its deliveries end as dead letters.
    pub fn refuses(self) -> bool {
        self == Self::Refusing
    }
}

/// The type of the event with this number.
pub fn event_type(number: u64) -> &'static str {
    match number % 100 {
        0..50 | 98.. => "chaos.one",
        50..80 => "chaos.three",
        80..92 => "chaos.flapping",
        92..96 => "chaos.refusing",
        _ => "chaos.hanging",
    }
}

/// The endpoints that the event with this number goes to.
pub fn hooks(number: u64) -> impl Iterator<Item = Hook> {
    Hook::ALL.into_iter().filter(move |hook| hook.takes() == event_type(number))
}

/// What an endpoint does with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Act {
    /// Waits first.
    pub after: Duration,
    /// Then answers with this status.
    pub status: u16,
}

/// What `hook` does with the request number `nth` (from 1) for the event `number`, `clock` after the start of the run.
pub fn act(hook: Hook, number: u64, nth: u32, clock: Duration) -> Act {
    let now = |status| Act { after: Duration::ZERO, status };
    // The last digits choose the type of an event: what endpoints do hangs on the others.
    let mix = number / 100 + number;
    match hook {
        Hook::Plain | Hook::First => now(200),
        Hook::Slow => Act { after: Duration::from_millis(mix % 10 * 100), status: 200 },
        Hook::Failing if mix.is_multiple_of(8) && u64::from(nth) <= 1 + mix / 8 % 2 => now(500),
        Hook::Hanging if mix.is_multiple_of(8) && nth == 1 => Act { after: Duration::from_secs(8), status: 200 },
        Hook::Flapping if clock.as_secs() % 8 < 2 => now(503),
        Hook::Failing | Hook::Hanging | Hook::Flapping => now(200),
        Hook::Refusing => now(400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_goes_to_one_or_three_endpoints_and_each_endpoint_gets_some() {
        let counts: Vec<usize> = (0..100).map(|n| hooks(n).count()).collect();
        assert!(counts.iter().all(|c| [1, 3].contains(c)));
        for hook in Hook::ALL {
            assert!((0..100).any(|n| hooks(n).any(|h| h == hook)), "{hook:?}");
            assert_eq!(Hook::named(hook.name()), Some(hook));
        }
    }

    #[test]
    fn only_the_refusing_endpoint_never_takes_an_event() {
        for number in 0..1_000 {
            for hook in hooks(number) {
                let act = act(hook, number, 4, Duration::from_secs(5));
                assert_eq!(act.status == 200, !hook.refuses(), "{hook:?} {number}");
            }
        }
    }
}
