//! How much room there is: whether the lanes of JOBS are deep, and which endpoints' queues are full in the
//! deliverers. Only the dispatcher can keep a flood out of a FIFO stream, so it stores without a job what would
//! only wait there; the scheduler claims it when there is room.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay_bus::Bus;
use relay_core::ids::EndpointId;
use relay_core::subject::Lane;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Messages (bundles of up to 64 jobs) that may wait in a lane.
const LANE_DEPTH_MAX: u64 = 400;
/// How long a pod's word that an endpoint is full counts.
const FULL_FOR: Duration = Duration::from_secs(1);
/// How often the depth is looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// What is known of the room ahead.
#[derive(Default)]
pub struct Room {
    depth: [AtomicU64; 4],
    full: Mutex<HashMap<EndpointId, Instant>>,
}

impl Room {
    /// Whether a lane has so much waiting that nothing should be added.
    pub fn is_deep(&self, lane: Lane) -> bool {
        self.depth[lane as usize].load(Ordering::Relaxed) > LANE_DEPTH_MAX
    }

    /// Whether a deliverer said within the last second that the endpoint's queue is full.
    pub fn is_full(&self, endpoint: EndpointId) -> bool {
        let full = self.full.lock().expect("no code panics while it holds this lock");
        full.get(&endpoint).is_some_and(|at| at.elapsed() < FULL_FOR)
    }

    fn mark_full(&self, endpoint: EndpointId) {
        let mut full = self.full.lock().expect("no code panics while it holds this lock");
        full.retain(|_, at| at.elapsed() < FULL_FOR);
        full.insert(endpoint, Instant::now());
    }
}

/// Keeps `room` up to date until `stop` fires.
pub async fn watch(room: std::sync::Arc<Room>, bus: Bus, stop: CancellationToken) {
    let mut hints = bus.subscribe_hints(relay_core::subject::HINT_FULL);
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            hint = hints.recv() => {
                if let Some(endpoint) = hint.and_then(|b| std::str::from_utf8(&b).ok().and_then(|t| t.parse().ok())) {
                    room.mark_full(endpoint);
                }
            }
            _ = tick.tick() => {
                for lane in Lane::ALL {
                    if let Ok(lag) = bus.jobs_lag(lane).await {
                        room.depth[lane as usize].store(lag.pending, Ordering::Relaxed);
                    }
                }
            }
        }
    }
}
