//! Deliverer pods: jobs in, queues, the check, the request, the recorder, the acks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_core::delivery::{Closed, DeadReason, DeliveryResult, Evidence, HandBack, Outcome};
use relay_core::ids::{AttemptId, uuid_v7};
use relay_core::job::Job;
use relay_core::lanes::{Completion, LaneLimits, Lanes};
use relay_core::protocol::{FoldedResult, Sighting, fold_results, is_stale, is_suspect};
use relay_core::retry::Schedule;

use super::config::Mutation;
use super::receivers::Answer;
use super::store::{NoAnswer, Recorded};
use super::world::{Key, Owner, Send, World, short_key};

/// Jobs that a pod takes.
const ROOM: usize = 40;
/// Between two words that a message is still worked on.
const PROGRESS_MS: u64 = 4_000;
/// A 2xx that finds nothing is run again so often.
const RERUNS: u32 = 3;
/// A failed batch is written again after this time, then twice as long …
const FLUSH_FIRST_MS: u64 = 100;
/// … and so on until this.
const FLUSH_AGAIN_MS: u64 = 2_000;

/// A job in a pod.
#[derive(Clone, Debug)]
pub struct Work {
    job: Job,
    delivered: u64,
    marked: bool,
    got_at: DateTime<Utc>,
    /// Where copies are worked on apart: the claim that it came with, else 0.
    apart: i32,
}

impl Work {
    fn key(&self) -> Key {
        (self.job.event, self.job.endpoint)
    }

    fn slot(&self) -> Slot {
        (self.key(), self.apart)
    }
}

/// What a pod works on once.
pub type Slot = (Key, i32);

/// A delivery that is worked on, and the messages that ask for it.
struct Working {
    bundle: u64,
    /// Copies that came meanwhile, with their claims.
    copies: Vec<(u64, i32)>,
}

struct Bundle {
    sequence: usize,
    left: usize,
    unknown: bool,
}

/// How a job left the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// On record, or somebody else's; the claim that it had in the end.
    Done(i32),
    Unknown,
}

/// See the module.
pub struct Pod {
    lanes: Lanes<Work>,
    working: BTreeMap<Slot, Working>,
    bundles: BTreeMap<u64, Bundle>,
    next_bundle: u64,
    results: Vec<(DeliveryResult, i32)>,
    recording: bool,
    /// Sent, and not on record yet.
    pub sent: BTreeMap<Slot, AttemptId>,
    /// Of those, the ones that wait for their answers.
    in_flight: BTreeMap<Slot, (AttemptId, Work)>,
    pub disrupted_at: Option<u64>,
    stopping: bool,
    /// Its process runs.
    pub up: bool,
}

impl Pod {
    pub fn new(disrupted_at: Option<u64>) -> Self {
        let limits =
            LaneLimits { global_in_flight: 16, endpoint_initial: 2, endpoint_max: 8, queue_min: 6, queue_seconds: 2.0 };
        Self {
            lanes: Lanes::new(limits),
            working: BTreeMap::new(),
            bundles: BTreeMap::new(),
            next_bundle: 0,
            results: Vec::new(),
            recording: false,
            sent: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            disrupted_at,
            stopping: false,
            up: false,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.working.is_empty() && self.results.is_empty() && !self.recording
    }
}

impl World {
    fn pod(&mut self, owner: Owner) -> &mut Pod {
        let first = self.setup.dispatchers;
        &mut self.pods[owner.process - first]
    }

    pub fn start_pod(&mut self, p: usize) {
        let owner = self.owner(self.setup.dispatchers + p);
        self.pods[p] = Pod::new(Some(self.now));
        self.pods[p].up = true;
        self.take_jobs(owner);
        self.tell_pods_progress(owner);
    }

    fn tell_pods_progress(&mut self, owner: Owner) {
        self.does(owner, PROGRESS_MS, move |w| {
            if w.nats_is_up() {
                let now = w.now;
                let sequences: Vec<usize> = w.pod(owner).bundles.values().map(|b| b.sequence).collect();
                sequences.into_iter().for_each(|s| w.jobs.progress(s, now));
            }
            w.tell_pods_progress(owner);
        });
    }

    fn take_jobs(&mut self, owner: Owner) {
        let now = self.now;
        let pod = self.pod(owner);
        if pod.stopping {
            return;
        }
        let has_room = pod.working.len() < ROOM;
        let pulled = if has_room && self.nats_is_up() { self.jobs.pull(3, now) } else { Vec::new() };
        let found = !pulled.is_empty();
        for message in pulled {
            // What comes from the wire takes its time.
            self.does(owner, 1, move |w| {
                let got_at = w.time();
                w.note(|| {
                    format!("pod {} gets JOBS {}, delivery {}", owner.process, message.sequence, message.delivered)
                });
                let ack_early = w.mutated(Mutation::AckJobsBeforeRecord);
                let pod = w.pod(owner);
                let number = pod.next_bundle;
                pod.next_bundle += 1;
                pod.bundles
                    .insert(number, Bundle { sequence: message.sequence, left: message.body.len(), unknown: false });
                if ack_early {
                    w.after(0, move |w| w.ack_jobs(message.sequence));
                }
                for job in message.body {
                    let apart = if w.setup.copies_apart { job.claim } else { 0 };
                    let (delivered, marked) = (message.delivered, message.marked);
                    w.admit(owner, Work { job, delivered, marked, got_at, apart }, number);
                }
                w.pump(owner);
            });
        }
        let wait = if found { 3 } else { self.dice.range(20, 120) };
        self.does(owner, wait, move |w| w.take_jobs(owner));
    }

    fn admit(&mut self, owner: Owner, work: Work, bundle: u64) {
        let (key, now) = (work.key(), self.now);
        let pod = self.pod(owner);
        if let Some(working) = pod.working.get_mut(&work.slot()) {
            working.copies.push((bundle, work.job.claim));
            return self.note(|| format!("{} is worked on by pod {} already", short_key(key), owner.process));
        }
        pod.working.insert(work.slot(), Working { bundle, copies: Vec::new() });
        if pod.stopping {
            return self.hand_back(owner, &work, HandBack::Shutdown);
        }
        let tenant = work.job.tenant.clone();
        if let Err(work) = pod.lanes.push(&tenant, work.job.endpoint, work, now) {
            self.bounced(key.1);
            self.hand_back(owner, &work, HandBack::Full);
        }
    }

    /// Starts what may be sent.
    fn pump(&mut self, owner: Owner) {
        let now = self.now;
        while let Some(work) = self.pod(owner).lanes.next(now) {
            let endpoint = work.job.endpoint;
            let row = self.endpoints.iter().find(|e| e.id == endpoint);
            let (active, paused) = row.map_or((true, false), |e| (e.active, e.paused));
            if active && !paused {
                self.attempt(owner, work);
                continue;
            }
            self.pod(owner).lanes.done(endpoint, Completion::NotSent, 0, now);
            if paused {
                self.hand_back(owner, &work, HandBack::Paused);
            } else {
                let outcome = Outcome::Dead { reason: DeadReason::EndpointInactive, deactivate: false };
                self.report(owner, &work, outcome, None);
            }
        }
    }

    fn hand_back(&mut self, owner: Owner, work: &Work, reason: HandBack) {
        self.note(|| format!("{} handed back by pod {}: {reason:?}", short_key(work.key()), owner.process));
        self.report(owner, work, Outcome::HandedBack { delay: Duration::ZERO, reason }, None);
    }

    /// The check, where it is needed, and the request.
    fn attempt(&mut self, owner: Owner, mut work: Work) {
        let (time, time_ms) = (self.time(), self.now);
        let from = if self.mutated(Mutation::AgeFromMessage) { work.got_at } else { work.job.claimed_at };
        let sighting = Sighting {
            age: (time - from).to_std().unwrap_or_default(),
            delivered: work.delivered,
            marked: work.marked,
            since_disruption: self.pod(owner).disrupted_at.map(|at| Duration::from_millis(time_ms - at)),
        };
        if !is_suspect(&sighting) || self.mutated(Mutation::NoSuspectCheck) {
            return self.send(owner, work);
        }
        let (key, job) = (work.key(), work.job.clone());
        self.take(owner, &job, move |w, answer| {
            let settled = match answer {
                Ok(Some((claim, claimed_at))) => {
                    w.note(|| {
                        format!("{} checked by pod {}: goes on with claim {claim}", short_key(key), owner.process)
                    });
                    work.job.claim = claim;
                    work.job.claimed_at = claimed_at;
                    // The answer may have come late: a claim that is old by now is checked once more.
                    let age = (w.time() - claimed_at).to_std().unwrap_or_default();
                    if is_stale(age) && !w.mutated(Mutation::LateCheckCounts) {
                        return w.attempt(owner, work);
                    }
                    return w.send(owner, work);
                }
                Ok(None) => Settled::Done(work.job.claim),
                Err(_) => Settled::Unknown,
            };
            w.note(|| format!("{} dropped by pod {}", short_key(key), owner.process));
            let now = w.now;
            w.pod(owner).lanes.done(key.1, Completion::NotSent, 0, now);
            w.settle(owner, work.slot(), settled);
            w.pump(owner);
        });
    }

    fn send(&mut self, owner: Owner, work: Work) {
        let (key, time) = (work.key(), self.time());
        if self.pod(owner).stopping {
            let now = self.now;
            self.pod(owner).lanes.done(key.1, Completion::NotSent, 0, now);
            return self.hand_back(owner, &work, HandBack::Shutdown);
        }
        let id = AttemptId(uuid_v7(time, self.dice.bytes10()));
        let slot = work.slot();
        self.pod(owner).sent.insert(slot, id);
        self.pod(owner).in_flight.insert(slot, (id, work.clone()));
        self.sends.insert(id, Send { key, orphaned: false });
        self.check_fence(key, &work.job);
        let (answer, latency) = self.receive(key);
        self.note(|| {
            let job = &work.job;
            format!(
                "{} SENT by pod {}, claim {}, attempt {}",
                short_key(key),
                owner.process,
                job.claim,
                job.attempt_number()
            )
        });
        self.does(owner, latency, move |w| {
            // Unless it was cut short by shutdown.
            if w.pod(owner).in_flight.get(&slot).is_some_and(|(sent, _)| *sent == id) {
                w.pod(owner).in_flight.remove(&slot);
                w.answered(owner, &work, id, answer);
            }
        });
    }

    /// A claim is sent once. Where nothing goes wrong the row is the job's while it is sent.
    fn check_fence(&mut self, key: Key, job: &Job) {
        let seen = self.seen.entry(key).or_default();
        let again = seen.sent_claims.contains(&job.claim);
        seen.sent_claims.push(job.claim);
        if again {
            self.fail(format!("fence: {} is sent twice under claim {}", short_key(key), job.claim));
        }
        if self.setup.is_calm() {
            let time = self.time();
            let row = self.store.row(key);
            let owned = row.is_some_and(|r| {
                r.lease_runs(time) && (r.state().claim, r.state().attempts) == (job.claim, job.attempts)
            });
            if !owned {
                self.fail(format!("fence: {} is sent, and the row is not the job's", short_key(key)));
            }
        }
    }

    fn answered(&mut self, owner: Owner, work: &Work, id: AttemptId, answer: Answer) {
        let schedule = Schedule::Explicit { delays: vec![Duration::from_secs(1), Duration::from_secs(4)] };
        let in_life = u32::try_from(work.job.attempt_number() - work.job.base).unwrap_or(1);
        let roll = self.dice.unit();
        let retry = || match schedule.delay_after(in_life, roll) {
            Some(delay) => Outcome::Retry { delay },
            None => Outcome::Dead { reason: DeadReason::Exhausted, deactivate: false },
        };
        let (outcome, completion) = match answer {
            Answer::Success => (Outcome::Delivered, Completion::Success),
            Answer::Failure => (retry(), Completion::Failed),
            Answer::TimedOut => (retry(), Completion::TimedOut),
            Answer::Refusal => (Outcome::Dead { reason: DeadReason::Permanent, deactivate: false }, Completion::Failed),
        };
        let now = self.now;
        self.pod(owner).lanes.done(work.job.endpoint, completion, 10, now);
        self.report(owner, work, outcome, Some(id));
        self.pump(owner);
    }

    fn report(&mut self, owner: Owner, work: &Work, outcome: Outcome, attempt: Option<AttemptId>) {
        let time = self.time();
        let evidence = attempt.map(|id| Evidence {
            id,
            attempted_at: time,
            http_status: None,
            error_class: None,
            error: None,
            total_us: 0,
            connect_us: None,
            first_byte_us: None,
            request_headers: Default::default(),
            response_headers: Default::default(),
            excerpt: Default::default(),
        });
        let job = &work.job;
        let result = DeliveryResult {
            event: job.event,
            endpoint: job.endpoint,
            tenant: job.tenant.clone(),
            claim: job.claim,
            attempts: job.attempts,
            outcome,
            evidence,
        };
        self.pod(owner).results.push((result, work.apart));
        if !self.pod(owner).recording {
            self.pod(owner).recording = true;
            let linger = self.dice.range(0, 20);
            self.does(owner, linger, move |w| w.flush(owner));
        }
    }

    fn flush(&mut self, owner: Owner) {
        let results = std::mem::take(&mut self.pod(owner).results);
        if results.is_empty() {
            self.pod(owner).recording = false;
            return;
        }
        let settled: Vec<(Slot, i32)> =
            results.iter().map(|(r, apart)| (((r.event, r.endpoint), *apart), r.claim)).collect();
        let results: Vec<DeliveryResult> = results.into_iter().map(|(r, _)| r).collect();
        let batch = if self.mutated(Mutation::NoFold) {
            results.into_iter().map(|decisive| FoldedResult { decisive, others: Vec::new() }).collect()
        } else {
            fold_results(results)
        };
        self.write(owner, batch, settled, 0, FLUSH_FIRST_MS);
    }

    fn write(&mut self, owner: Owner, batch: Vec<FoldedResult>, settled: Vec<(Slot, i32)>, reruns: u32, wait: u64) {
        self.record(owner, batch, move |w, batch, answer| match answer {
            Err(why) => {
                // Two deadlines in a row: a black hole in front of the database, which counts as a kill.
                if why == NoAnswer::Unknown && wait > FLUSH_FIRST_MS {
                    w.book_owner(owner);
                }
                w.does(owner, wait, move |w| w.write(owner, batch, settled, reruns, (wait * 2).min(FLUSH_AGAIN_MS)));
            }
            Ok(answers) => {
                let missed: Vec<FoldedResult> =
                    batch.into_iter().zip(answers).filter(|(_, a)| *a == Recorded::NotFound).map(|(f, _)| f).collect();
                if !missed.is_empty() && reruns < RERUNS && !w.mutated(Mutation::NoRerun) {
                    return w.write(owner, missed, settled, reruns + 1, wait);
                }
                for folded in missed {
                    w.check_counted(&folded.decisive);
                }
                for (slot, claim) in settled {
                    w.pod(owner).sent.remove(&slot);
                    w.settle(owner, slot, Settled::Done(claim));
                }
                w.flush(owner);
            }
        });
    }

    /// A 2xx that is given up must have nothing to count for.
    fn check_counted(&mut self, result: &DeliveryResult) {
        let key = (result.event, result.endpoint);
        let counts = self
            .store
            .row(key)
            .is_some_and(|row| row.closed() != Some(Closed::Delivered) && result.attempts + 1 > row.state().base);
        if counts {
            self.fail(format!("a 2xx of {} is on record and counts for nothing", short_key(key)));
        }
    }

    /// A delivery leaves the pod; messages that are through are acked. A copy with a newer claim is a job of its own
    /// that nobody did: it comes again.
    fn settle(&mut self, owner: Owner, slot: Slot, how: Settled) {
        let ack_newer = self.mutated(Mutation::AckNewerCopy);
        let pod = self.pod(owner);
        let Some(working) = pod.working.remove(&slot) else { return };
        let is_undone = |claim: i32| match how {
            Settled::Done(done) => claim > done && !ack_newer,
            Settled::Unknown => true,
        };
        let mut acks = BTreeSet::new();
        let first = (working.bundle, how == Settled::Unknown);
        let copies = working.copies.into_iter().map(|(bundle, claim)| (bundle, is_undone(claim)));
        for (number, undone) in std::iter::once(first).chain(copies) {
            let Some(bundle) = pod.bundles.get_mut(&number) else { continue };
            bundle.left -= 1;
            bundle.unknown |= undone;
            if bundle.left == 0 {
                if !bundle.unknown {
                    acks.insert(bundle.sequence);
                }
                pod.bundles.remove(&number);
            }
        }
        for sequence in acks {
            self.after(1, move |w| w.ack_jobs(sequence));
        }
    }

    /// Shutdown begins: nothing new is sent, what waits is handed back.
    pub fn stop_pod(&mut self, p: usize) {
        let owner = self.owner(self.setup.dispatchers + p);
        self.does(owner, 0, move |w| {
            w.pod(owner).stopping = true;
            for work in w.pod(owner).lanes.drain() {
                w.hand_back(owner, &work, HandBack::Shutdown);
            }
        });
    }

    /// Shutdown ends: what is still on its way is put on record as cut short, and handed back.
    pub fn abort_pod(&mut self, owner: Owner) {
        self.book_owner(owner);
        for (_, (id, work)) in std::mem::take(&mut self.pod(owner).in_flight) {
            self.note(|| format!("{} cut short by pod {}", short_key(work.key()), owner.process));
            let outcome = Outcome::HandedBack { delay: Duration::from_secs(1), reason: HandBack::Shutdown };
            self.report(owner, &work, outcome, Some(id));
        }
    }
}
