//! How much room there is: whether the lanes of JOBS are deep, which endpoints' queues are full in the deliverers, and
//! which endpoints are slow. Only the dispatcher can keep a flood out of a FIFO stream, so it stores without a job what would
//! only wait there; the scheduler claims it when there is room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use relay_bus::Bus;
use relay_core::ids::EndpointId;
use relay_core::job::Job;
use relay_core::subject::Lane;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Messages (bundles of up to 64 jobs) that may wait in a lane.
const LANE_DEPTH_MAX: u64 = 400;
/// How long a pod's word that an endpoint is full counts.
const FULL_FOR: Duration = Duration::from_secs(1);
/// For so long first attempts of an endpoint with a rate limit stay in the table after such a word: what waits there
/// goes first, the oldest in front.
const BEHIND_FOR: Duration = Duration::from_secs(3);
/// How long a pod's word that an endpoint is slow counts.
const SLOW_FOR: Duration = Duration::from_secs(60);
/// How often the depth is looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// What is known of the room ahead.
#[derive(Default)]
pub struct Room {
    depth: [AtomicU64; 4],
    full: Mutex<HashMap<EndpointId, Full>>,
    slow: RwLock<HashMap<EndpointId, Instant>>,
    due: Notify,
}

/// A deliverer's word that an endpoint's queue is full.
#[derive(Clone, Copy)]
struct Full {
    said: Instant,
    /// No deliverer has said since that there is room.
    counts: bool,
}

impl Room {
    /// Whether a lane has so much waiting that nothing should be added.
    pub fn is_deep(&self, lane: Lane) -> bool {
        self.depth[lane as usize].load(Ordering::Relaxed) > LANE_DEPTH_MAX
    }

    /// When a deliverer last said that the endpoint's queue is full, if that was within the last second and none has said
    /// since that there is room.
    pub fn full_since(&self, endpoint: EndpointId) -> Option<Instant> {
        let last = self.last_full(endpoint)?;
        (last.counts && last.said.elapsed() < FULL_FOR).then_some(last.said)
    }

    /// Whether first attempts of the endpoint are to be kept in the table.
    pub fn holds_fresh(&self, endpoint: EndpointId, is_limited: bool) -> bool {
        if is_limited {
            self.last_full(endpoint).is_some_and(|last| last.said.elapsed() < BEHIND_FOR)
        } else {
            self.full_since(endpoint).is_some()
        }
    }

    fn last_full(&self, endpoint: EndpointId) -> Option<Full> {
        self.full.lock().expect("no code panics while it holds this lock").get(&endpoint).copied()
    }

    /// Waits for a hint that work is due; one that came since the last wait counts.
    pub async fn heard_due(&self) {
        self.due.notified().await;
    }

    /// The lane for work of this endpoint that belongs into `lane`: the slow one where a deliverer said within the last
    /// minute that its requests take long. So what waits for it takes no room of other lanes.
    pub fn lane(&self, endpoint: EndpointId, lane: Lane) -> Lane {
        lane_of(&self.slow_endpoints(), endpoint, lane)
    }

    /// Jobs by the lane that each goes into.
    pub fn by_lane(&self, jobs: impl IntoIterator<Item = (Lane, Job)>) -> impl Iterator<Item = (Lane, Vec<Job>)> {
        let slow = self.slow_endpoints();
        let mut lanes = Lane::ALL.map(|lane| (lane, Vec::new()));
        for (lane, job) in jobs {
            lanes[lane_of(&slow, job.endpoint, lane) as usize].1.push(job);
        }
        lanes.into_iter().filter(|(_, jobs)| !jobs.is_empty())
    }

    fn slow_endpoints(&self) -> RwLockReadGuard<'_, HashMap<EndpointId, Instant>> {
        self.slow.read().expect("no code panics while it holds this lock")
    }

    fn mark_slow(&self, endpoint: EndpointId) {
        let mut slow = self.slow.write().expect("no code panics while it holds this lock");
        slow.retain(|_, at| at.elapsed() < SLOW_FOR);
        if slow.insert(endpoint, Instant::now()).is_none() {
            tracing::info!(%endpoint, "its requests take long: what comes for it goes into the slow lane");
        }
    }

    fn mark_full(&self, endpoint: EndpointId) {
        let mut full = self.full.lock().expect("no code panics while it holds this lock");
        full.retain(|_, full| full.said.elapsed() < BEHIND_FOR);
        full.insert(endpoint, Full { said: Instant::now(), counts: true });
    }

    /// A hint that work is due: where it names an endpoint, there is room for it.
    fn hear_due(&self, hint: &Bytes) {
        if let Some(endpoint) = endpoint_in(hint)
            && let Some(full) = self.full.lock().expect("no code panics while it holds this lock").get_mut(&endpoint)
        {
            full.counts = false;
        }
        self.due.notify_one();
    }
}

fn lane_of(slow: &HashMap<EndpointId, Instant>, endpoint: EndpointId, lane: Lane) -> Lane {
    let is_slow = !slow.is_empty() && slow.get(&endpoint).is_some_and(|at| at.elapsed() < SLOW_FOR);
    if is_slow { Lane::Slow } else { lane }
}

/// Keeps `room` up to date until `stop` fires.
pub async fn watch(room: Arc<Room>, bus: Bus, stop: CancellationToken) {
    // Side by side: a stream that doesn't answer keeps nobody from hearing.
    let watching = join(hear(&room, &bus), measure(&room, &bus));
    stop.run_until_cancelled(watching).await;
}

/// Takes what the deliverers say.
async fn hear(room: &Room, bus: &Bus) {
    let mut full = bus.subscribe_hints(relay_core::subject::HINT_FULL);
    let mut slow = bus.subscribe_hints(relay_core::subject::HINT_SLOW);
    let mut due = bus.subscribe_hints(relay_core::subject::HINT_DUE);
    loop {
        tokio::select! {
            // What is said of one endpoint is heard nearly in its order.
            biased;
            Some(hint) = full.recv() => endpoint_in(&hint).into_iter().for_each(|endpoint| room.mark_full(endpoint)),
            Some(hint) = slow.recv() => endpoint_in(&hint).into_iter().for_each(|endpoint| room.mark_slow(endpoint)),
            Some(hint) = due.recv() => room.hear_due(&hint),
            else => return,
        }
    }
}

fn endpoint_in(hint: &Bytes) -> Option<EndpointId> {
    std::str::from_utf8(hint).ok()?.parse().ok()
}

/// Looks how deep the lanes are.
async fn measure(room: &Room, bus: &Bus) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for (lane, lag) in join_all(Lane::ALL.map(|lane| async move { (lane, bus.jobs_lag(lane).await) })).await {
            if let Ok(lag) = lag {
                room.depth[lane as usize].store(lag.pending, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn endpoint(n: u128) -> EndpointId {
        EndpointId(Uuid::from_u128(n))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_said_of_an_endpoint_counts_for_a_while() {
        let room = Room::default();
        assert_eq!(room.lane(endpoint(1), Lane::Retry), Lane::Retry);
        room.mark_slow(endpoint(1));
        room.mark_full(endpoint(1));
        assert_eq!(room.lane(endpoint(1), Lane::Retry), Lane::Slow);
        assert_eq!(room.lane(endpoint(2), Lane::Fresh), Lane::Fresh);
        assert_eq!(room.full_since(endpoint(1)), Some(Instant::now()));
        assert_eq!(room.full_since(endpoint(2)), None);
        tokio::time::advance(FULL_FOR).await;
        assert_eq!(room.full_since(endpoint(1)), None);
        tokio::time::advance(SLOW_FOR).await;
        assert_eq!(room.lane(endpoint(1), Lane::Retry), Lane::Retry);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_endpoint_is_so_until_a_deliverer_says_that_there_is_room() {
        let room = Room::default();
        let (free, limited) = (endpoint(1), endpoint(2));
        for (endpoint, is_limited) in [(free, false), (limited, true)] {
            room.mark_full(endpoint);
            room.hear_due(&Bytes::new());
            assert!(room.full_since(endpoint).is_some() && room.holds_fresh(endpoint, is_limited));
            room.hear_due(&Bytes::from(endpoint.to_string()));
            assert_eq!(room.full_since(endpoint), None);
        }
        assert!(!room.holds_fresh(free, false));
        assert!(room.holds_fresh(limited, true), "what waits in the table goes first");
        room.mark_full(free);
        assert!(room.full_since(free).is_some(), "full again");
        tokio::time::timeout(FULL_FOR, room.heard_due()).await.expect("the scheduler wakes");
        tokio::time::advance(BEHIND_FOR).await;
        assert!(!room.holds_fresh(limited, true));
    }
}
