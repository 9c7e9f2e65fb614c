//! The pool's bookkeeping: each job leaves once, messages are acked at the right moment.

use relay_core::delivery::DeadReason;
use relay_core::job::Job;
use uuid::Uuid;

use super::*;
use crate::fixtures::job;

fn pool(limits: LaneLimits) -> Pool<&'static str> {
    Pool::new(limits, Arc::new(Room::new(1024, 1024 * 1024)), Instant::now())
}

fn message(ack: &'static str, jobs: Vec<Job>) -> Arrived<&'static str> {
    Arrived { ack, lane: Lane::Fresh, delivered: 1, marked: false, kibibytes: 1, jobs }
}

fn reasons(effects: &Effects<&'static str>) -> Vec<HandBack> {
    let reason = |r: &Report| match &r.result.outcome {
        Outcome::HandedBack { reason, .. } => Some(*reason),
        _ => None,
    };
    effects.reports.iter().filter_map(reason).collect()
}

fn done(effects: &Effects<&'static str>) -> Vec<(Key, Settled)> {
    effects.reports.iter().map(|r| (r.key(), Settled::Done { claim: 1 })).collect()
}

#[tokio::test]
async fn a_job_is_started_and_its_message_acked_when_it_is_settled() {
    let (mut pool, mut out, now) = (pool(LaneLimits::default()), Effects::default(), Instant::now());
    pool.arrived(message("m", vec![job(1), job(2)]), now, &mut out);
    pool.pump(now, |_, _| Gate::Send, &mut out);
    assert_eq!(out.starts.len(), 2);
    for (work, as_probe) in std::mem::take(&mut out.starts) {
        assert!(!as_probe && out.acks.is_empty());
        pool.over(work.job.endpoint, Completion::Success, 10, now, &mut out);
        pool.settled([(work.key(), Settled::Done { claim: 1 })], &mut out);
    }
    assert_eq!(out.acks, ["m"]);
    assert!(pool.is_idle());
}

#[tokio::test]
async fn what_holds_one_job_holds_its_endpoints_queue() {
    let limits = LaneLimits { endpoint_initial: 1, ..LaneLimits::default() };
    let (mut pool, mut out, now) = (pool(limits), Effects::default(), Instant::now());
    let other = Job { endpoint: EndpointId(Uuid::from_u128(2)), ..job(9) };
    pool.arrived(message("m", vec![job(1), job(2), job(3), other.clone()]), now, &mut out);
    let gate = |work: &Work, _| {
        if work.job.endpoint == other.endpoint { Gate::Send } else { Gate::HandBack(HandBack::Paused) }
    };
    pool.pump(now, gate, &mut out);
    assert_eq!(reasons(&out), [HandBack::Paused; 3]);
    assert_eq!(out.starts.len(), 1);
    let settled = done(&out);
    pool.settled(settled, &mut out);
    assert!(out.acks.is_empty(), "one job of the message is still being sent");
}

#[tokio::test]
async fn a_dead_endpoint_ends_its_jobs_without_an_attempt() {
    let (mut pool, mut out, now) = (pool(LaneLimits::default()), Effects::default(), Instant::now());
    pool.arrived(message("m", vec![job(1), job(2)]), now, &mut out);
    pool.pump(now, |_, _| Gate::Dead(DeadReason::EndpointInactive), &mut out);
    assert_eq!(out.reports.len(), 2);
    for report in &out.reports {
        assert_eq!(report.result.outcome, Outcome::Dead { reason: DeadReason::EndpointInactive, deactivate: false });
        assert_eq!(report.result.evidence, None);
    }
}

#[tokio::test]
async fn a_full_queue_hands_back_and_says_so_and_says_when_there_is_room() {
    let limits = LaneLimits { endpoint_initial: 1, ..LaneLimits::default() };
    let (mut pool, mut out, now) = (pool(limits), Effects::default(), Instant::now());
    for n in 0..40u128 {
        let jobs = (0..64).map(|k| job(n * 64 + k)).collect();
        pool.arrived(message("m", jobs), now, &mut out);
    }
    let spilled = out.reports.len();
    assert!(spilled > 0 && reasons(&out).iter().all(|r| *r == HandBack::Full));
    assert_eq!(out.full.len(), 1, "announced once in a while, not per job");
    let mut sent = 0;
    let mut settled = done(&out);
    loop {
        assert!(out.roomy.is_empty());
        pool.pump(now, |_, _| Gate::Send, &mut out);
        let Some((work, _)) = out.starts.pop() else { break };
        sent += 1;
        settled.push((work.key(), Settled::Done { claim: 1 }));
        pool.over(work.job.endpoint, Completion::Success, 10, now, &mut out);
        if out.roomy.pop().is_some() {
            while let Some((work, _)) = out.starts.pop() {
                sent += 1;
                settled.push((work.key(), Settled::Done { claim: 1 }));
                pool.over(work.job.endpoint, Completion::Success, 10, now, &mut out);
            }
            break;
        }
    }
    assert_eq!(sent + spilled, 40 * 64);
    pool.settled(settled, &mut out);
    assert_eq!(out.acks.len(), 40);
}

#[tokio::test]
async fn a_copy_is_not_sent_and_its_message_waits_for_the_first() {
    let (mut pool, mut out, now) = (pool(LaneLimits::default()), Effects::default(), Instant::now());
    pool.arrived(message("first", vec![job(1)]), now, &mut out);
    pool.pump(now, |_, _| Gate::Send, &mut out);
    pool.arrived(message("copy", vec![job(1)]), now, &mut out);
    pool.pump(now, |_, _| Gate::Send, &mut out);
    assert_eq!(out.starts.len(), 1);
    pool.settled([(out.starts[0].0.key(), Settled::Done { claim: 1 })], &mut out);
    assert_eq!(out.acks, ["first", "copy"]);
}

#[tokio::test]
async fn a_stopping_pod_hands_everything_back() {
    let limits = LaneLimits { endpoint_initial: 1, ..LaneLimits::default() };
    let (mut pool, mut out, now) = (pool(limits), Effects::default(), Instant::now());
    pool.arrived(message("m", vec![job(1), job(2), job(3)]), now, &mut out);
    pool.pump(now, |_, _| Gate::Send, &mut out);
    pool.stop(&mut out);
    pool.arrived(message("late", vec![job(4)]), now, &mut out);
    pool.pump(now, |_, _| Gate::Send, &mut out);
    assert_eq!(out.starts.len(), 1, "nothing new is sent");
    assert_eq!(reasons(&out), [HandBack::Shutdown; 3]);
    assert!(out.freed, "another pod can take them at once");
}

#[tokio::test]
async fn a_limited_endpoint_waits_in_its_own_queue_for_tokens() {
    let (mut pool, mut out, now) = (pool(LaneLimits::default()), Effects::default(), Instant::now());
    let limit = RateLimit { per_second: 10.0, burst: 1 };
    let other = Job { endpoint: EndpointId(Uuid::from_u128(2)), ..job(9) };
    pool.arrived(message("m", (0..64).map(job).chain([other.clone()]).collect()), now, &mut out);
    let gate = |work: &Work, _: usize| {
        if work.job.endpoint == other.endpoint { Gate::Send } else { Gate::Paced(limit) }
    };
    pool.pump(now, gate, &mut out);
    assert_eq!(out.starts.iter().map(|(w, _)| w.job.endpoint).collect::<Vec<_>>(), [other.endpoint]);
    let ask = out.asks.pop().unwrap();
    assert_eq!((ask.wanted, out.asks.len()), (1, 0));
    // What the limit doesn't let through in two seconds is handed back, and said to be full.
    assert_eq!((reasons(&out).len(), out.full.len()), (64 - 21, 1));
    assert!(reasons(&out).iter().all(|r| *r == HandBack::Full));
    assert!(pool.wakes_at().is_some());

    pool.leased((ask, Some((Lease { count: 1, first_us: 0 }, 1))), now);
    pool.pump(now, gate, &mut out);
    assert_eq!((out.starts.len(), out.asks.len()), (2, 1));
    let ask = out.asks.pop().unwrap();
    pool.leased((ask, Some((Lease { count: 1, first_us: 100_000 }, 1))), now);
    pool.pump(now, gate, &mut out);
    let wake = pool.wakes_at().unwrap();
    assert!((100..=101).contains(&(wake - now).as_millis()), "{:?}", wake - now);
    assert_eq!(out.starts.len(), 2);
    pool.pump(wake, gate, &mut out);
    assert_eq!(out.starts.len(), 3);
    // Redis is away: the pod goes on by itself.
    let ask = out.asks.pop().unwrap();
    pool.leased((ask, None), now + Duration::from_secs(2));
    pool.pump(now + Duration::from_secs(2), gate, &mut out);
    assert_eq!(out.starts.len(), 4);

    // A long wait is spent in the table.
    let (ask, handed_back) = (out.asks.pop().unwrap(), out.reports.len());
    pool.leased((ask, Some((Lease { count: 0, first_us: 9_000_000 }, 1))), now + Duration::from_secs(3));
    pool.pump(now + Duration::from_secs(3), gate, &mut out);
    let waiting = &out.reports[handed_back..];
    let delays: Vec<_> = waiting.iter().map(|r| r.result.outcome.clone()).collect();
    let waits = |ms| Outcome::HandedBack { delay: Duration::from_millis(ms), reason: HandBack::Waiting };
    assert_eq!(delays[..3], [waits(9000), waits(9100), waits(9200)]);
    assert_eq!(pool.lanes.queued(), 0);
}

#[tokio::test]
async fn what_a_recovered_endpoint_may_not_have_yet_waits_in_its_queue() {
    let (mut pool, mut out, now) = (pool(LaneLimits::default()), Effects::default(), Instant::now());
    pool.arrived(message("m", vec![job(1), job(2), job(3)]), now, &mut out);
    let ramp = |_: &Work, n: usize| if n > 1 { Gate::AfterOne } else { Gate::Send };
    pool.pump(now, ramp, &mut out);
    pool.pump(now, ramp, &mut out);
    assert_eq!((out.starts.len(), out.reports.len()), (1, 0));
    pool.over(job(1).endpoint, Completion::Success, 10, now, &mut out);
    pool.pump(now, ramp, &mut out);
    assert_eq!((out.starts.len(), out.reports.len()), (2, 0));
}

#[tokio::test]
async fn a_slow_endpoint_is_announced_once_in_a_while() {
    let (mut pool, mut out, mut now) = (pool(LaneLimits::default()), Effects::default(), Instant::now());
    let mut said = Vec::new();
    for n in 0..12 {
        pool.arrived(message("m", vec![job(n)]), now, &mut out);
        pool.pump(now, |_, _| Gate::Send, &mut out);
        now += Duration::from_secs(3);
        pool.over(job(n).endpoint, Completion::Success, if n < 8 { 6000 } else { 40 }, now, &mut out);
        said.push(out.slow.len());
    }
    assert_eq!(said, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
}

#[tokio::test]
async fn replays_go_behind_first_attempts() {
    let limits = LaneLimits { endpoint_initial: 1, ..LaneLimits::default() };
    let (mut pool, mut out, now) = (pool(limits), Effects::default(), Instant::now());
    pool.arrived(Arrived { lane: Lane::Replay, ..message("replays", vec![job(1), job(2)]) }, now, &mut out);
    pool.arrived(message("fresh", vec![job(3)]), now, &mut out);
    pool.pump(now, |_, _| Gate::Send, &mut out);
    assert_eq!(out.starts[0].0.job.event, job(3).event);
}
