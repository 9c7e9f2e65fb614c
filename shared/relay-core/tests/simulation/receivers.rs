//! The endpoints' servers: each answers by a script of its own.

use super::world::{Dice, Key, TIMEOUT_MS, World, short_key};

/// How an endpoint behaves.
#[derive(Clone, Debug)]
pub enum Receiver {
    /// 2xx, soon.
    Healthy,
    /// 2xx, after seconds.
    Slow,
    /// Sometimes 2xx, sometimes 5xx, sometimes too late.
    Flaky,
    /// 5xx until then, 2xx afterwards.
    DownUntil(u64),
    /// Refuses half of the events for good.
    Refusing,
    /// 5xx, always.
    Dead,
}

/// What a request comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Success,
    Failure,
    Refusal,
    /// Nothing in time.
    TimedOut,
}

impl Receiver {
    pub fn draw(dice: &mut Dice) -> Self {
        match dice.range(0, 9) {
            0..=3 => Self::Healthy,
            4 => Self::Slow,
            5 | 6 => Self::Flaky,
            7 => Self::DownUntil(dice.range(5_000, 40_000)),
            8 => Self::Refusing,
            _ => Self::Dead,
        }
    }

    fn answer(&self, key: Key, now: u64, dice: &mut Dice) -> (Answer, u64) {
        let soon = dice.range(2, 60);
        match self {
            Self::Healthy => (Answer::Success, soon),
            Self::Slow => (Answer::Success, dice.range(1000, TIMEOUT_MS - 100)),
            Self::Flaky => match dice.range(0, 3) {
                0 | 1 => (Answer::Success, soon * 20),
                2 => (Answer::Failure, soon * 50),
                _ => (Answer::TimedOut, TIMEOUT_MS),
            },
            Self::DownUntil(until) if now < *until => (Answer::Failure, soon),
            Self::DownUntil(_) => (Answer::Success, soon),
            Self::Refusing if key.0.0.as_u128().is_multiple_of(2) => (Answer::Refusal, soon),
            Self::Refusing => (Answer::Success, soon),
            Self::Dead => (Answer::Failure, soon),
        }
    }
}

impl World {
    /// A request arrives. Gives what the sender sees, and when.
    pub fn receive(&mut self, key: Key) -> (Answer, u64) {
        let now = self.now;
        let Some(receiver) = self.receivers.get(&key.1).cloned() else { return (Answer::Failure, 1) };
        let (answer, latency) = receiver.answer(key, now, &mut self.dice);
        let lost = answer == Answer::Success && self.dice.chance(self.chances.answer_lost);
        self.after(latency, move |w| {
            let seen = w.seen.entry(key).or_default();
            if answer == Answer::Success {
                seen.receipts_2xx += 1;
                seen.allowed += u32::from(lost);
                let (receipts, allowed) = (seen.receipts_2xx, seen.allowed);
                w.note(|| format!("{} answers 2xx, receipt {receipts}, lost: {lost}", short_key(key)));
                if receipts > 1 + allowed {
                    w.fail(format!(
                        "{}: {receipts} receipts answered 2xx, the faults explain {allowed} duplicates",
                        short_key(key)
                    ));
                }
            } else {
                seen.failures += 1;
            }
            if lost {
                w.seen.entry(key).or_default().failures += 1;
            }
        });
        if lost { (Answer::TimedOut, TIMEOUT_MS) } else { (answer, latency) }
    }
}
