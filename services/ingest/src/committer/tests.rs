//! The committer against a publisher whose answers the test decides.

use chrono::DateTime;
use relay_core::bundle::{BYTES_MAX, decode};
use relay_core::event::EventType;
use relay_core::ids::{EventId, TenantId};
use uuid::Uuid;

use super::*;

type Answer = Result<(), PublishFailure>;
type Call = (Bytes, oneshot::Sender<Answer>);
type Submission = tokio::task::JoinHandle<Result<(), CommitError>>;

/// A committer under test: publishes arrive in `calls`, and wait there for an answer.
struct Bench {
    committer: Committer,
    calls: mpsc::UnboundedReceiver<Call>,
    running: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

fn bench(limits: CommitLimits) -> Bench {
    let (sender, calls) = mpsc::unbounded_channel::<Call>();
    let publish = move |bundle: Bytes| {
        let (answer, outcome) = oneshot::channel();
        sender.send((bundle, answer)).ok();
        async move { outcome.await.unwrap_or(Err(PublishFailure::Uncertain)) }
    };
    let metrics = CommitMetrics { bundle_events: Histogram::noop(), publish_seconds: Histogram::noop() };
    let (committer, run) = committer(publish, limits, metrics);
    let stop = CancellationToken::new();
    Bench { committer, calls, running: tokio::spawn(run.run(stop.clone())), stop }
}

fn event(number: u128, payload_bytes: usize) -> Event {
    Event {
        id: EventId(Uuid::from_u128(number)),
        tenant: TenantId::default_tenant(),
        event_type: EventType::trusted("order.created"),
        endpoint: None,
        key: None,
        accepted_at: DateTime::UNIX_EPOCH,
        trace: None,
        payload: Bytes::from(vec![b'1'; payload_bytes]),
    }
}

impl Bench {
    /// Hands an event over and comes back when it is in the queue or refused.
    async fn submit(&self, event: Event) -> Submission {
        let committer = self.committer.clone();
        let task = tokio::spawn(async move { committer.submit(event).await });
        // On the test's single thread, one turn runs the task up to its wait.
        tokio::task::yield_now().await;
        task
    }

    async fn call(&mut self) -> (Vec<u128>, oneshot::Sender<Answer>) {
        let (bundle, answer) = self.calls.recv().await.unwrap();
        (decode(bundle).unwrap().iter().map(|e| e.id.0.as_u128()).collect(), answer)
    }
}

#[tokio::test]
async fn what_comes_while_publishes_are_in_flight_goes_out_together() {
    let mut bench = bench(CommitLimits::default());
    let one = bench.submit(event(1, 10)).await;
    let (ids, first) = bench.call().await;
    assert_eq!(ids, [1]);
    let two = bench.submit(event(2, 10)).await;
    let (ids, second) = bench.call().await;
    assert_eq!(ids, [2], "a second publish may be in flight");
    let mut later = Vec::new();
    for n in 3..=7 {
        later.push(bench.submit(event(n, 10)).await);
    }
    assert!(bench.calls.try_recv().is_err(), "no third publish");
    first.send(Ok(())).unwrap();
    assert_eq!(one.await.unwrap(), Ok(()));
    let (ids, third) = bench.call().await;
    assert_eq!(ids, [3, 4, 5, 6, 7], "one bundle for all that waited, in order");
    third.send(Ok(())).unwrap();
    for task in later {
        assert_eq!(task.await.unwrap(), Ok(()));
    }
    assert!(!two.is_finished(), "answered only by its own acknowledgement");
    second.send(Ok(())).unwrap();
    assert_eq!(two.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn where_events_come_fast_the_next_bundle_waits_for_the_one_under_way() {
    let mut bench = bench(CommitLimits { linger_from_rate: 250.0, ..CommitLimits::default() });
    let warm_up = Instant::now();
    let mut n = 0;
    while warm_up.elapsed() < Duration::from_millis(300) {
        n += 1;
        let task = bench.submit(event(n, 10)).await;
        bench.call().await.1.send(Ok(())).unwrap();
        assert_eq!(task.await.unwrap(), Ok(()));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let _one = bench.submit(event(1_001, 10)).await;
    let (ids, first) = bench.call().await;
    assert_eq!(ids, [1_001], "nothing is under way, so it gathers for a moment only");
    let _two = bench.submit(event(1_002, 10)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let _three = bench.submit(event(1_003, 10)).await;
    assert!(bench.calls.try_recv().is_err(), "it waits for the bundle under way");
    first.send(Ok(())).unwrap();
    let (ids, _second) = bench.call().await;
    assert_eq!(ids, [1_002, 1_003]);

    let patient = Instant::now();
    let _four = bench.submit(event(1_004, 10)).await;
    let (ids, _third) = bench.call().await;
    assert_eq!(ids, [1_004]);
    assert!(patient.elapsed() >= LINGER_MAX, "a publish that hangs holds it up no longer than that");
}

#[tokio::test]
async fn a_cancelled_request_hurts_nobody() {
    let mut bench = bench(CommitLimits { in_flight: 1, ..CommitLimits::default() });
    let head = bench.submit(event(1, 10)).await;
    let (_, first) = bench.call().await;
    let gone = bench.submit(event(2, 10)).await;
    let stays = bench.submit(event(3, 10)).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    first.send(Ok(())).unwrap();
    assert_eq!(head.await.unwrap(), Ok(()));
    let (ids, second) = bench.call().await;
    assert_eq!(ids, [2, 3], "what was handed over is published");
    second.send(Ok(())).unwrap();
    assert_eq!(stays.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn an_unknown_outcome_publishes_the_same_bytes_again() {
    let mut bench = bench(CommitLimits::default());
    let task = bench.submit(event(1, 10)).await;
    let (first, answer) = bench.calls.recv().await.unwrap();
    answer.send(Err(PublishFailure::Uncertain)).unwrap();
    let (again, answer) = bench.calls.recv().await.unwrap();
    assert_eq!(first, again);
    answer.send(Ok(())).unwrap();
    assert_eq!(task.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn the_deadline_ends_the_tries() {
    let mut bench = bench(CommitLimits { deadline: REPUBLISH_PAUSE / 2, ..CommitLimits::default() });
    let task = bench.submit(event(1, 10)).await;
    let (_, answer) = bench.call().await;
    answer.send(Err(PublishFailure::Uncertain)).unwrap();
    assert_eq!(task.await.unwrap(), Err(CommitError::Unavailable));
    // A publisher that never answers is given up as well.
    let task = bench.submit(event(2, 10)).await;
    let _pending = bench.call().await;
    assert_eq!(task.await.unwrap(), Err(CommitError::Unavailable));
}

#[tokio::test]
async fn what_waited_too_long_is_answered_and_not_published() {
    let limits = CommitLimits { deadline: Duration::from_millis(30), in_flight: 1, ..CommitLimits::default() };
    let mut bench = bench(limits);
    let head = bench.submit(event(1, 10)).await;
    let _first = bench.call().await;
    let behind = bench.submit(event(2, 10)).await;
    assert_eq!(head.await.unwrap(), Err(CommitError::Unavailable));
    assert_eq!(behind.await.unwrap(), Err(CommitError::Unavailable));
}

#[tokio::test]
async fn a_full_log_is_said_at_once() {
    let mut bench = bench(CommitLimits::default());
    let task = bench.submit(event(1, 10)).await;
    let (_, answer) = bench.call().await;
    answer.send(Err(PublishFailure::Full)).unwrap();
    assert_eq!(task.await.unwrap(), Err(CommitError::Full));
}

#[tokio::test]
async fn the_queue_is_bounded_by_events_and_by_bytes_and_frees_its_room() {
    let limits = CommitLimits { queue_events: 2, queue_bytes: 100, in_flight: 1, ..CommitLimits::default() };
    let mut bench = bench(limits);
    let head = bench.submit(event(1, 10)).await;
    let (_, first) = bench.call().await;
    assert_eq!(bench.committer.submit(event(2, 91)).await, Err(CommitError::Overloaded), "bytes");
    let waiting = [bench.submit(event(3, 1)).await, bench.submit(event(4, 1)).await];
    assert_eq!(bench.committer.submit(event(5, 1)).await, Err(CommitError::Overloaded), "events");
    first.send(Ok(())).unwrap();
    head.await.unwrap().unwrap();
    let (ids, second) = bench.call().await;
    assert_eq!(ids, [3, 4]);
    second.send(Ok(())).unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    let all = bench.submit(event(6, 100)).await;
    let (_, third) = bench.call().await;
    third.send(Ok(())).unwrap();
    assert_eq!(all.await.unwrap(), Ok(()), "the room is free again");
}

#[tokio::test]
async fn a_large_payload_travels_alone() {
    let mut bench = bench(CommitLimits { in_flight: 1, ..CommitLimits::default() });
    let mut tasks = vec![bench.submit(event(1, 10)).await];
    let mut answers = vec![bench.call().await.1];
    for (number, bytes) in [(2, 10), (3, BYTES_MAX), (4, 10)] {
        tasks.push(bench.submit(event(number, bytes)).await);
    }
    for expected in [2, 3, 4] {
        answers.pop().unwrap().send(Ok(())).unwrap();
        let (ids, answer) = bench.call().await;
        assert_eq!(ids, [expected]);
        answers.push(answer);
    }
    answers.pop().unwrap().send(Ok(())).unwrap();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn everything_handed_over_is_finished_before_it_ends() {
    let mut bench = bench(CommitLimits { in_flight: 1, ..CommitLimits::default() });
    let head = bench.submit(event(1, 10)).await;
    let (_, first) = bench.call().await;
    let behind = bench.submit(event(2, 10)).await;
    bench.stop.cancel();
    first.send(Ok(())).unwrap();
    let (ids, second) = bench.call().await;
    assert_eq!(ids, [2]);
    second.send(Ok(())).unwrap();
    bench.running.await.unwrap();
    assert_eq!((head.await.unwrap(), behind.await.unwrap()), (Ok(()), Ok(())));
    assert_eq!(bench.committer.submit(event(3, 10)).await, Err(CommitError::Stopped));
}

#[tokio::test]
async fn many_that_are_handed_over_together_share_bundles() {
    let mut bench = bench(CommitLimits { queue_events: 700, ..CommitLimits::default() });
    let committer = bench.committer.clone();
    let all = tokio::spawn(async move { committer.submit_all((0..800).map(|n| event(n, 10)).collect()).await });
    let (ids, first) = bench.call().await;
    assert_eq!(ids, (0..500).collect::<Vec<_>>());
    let (ids, second) = bench.call().await;
    assert_eq!(ids, (500..700).collect::<Vec<_>>());
    second.send(Ok(())).unwrap();
    first.send(Err(PublishFailure::Full)).unwrap();
    let outcomes = all.await.unwrap();
    assert!(outcomes[..500].iter().all(|o| *o == Err(CommitError::Full)));
    assert!(outcomes[500..700].iter().all(Result::is_ok));
    assert!(outcomes[700..].iter().all(|o| *o == Err(CommitError::Overloaded)), "the queue is bounded");
}

#[tokio::test(start_paused = true)]
async fn what_would_wait_too_long_is_refused_at_once() {
    let limits = CommitLimits { in_flight: 1, ..CommitLimits::default() };
    let mut bench = bench(limits);
    let head = bench.submit(event(0, 10)).await;
    let (_, first) = bench.call().await;
    let committer = bench.committer.clone();
    let all = tokio::spawn(async move { committer.submit_all((1..=500).map(|n| event(n, 10)).collect()).await });
    tokio::task::yield_now().await;
    tokio::time::advance(limits.wait_max * 2).await;
    assert_eq!(bench.committer.submit(event(501, 10)).await, Err(CommitError::Overloaded), "the server is stuck");
    first.send(Ok(())).unwrap();
    assert_eq!(head.await.unwrap(), Ok(()));
    let (ids, second) = bench.call().await;
    assert_eq!(ids, (1..=500).collect::<Vec<_>>(), "a bundle may wait, whatever it takes");
    let late = bench.submit(event(502, 10)).await;
    second.send(Ok(())).unwrap();
    assert!(all.await.unwrap().iter().all(Result::is_ok));
    let (_, third) = bench.call().await;
    third.send(Ok(())).unwrap();
    assert_eq!(late.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn where_the_processors_lag_behind_the_answers_a_part_of_many_requests_is_refused() {
    let mut bench = bench(CommitLimits::default());
    let tenant = TenantId::default_tenant();
    // Handed over, and not looked at again before their answers.
    let hand_over = async |bench: &Bench| {
        let mut all = Vec::new();
        for n in 0..REQUESTS_ALWAYS as u128 {
            let (committer, event) = (bench.committer.clone(), event(n, 10));
            let mut submitted = Box::pin(async move { committer.submit(event).await });
            assert!(futures_util::poll!(&mut submitted).is_pending());
            all.push(submitted);
        }
        all
    };
    for round in ["after a hiccup", "few wait"] {
        let mut tasks = hand_over(&bench).await;
        while !tasks.is_empty() {
            let (ids, answer) = bench.call().await;
            answer.send(Ok(())).unwrap();
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_secs(1)).await;
            for task in tasks.drain(..ids.len()) {
                assert_eq!(task.await, Ok(()));
            }
        }
        assert_eq!(bench.committer.takes(&tenant), Ok(()), "{round}");
    }
    let waiting = hand_over(&bench).await;
    assert_eq!(bench.committer.takes(&tenant), Err(CommitError::Busy));
    drop(waiting);
    assert_eq!(bench.committer.takes(&tenant), Ok(()), "those who went away don't wait");
}
