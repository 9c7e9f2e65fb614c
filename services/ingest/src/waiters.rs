//! `GET /events/{id}` right after the 202: waits for the dispatcher to have stored the event. All requests that
//! wait share one query per tick, so a thousand of them cost Postgres no more than one.
//!
//! Invariant: a request waits at most [`WAIT`], and at most [`WAITERS_MAX`] wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use relay_core::ids::EventId;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long a request waits for the dispatcher.
pub const WAIT: Duration = Duration::from_secs(2);
/// Ids that are waited for at once.
pub const WAITERS_MAX: usize = 1_000;
/// Pause between two looks.
const TICK: Duration = Duration::from_millis(25);
/// Pause before the first look of a tick that nobody waited before: the dispatcher usually needs a few
/// milliseconds.
const FIRST_TICK: Duration = Duration::from_millis(5);
/// How old a time-stamped id may be to be waited for.
const RECENT: TimeDelta = TimeDelta::minutes(5);

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waited {
    /// It is there.
    Stored,
    /// It isn't.
    TimedOut,
    /// Postgres could not be asked.
    Unavailable,
    /// Too many wait already.
    Crowded,
}

/// Whether an id may belong to an event that was accepted and not yet stored.
pub fn may_be_on_its_way(id: EventId, now: DateTime<Utc>) -> bool {
    match id.0.get_version_num() {
        7 => (now - id.time()).abs() <= RECENT,
        // Made of the day and the key: its time says nothing but the day.
        8 => (now - id.time()).abs() <= TimeDelta::days(2),
        _ => false,
    }
}

/// The requests that wait. Cheap to clone.
#[derive(Clone, Default)]
pub struct Waiters {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Notify,
    last_look_failed: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    by_id: HashMap<EventId, Vec<oneshot::Sender<()>>>,
    requests: usize,
}

impl Waiting {
    /// Forgets requests that have gone away.
    fn sweep(&mut self) {
        self.by_id.retain(|_, senders| {
            senders.retain(|sender| !sender.is_closed());
            !senders.is_empty()
        });
        self.requests = self.by_id.values().map(Vec::len).sum();
    }
}

impl Waiters {
    /// Waits until the event is stored, at most until `deadline`.
    pub async fn wait(&self, id: EventId, deadline: Instant) -> Waited {
        let stored = {
            let mut waiting = self.lock();
            if waiting.requests >= WAITERS_MAX {
                return Waited::Crowded;
            }
            let (sender, stored) = oneshot::channel();
            waiting.by_id.entry(id).or_default().push(sender);
            waiting.requests += 1;
            stored
        };
        self.shared.wake.notify_one();
        match timeout_at(deadline, stored).await {
            Ok(Ok(())) => Waited::Stored,
            _ if self.shared.last_look_failed.load(Ordering::Relaxed) => Waited::Unavailable,
            _ => Waited::TimedOut,
        }
    }

    /// Looks for all that is waited for, tick by tick, until `stop` fires. `look` tells which of the ids are
    /// stored.
    pub async fn run<F, E>(self, look: impl Fn(Vec<EventId>) -> F, stop: CancellationToken)
    where
        F: Future<Output = Result<Vec<EventId>, E>>,
    {
        while stop.run_until_cancelled(self.shared.wake.notified()).await.is_some() {
            let mut pause = FIRST_TICK;
            loop {
                if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                    return;
                }
                pause = TICK;
                let ids: Vec<EventId> = {
                    let mut waiting = self.lock();
                    waiting.sweep();
                    waiting.by_id.keys().copied().collect()
                };
                if ids.is_empty() {
                    break;
                }
                let found = look(ids).await;
                self.shared.last_look_failed.store(found.is_err(), Ordering::Relaxed);
                let mut waiting = self.lock();
                for id in found.unwrap_or_default() {
                    for sender in waiting.by_id.remove(&id).unwrap_or_default() {
                        let _ = sender.send(());
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use chrono::TimeZone;
    use relay_core::ids::{IdempotencyKey, TenantId};
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> EventId {
        EventId(Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn those_who_wait_share_a_look_and_learn_what_is_there() {
        let waiters = Waiters::default();
        let stop = CancellationToken::new();
        let looks = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&looks);
        let running = tokio::spawn(waiters.clone().run(
            move |ids| {
                let nth = count.fetch_add(1, Ordering::SeqCst);
                async move {
                    match nth {
                        0 => Err(()),
                        1 => Ok(vec![]),
                        _ => Ok(ids.into_iter().filter(|i| *i == id(1)).collect()),
                    }
                }
            },
            stop.clone(),
        ));
        let far = Instant::now() + WAIT * 10;
        let near = Instant::now() + WAIT / 4;
        let waits = (0..10).map(|_| waiters.wait(id(1), far));
        let (there, missing) =
            futures_util::future::join(futures_util::future::join_all(waits), waiters.wait(id(2), near)).await;
        assert_eq!(there, [Waited::Stored; 10]);
        assert_eq!(missing, Waited::TimedOut);
        assert!(looks.load(Ordering::SeqCst) >= 3);
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_ledger_that_is_away_is_told_from_an_event_that_is_not_there() {
        let waiters = Waiters::default();
        let stop = CancellationToken::new();
        let running = tokio::spawn(waiters.clone().run(|_| async { Err::<Vec<EventId>, ()>(()) }, stop.clone()));
        assert_eq!(waiters.wait(id(1), Instant::now() + WAIT / 10).await, Waited::Unavailable);
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn the_crowd_is_bounded() {
        let waiters = Waiters::default();
        let far = Instant::now() + WAIT * 10;
        let mut waits: Vec<_> = (0..WAITERS_MAX).map(|n| Box::pin(waiters.wait(id(n as u128), far))).collect();
        for wait in &mut waits {
            assert!(futures_util::poll!(wait).is_pending());
        }
        assert_eq!(waiters.wait(id(0), far).await, Waited::Crowded);
        drop(waits);
        waiters.lock().sweep();
        assert_eq!(waiters.lock().requests, 0);
    }

    #[test]
    fn only_fresh_ids_are_waited_for() {
        let now = Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        let fresh = EventId::fresh(now - TimeDelta::minutes(4), [0; 10]);
        let old = EventId::fresh(now - TimeDelta::minutes(6), [0; 10]);
        let keyed = EventId::keyed(&TenantId::default_tenant(), &IdempotencyKey::parse("k").unwrap(), now);
        assert!(may_be_on_its_way(fresh, now));
        assert!(!may_be_on_its_way(old, now));
        assert!(may_be_on_its_way(keyed, now));
        assert!(!may_be_on_its_way(keyed, now + TimeDelta::days(3)));
        assert!(!may_be_on_its_way(EventId(Uuid::from_u128(0x4000_8000_0000_0000_0000)), now));
    }
}
