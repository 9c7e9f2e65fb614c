//! Tests of the queues: examples, and a random history against the invariants.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn endpoint(n: u128) -> EndpointId {
    EndpointId(Uuid::from_u128(n))
}

fn tenant(n: u8) -> TenantId {
    TenantId::trusted(&format!("t{n}"))
}

fn lanes() -> Lanes<(u128, u32)> {
    Lanes::new(LaneLimits::default())
}

#[test]
fn one_endpoint_is_served_in_order_within_its_limit() {
    let mut lanes = lanes();
    for i in 0..10 {
        lanes.push(&tenant(0), endpoint(1), (1, i), 0).unwrap();
    }
    let sent: Vec<_> = std::iter::from_fn(|| lanes.next(0)).collect();
    assert_eq!(sent, [(1, 0), (1, 1), (1, 2), (1, 3)]);
    lanes.done(endpoint(1), Completion::Success, 10, 1);
    assert_eq!((lanes.next(1), lanes.next(1)), (Some((1, 4)), Some((1, 5))), "the limit grew by one");
    assert_eq!((lanes.queued(), lanes.in_flight()), (4, 5));
    assert_eq!(lanes.next(1), None);
}

#[test]
fn time_outs_halve_once_for_what_was_in_flight_together() {
    let mut lanes: Lanes<(u128, u32)> = lanes();
    let clock = 5;
    for i in 0..400 {
        lanes.push(&tenant(0), endpoint(1), (1, i), clock).unwrap();
    }
    // Grow to 64 in flight.
    while lanes.in_flight() < 64 {
        while lanes.next(clock).is_some() {}
        if lanes.in_flight() < 64 {
            lanes.done(endpoint(1), Completion::Success, 10, clock);
        }
    }
    let (in_flight, limit) = (lanes.in_flight(), lanes.lanes[&endpoint(1)].concurrency.limit());
    assert_eq!((in_flight, limit), (64, 64));
    for _ in 0..in_flight {
        lanes.done(endpoint(1), Completion::TimedOut, 10, clock);
    }
    assert_eq!(lanes.lanes[&endpoint(1)].concurrency.limit(), limit / 2);
    lanes.next(clock).unwrap();
    lanes.done(endpoint(1), Completion::TimedOut, 10, clock);
    assert_eq!(lanes.lanes[&endpoint(1)].concurrency.limit(), limit / 4);
}

#[test]
fn a_slow_queue_spills_and_a_fast_one_does_not() {
    let mut lanes = lanes();
    let mut refused = 0;
    for i in 0..2000 {
        refused += u32::from(lanes.push(&tenant(0), endpoint(1), (1, i), 2000 + u64::from(i)).is_err());
    }
    assert!(refused >= 900, "an endpoint that never answers: {refused}");
    for i in 0..300 {
        assert_eq!(lanes.push(&tenant(0), endpoint(2), (2, i), 100_000), Ok(()), "a burst for a new endpoint");
    }

    // 10,000 a second in bundles of 64, answered in 5 ms, from a cold start.
    let mut lanes = self::lanes();
    let mut due: VecDeque<u64> = VecDeque::new();
    let (mut arrived, mut sent) = (0u32, 0u32);
    for now in 0..3000u64 {
        while u64::from(arrived) < now * 10 {
            for _ in 0..64 {
                assert_eq!(lanes.push(&tenant(0), endpoint(1), (1, arrived), now), Ok(()), "at {now} ms");
                arrived += 1;
            }
        }
        while due.front().is_some_and(|at| *at <= now) {
            due.pop_front();
            lanes.done(endpoint(1), Completion::Success, 10, now);
        }
        while let Some((_, i)) = lanes.next(now) {
            assert_eq!(i, sent);
            sent += 1;
            due.push_back(now + 5);
        }
    }
    assert!(sent > 29_500, "{sent} of {arrived}");
}

/// One request at a time, answered at once, for a while; then 1,500 come together. A receiver that takes 300 ms for each has
/// a shorter queue.
#[test]
fn a_burst_for_a_quick_endpoint_does_not_spill() {
    for (took_ms, spills) in [(2, false), (300, true)] {
        let mut lanes = lanes();
        for now in (0..5000u64).step_by(500) {
            lanes.push(&tenant(0), endpoint(1), (1, 0), now).unwrap();
            assert!(lanes.next(now).is_some());
            lanes.done(endpoint(1), Completion::Success, took_ms, now);
        }
        let refused = (0..1500).filter(|i| lanes.push(&tenant(0), endpoint(1), (1, *i), 5000).is_err()).count();
        assert_eq!(refused > 0, spills, "{refused}");
    }
}

#[test]
fn slow_endpoints_leave_slots_to_others() {
    let limits = LaneLimits { endpoint_initial: 256, ..LaneLimits::default() };
    let mut lanes: Lanes<(u128, u32)> = Lanes::new(limits);
    for slow in 1..=7 {
        for i in 0..1000 {
            lanes.push(&tenant(0), endpoint(slow), (slow, i), 0).unwrap();
        }
    }
    while lanes.next(0).is_some() {}
    let in_use = lanes.in_flight();
    assert!(in_use <= 1024 * 7 / 8, "{in_use}");
    lanes.push(&tenant(0), endpoint(9), (9, 0), 0).unwrap();
    assert_eq!(lanes.next(0), Some((9, 0)));
    // One finishes: those that were parked come round again.
    lanes.done(endpoint(9), Completion::Success, 10, 1);
    for _ in 0..256 {
        lanes.done(endpoint(1), Completion::NotSent, 10, 1);
    }
    assert!(std::iter::from_fn(|| lanes.next(1)).any(|(e, _)| e != 1));
}

#[test]
fn tenants_take_turns_however_many_endpoints_they_have() {
    let mut lanes = lanes();
    for e in 0..50 {
        for i in 0..4 {
            lanes.push(&tenant(0), endpoint(e), (e, i), 0).unwrap();
        }
    }
    for i in 0..4 {
        lanes.push(&tenant(1), endpoint(99), (99, i), 0).unwrap();
    }
    let first: Vec<u128> = (0..8).map(|_| lanes.next(0).unwrap().0).collect();
    assert_eq!(first.iter().filter(|e| **e == 99).count(), 4, "{first:?}");
}

#[test]
fn one_tenants_flood_is_one_share() {
    // 10 to 1: a tenant with ten endpoints, each with ten times as much, against one with one endpoint.
    let mut lanes = lanes();
    for i in 0..200 {
        for e in 0..10 {
            lanes.push(&tenant(0), endpoint(e), (e, i), 0).unwrap();
        }
        lanes.push(&tenant(1), endpoint(99), (99, i), 0).unwrap();
    }
    let (mut quiet, mut now) = (0, 0);
    for n in 0..300 {
        now += 1;
        let (e, _) = lanes.next(now).unwrap();
        quiet += u32::from(e == 99);
        lanes.done(endpoint(e), Completion::Success, 1, now);
        assert!(quiet * 2 >= n, "{quiet} of {n}");
    }
    assert_eq!(quiet, 150);
}

#[test]
fn replays_go_behind_and_do_not_starve() {
    let mut lanes = lanes();
    for i in 0..20 {
        lanes.push_replay(&tenant(0), endpoint(1), (1, 100 + i), 0).unwrap();
    }
    for i in 0..20 {
        lanes.push(&tenant(0), endpoint(1), (1, i), 0).unwrap();
    }
    let mut served = Vec::new();
    while let Some((_, i)) = lanes.next(0) {
        served.push(i);
        lanes.done(endpoint(1), Completion::Failed, 10, 0);
    }
    let expected: Vec<u32> = (0..8).chain([100]).chain(8..16).chain([101]).chain(16..20).chain(102..120).collect();
    assert_eq!(served, expected);
    for i in 0..5 {
        lanes.push(&tenant(0), endpoint(1), (1, i), 0).unwrap();
        lanes.push_replay(&tenant(0), endpoint(1), (1, 100 + i), 0).unwrap();
    }
    assert_eq!(lanes.trim(endpoint(1), 7), [(1, 102), (1, 103), (1, 104)]);
    assert_eq!(lanes.trim(endpoint(1), 2), [(1, 2), (1, 3), (1, 4), (1, 100), (1, 101)]);
    assert_eq!((lanes.queued(), lanes.queued_for(endpoint(1))), (2, 2));
}

#[test]
fn draining_takes_what_waits_and_leaves_what_is_sent() {
    let mut lanes = lanes();
    for i in 0..6 {
        lanes.push(&tenant(0), endpoint(1), (1, i), 0).unwrap();
        lanes.push(&tenant(0), endpoint(2), (2, i), 0).unwrap();
    }
    while lanes.next(0).is_some() {}
    assert_eq!(lanes.drain_endpoint(endpoint(1)), [(1, 4), (1, 5)]);
    assert_eq!(lanes.drain(), [(2, 4), (2, 5)]);
    assert_eq!((lanes.queued(), lanes.in_flight()), (0, 8));
}

#[test]
fn idle_endpoints_are_forgotten() {
    let mut lanes = lanes();
    for n in 0..1000u64 {
        lanes.push(&tenant(0), endpoint(u128::from(n)), (0, 0), n).unwrap();
        lanes.next(n).unwrap();
        lanes.done(endpoint(u128::from(n)), Completion::Success, 10, n);
    }
    assert_eq!(lanes.lanes.len(), 1000);
    assert_eq!(lanes.next(FORGET_MS + 2000), None);
    assert!(lanes.lanes.is_empty() && lanes.idle.is_empty() && lanes.rings.is_empty() && lanes.turns.is_empty());
}

#[test]
fn an_endpoint_that_waits_keeps_its_order_and_its_places_free() {
    let mut lanes = lanes();
    for i in 0..3 {
        lanes.push(&tenant(0), endpoint(1), (1, i), 0).unwrap();
    }
    lanes.push(&tenant(0), endpoint(2), (2, 0), 0).unwrap();
    let first = lanes.next(0).unwrap();
    lanes.hold(endpoint(1), first, Hold::Until(50), 0);
    assert_eq!((lanes.in_flight(), lanes.queued(), lanes.next_release()), (0, 4, Some(50)));
    assert_eq!((lanes.next(0), lanes.next(49)), (Some((2, 0)), None));
    assert_eq!(lanes.next(50), Some((1, 0)));
    let second = lanes.next(50).unwrap();
    assert_eq!(second, (1, 1));
    lanes.hold(endpoint(1), second, Hold::Done, 50);
    assert_eq!(lanes.next(5000), None);
    lanes.done(endpoint(1), Completion::Success, 10, 5000);
    let second = lanes.next(5000).unwrap();
    lanes.hold(endpoint(1), second, Hold::Until(9000), 5000);
    assert_eq!(lanes.trim(endpoint(1), 1), [(1, 2)]);
    lanes.release(endpoint(1));
    assert_eq!((lanes.next(5001), lanes.next(5001), lanes.queued()), (Some((1, 1)), None, 0));
    // What was said before a release is void.
    lanes.push(&tenant(0), endpoint(1), (1, 9), 5001).unwrap();
    let last = lanes.next(5001).unwrap();
    lanes.hold(endpoint(1), last, Hold::Until(20_000), 5001);
    assert_eq!((lanes.next(9000), lanes.next_release()), (None, Some(20_000)));
    assert_eq!(lanes.drain(), [(1, 9)]);
}

#[derive(Clone, Debug)]
enum Op {
    Hold(Option<u64>),
    Release(u128),
    Push(u128),
    Next,
    Done(usize, u8),
    Drain(u128),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u128..6).prop_map(Op::Push),
        6 => Just(Op::Next),
        5 => (any::<usize>(), 0u8..4).prop_map(|(i, how)| Op::Done(i, how)),
        1 => (0u128..6).prop_map(Op::Drain),
        2 => prop_oneof![Just(None), (1u64..3000).prop_map(Some)].prop_map(Op::Hold),
        1 => (0u128..6).prop_map(Op::Release),
        1 => prop_oneof![1u64..2000, Just(FORGET_MS)].prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn any_history_keeps_order_limits_and_counts(ops in prop::collection::vec(op(), 0..400), global in 1usize..12) {
        let limits = LaneLimits { global_in_flight: global, endpoint_initial: 2, endpoint_max: 5, queue_min: 4, queue_seconds: 1.0 };
        let mut lanes: Lanes<(u128, u32)> = Lanes::new(limits);
        let mut waiting: HashMap<u128, VecDeque<u32>> = HashMap::new();
        let mut out: Vec<u128> = Vec::new();
        let (mut now, mut counter) = (0, 0);
        for op in ops {
            match op {
                Op::Push(e) => {
                    counter += 1;
                    if lanes.push(&tenant((e % 2) as u8), endpoint(e), (e, counter), now).is_ok() {
                        waiting.entry(e).or_default().push_back(counter);
                    } else {
                        prop_assert!(waiting[&e].len() >= 4);
                    }
                }
                Op::Next => match lanes.next(now) {
                    Some((e, i)) => {
                        prop_assert_eq!(waiting.get_mut(&e).and_then(VecDeque::pop_front), Some(i), "in order");
                        out.push(e);
                        prop_assert!(lanes.in_flight_to(endpoint(e)) <= 5);
                    }
                    None => {
                        // Nothing is kept back that could go.
                        let free = global - out.len();
                        for (e, queue) in &waiting {
                            let lane = lanes.lanes.get(&endpoint(*e));
                            let could = lane.is_some_and(|l| l.in_flight < l.concurrency.limit() && l.in_flight == 0 && l.held.is_none());
                            prop_assert!(queue.is_empty() || free == 0 || !could, "endpoint {e} starves");
                        }
                    }
                },
                Op::Done(i, how) if !out.is_empty() => {
                    let e = out.swap_remove(i % out.len());
                    let how = [Completion::Success, Completion::TimedOut, Completion::Failed, Completion::NotSent][how as usize];
                    lanes.done(endpoint(e), how, 10, now);
                }
                Op::Done(..) => {}
                Op::Drain(e) => {
                    let drained: Vec<u32> = lanes.drain_endpoint(endpoint(e)).into_iter().map(|(_, i)| i).collect();
                    prop_assert_eq!(drained, waiting.remove(&e).map(Vec::from).unwrap_or_default());
                }
                Op::Wait(ms) => now += ms,
                Op::Hold(wait) => {
                    if let Some((e, i)) = lanes.next(now) {
                        prop_assert_eq!(waiting[&e].front(), Some(&i), "in order");
                        if wait.is_none() && lanes.in_flight_to(endpoint(e)) == 1 {
                            waiting.get_mut(&e).and_then(VecDeque::pop_front);
                            out.push(e);
                        } else {
                            lanes.hold(endpoint(e), (e, i), wait.map_or(Hold::Done, |w| Hold::Until(now + w)), now);
                        }
                    }
                }
                Op::Release(e) => lanes.release(endpoint(e)),
            }
            prop_assert_eq!(lanes.in_flight(), out.len());
            prop_assert!(lanes.in_flight() <= global);
            prop_assert_eq!(lanes.queued(), waiting.values().map(VecDeque::len).sum::<usize>());
        }
        // Everything leaves in the end.
        now += 3000;
        for _ in 0..10_000 {
            if lanes.queued() == 0 && out.is_empty() {
                break;
            }
            while let Some((e, i)) = lanes.next(now) {
                prop_assert_eq!(waiting.get_mut(&e).and_then(VecDeque::pop_front), Some(i));
                out.push(e);
            }
            if let Some(e) = out.pop() {
                lanes.done(endpoint(e), Completion::Failed, 10, now);
            }
        }
        prop_assert_eq!((lanes.queued(), lanes.in_flight()), (0, 0));
    }
}
