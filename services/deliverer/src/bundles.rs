//! Which messages of JOBS are being worked on, and which may be acked: a message is acked when each job in it is
//! settled and none of them is unknown. Owned by the pool's task; no I/O.
//!
//! A copy of a delivery that the pod works on already hangs on to the first: it shares that one's fate, so no
//! message is acked before the work it stands for is on record. A copy under a newer claim than the one that the
//! work ended with stands for work of its own: it is never acked with the older one, but comes again.

use std::collections::HashMap;
use std::time::Duration;

use relay_core::subject::Lane;
use tokio::time::Instant;

use crate::work::{BundleNumber, Key, Settled};

/// Messages still worked on are announced to JetStream this often; its `ack_wait` is 10 s.
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(4);

/// A message whose jobs are not all settled.
struct Open<A> {
    ack: A,
    lane: Lane,
    kibibytes: u32,
    left: usize,
    unknown: bool,
    announced: Instant,
}

/// A message that is through.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed<A> {
    /// To acknowledge it with; `None` where it must come again.
    pub ack: Option<A>,
    /// The size that is free again.
    pub kibibytes: u32,
}

/// The messages that stand for one delivery.
struct Holders {
    first: BundleNumber,
    copies: Vec<(BundleNumber, i32)>,
}

/// See the module.
pub struct Bundles<A> {
    open: HashMap<BundleNumber, Open<A>>,
    working: HashMap<Key, Holders>,
    next: BundleNumber,
}

impl<A> Default for Bundles<A> {
    fn default() -> Self {
        Self { open: HashMap::new(), working: HashMap::new(), next: 0 }
    }
}

impl<A: Clone> Bundles<A> {
    /// A message of `jobs` jobs has come.
    pub fn open(&mut self, ack: A, lane: Lane, kibibytes: u32, jobs: usize, now: Instant) -> BundleNumber {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, Open { ack, lane, kibibytes, left: jobs, unknown: false, announced: now });
        number
    }

    /// Whether a job is to be worked on: `false` for a copy of one that is being worked on. `claim` is the job's.
    pub fn admit(&mut self, key: Key, claim: i32, bundle: BundleNumber) -> bool {
        match self.working.entry(key) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Holders { first: bundle, copies: Vec::new() });
                true
            }
            std::collections::hash_map::Entry::Occupied(mut there) => {
                there.get_mut().copies.push((bundle, claim));
                false
            }
        }
    }

    /// A delivery is settled, with all its copies. Calls `freed` with the lane of each job that leaves the pod,
    /// and pushes the messages that are through to `closed`.
    pub fn settle(&mut self, key: Key, how: Settled, mut freed: impl FnMut(Lane), closed: &mut Vec<Closed<A>>) {
        let Some(holders) = self.working.remove(&key) else {
            debug_assert!(false, "a job is settled once");
            return;
        };
        let first = (holders.first, how == Settled::Unknown);
        let copies = holders.copies.into_iter().map(|(number, claim)| {
            let covered = matches!(how, Settled::Done { claim: last } if claim <= last);
            (number, !covered)
        });
        for (number, unknown) in std::iter::once(first).chain(copies) {
            let Some(bundle) = self.open.get_mut(&number) else { continue };
            bundle.left -= 1;
            bundle.unknown |= unknown;
            freed(bundle.lane);
            if bundle.left == 0
                && let Some(bundle) = self.open.remove(&number)
            {
                closed.push(Closed { ack: (!bundle.unknown).then_some(bundle.ack), kibibytes: bundle.kibibytes });
            }
        }
    }

    /// Messages that JetStream must hear of now lest it gives them to somebody else.
    pub fn take_unannounced(&mut self, now: Instant) -> Vec<A> {
        let mut handles = Vec::new();
        for bundle in self.open.values_mut() {
            if now.saturating_duration_since(bundle.announced) >= PROGRESS_PERIOD {
                bundle.announced = now;
                handles.push(bundle.ack.clone());
            }
        }
        handles
    }

    /// Deliveries that are being worked on.
    pub fn working(&self) -> usize {
        self.working.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_core::ids::{EndpointId, EventId};
    use uuid::Uuid;

    const DONE: Settled = Settled::Done { claim: 1 };

    fn key(n: u128) -> Key {
        (EventId(Uuid::from_u128(n)), EndpointId(Uuid::from_u128(1)))
    }

    fn settle(bundles: &mut Bundles<&'static str>, n: u128, how: Settled) -> (usize, Vec<Option<&'static str>>) {
        let (mut freed, mut closed) = (0, Vec::new());
        bundles.settle(key(n), how, |_| freed += 1, &mut closed);
        (freed, closed.into_iter().map(|c| c.ack).collect())
    }

    #[test]
    fn a_message_is_acked_when_its_last_job_is_settled() {
        let mut bundles = Bundles::default();
        let number = bundles.open("a", Lane::Fresh, 1, 2, Instant::now());
        assert!(bundles.admit(key(1), 1, number) && bundles.admit(key(2), 1, number));
        assert_eq!(settle(&mut bundles, 1, DONE), (1, vec![]));
        assert_eq!(settle(&mut bundles, 2, DONE), (1, vec![Some("a")]));
        assert_eq!(bundles.working(), 0);
    }

    #[test]
    fn one_unknown_job_keeps_its_message_unacked() {
        let mut bundles = Bundles::default();
        let number = bundles.open("a", Lane::Fresh, 1, 2, Instant::now());
        assert!(bundles.admit(key(1), 1, number) && bundles.admit(key(2), 1, number));
        settle(&mut bundles, 1, Settled::Unknown);
        assert_eq!(settle(&mut bundles, 2, DONE), (1, vec![None]));
    }

    #[test]
    fn a_copy_shares_the_fate_of_the_work_it_is_a_copy_of() {
        let mut bundles = Bundles::default();
        let first = bundles.open("a", Lane::Fresh, 1, 1, Instant::now());
        assert!(bundles.admit(key(1), 1, first));
        let again = bundles.open("b", Lane::Retry, 1, 2, Instant::now());
        assert!(!bundles.admit(key(1), 1, again));
        assert!(bundles.admit(key(2), 1, again));
        assert_eq!(settle(&mut bundles, 1, DONE), (2, vec![Some("a")]));
        assert_eq!(settle(&mut bundles, 2, DONE), (1, vec![Some("b")]));
    }

    #[test]
    fn a_copy_under_a_newer_claim_is_not_acked_with_the_older_work() {
        let mut bundles = Bundles::default();
        let first = bundles.open("a", Lane::Fresh, 1, 1, Instant::now());
        assert!(bundles.admit(key(1), 1, first));
        let newer = bundles.open("b", Lane::Retry, 1, 1, Instant::now());
        assert!(!bundles.admit(key(1), 2, newer));
        assert_eq!(settle(&mut bundles, 1, DONE), (2, vec![Some("a"), None]));

        // The work took the row itself since: then it covers the copy.
        let first = bundles.open("c", Lane::Fresh, 1, 1, Instant::now());
        assert!(bundles.admit(key(1), 1, first));
        let newer = bundles.open("d", Lane::Retry, 1, 1, Instant::now());
        assert!(!bundles.admit(key(1), 2, newer));
        assert_eq!(settle(&mut bundles, 1, Settled::Done { claim: 3 }), (2, vec![Some("c"), Some("d")]));
    }

    #[test]
    fn the_same_delivery_twice_in_one_message_counts_twice() {
        let mut bundles = Bundles::default();
        let number = bundles.open("a", Lane::Fresh, 1, 2, Instant::now());
        assert!(bundles.admit(key(1), 1, number));
        assert!(!bundles.admit(key(1), 1, number));
        assert_eq!(settle(&mut bundles, 1, DONE), (2, vec![Some("a")]));
    }

    #[test]
    fn messages_are_announced_once_a_period() {
        let mut bundles = Bundles::default();
        let begin = Instant::now();
        let number = bundles.open("a", Lane::Fresh, 1, 1, begin);
        assert!(bundles.admit(key(1), 1, number));
        assert!(bundles.take_unannounced(begin + Duration::from_secs(3)).is_empty());
        assert_eq!(bundles.take_unannounced(begin + Duration::from_secs(4)), ["a"]);
        assert!(bundles.take_unannounced(begin + Duration::from_secs(5)).is_empty());
        assert_eq!(bundles.take_unannounced(begin + Duration::from_secs(8)), ["a"]);
    }
}
