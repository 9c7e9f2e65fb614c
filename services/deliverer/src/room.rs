//! How much the pod takes in: jobs per lane, and bytes over all lanes. Room is taken before a message is pulled
//! and given back when its jobs are settled. The lanes' shares are their weights: a mass of retries can't take
//! the room of first attempts.

use tokio::sync::Semaphore;

use relay_core::job;
use relay_core::subject::Lane;

/// Jobs that one message may bring.
const MESSAGE_JOBS: u32 = job::JOBS_MAX as u32;
/// KiB that one message may bring: a full bundle, or a single job with the largest payload that travels in it.
const MESSAGE_KIBIBYTES: u32 = ((job::BYTES_MAX + job::PAYLOAD_BYTES_MAX) / 1024) as u32;

/// The share of a lane, in eighths.
fn weight(lane: Lane) -> usize {
    match lane {
        Lane::Fresh => 4,
        Lane::Retry => 2,
        Lane::Replay | Lane::Slow => 1,
    }
}

/// See the module.
pub struct Room {
    jobs: [Semaphore; Lane::ALL.len()],
    bytes: Semaphore,
    jobs_max: usize,
}

impl Room {
    /// Room for `jobs` jobs and `bytes` bytes in all.
    pub fn new(jobs: usize, bytes: usize) -> Self {
        let of = |lane| Semaphore::new((jobs * weight(lane) / 8).max(MESSAGE_JOBS as usize));
        let jobs_max = Lane::ALL.iter().map(|lane| of(*lane).available_permits()).sum();
        Self {
            jobs: Lane::ALL.map(of),
            bytes: Semaphore::new((bytes / 1024).max(MESSAGE_KIBIBYTES as usize)),
            jobs_max,
        }
    }

    /// Jobs in the pod at most: what channels between its parts must hold.
    pub fn jobs_max(&self) -> usize {
        self.jobs_max
    }

    /// Waits for the room of one message, whatever it brings.
    pub async fn take_message(&self, lane: Lane) {
        let jobs = self.jobs[lane as usize].acquire_many(MESSAGE_JOBS).await.expect("the semaphores are never closed");
        let bytes = self.bytes.acquire_many(MESSAGE_KIBIBYTES).await.expect("the semaphores are never closed");
        jobs.forget();
        bytes.forget();
    }

    /// The message brought this much: the rest is given back. Returns the size to give back later.
    pub fn brought(&self, lane: Lane, jobs: usize, bytes: usize) -> u32 {
        let kibibytes = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(MESSAGE_KIBIBYTES);
        match (MESSAGE_JOBS as usize).checked_sub(jobs) {
            Some(unused) => self.give_jobs(lane, unused),
            // A message of more jobs than ours have: its room is given back by each of them all the same.
            None => drop(self.jobs[lane as usize].forget_permits(jobs - MESSAGE_JOBS as usize)),
        }
        self.give_bytes(MESSAGE_KIBIBYTES - kibibytes);
        kibibytes
    }

    /// Jobs left the pod.
    pub fn give_jobs(&self, lane: Lane, jobs: usize) {
        self.jobs[lane as usize].add_permits(jobs);
    }

    /// A message's bytes are no longer held.
    pub fn give_bytes(&self, kibibytes: u32) {
        self.bytes.add_permits(kibibytes as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_comes_back() {
        let room = Room::new(1024, 1024 * 1024);
        let (jobs, bytes) = (room.jobs[0].available_permits(), room.bytes.available_permits());
        room.take_message(Lane::Fresh).await;
        let kibibytes = room.brought(Lane::Fresh, 3, 5000);
        assert_eq!((room.jobs[0].available_permits(), kibibytes), (jobs - 3, 5));
        room.give_jobs(Lane::Fresh, 3);
        room.give_bytes(kibibytes);
        assert_eq!((room.jobs[0].available_permits(), room.bytes.available_permits()), (jobs, bytes));
    }

    #[test]
    fn every_lane_has_room_for_a_message() {
        let room = Room::new(1, 1);
        assert!(room.jobs.iter().all(|lane| lane.available_permits() >= MESSAGE_JOBS as usize));
        assert_eq!(room.jobs_max(), 4 * MESSAGE_JOBS as usize);
    }
}
