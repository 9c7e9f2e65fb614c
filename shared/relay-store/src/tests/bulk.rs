use std::time::Duration;

use bytes::Bytes;
use relay_core::bulk::{JobKind, JobState};
use relay_core::delivery::DeadReason;
use relay_core::endpoint::Endpoint;
use relay_core::ids::{DeadLetterId, EndpointId, JobId, TenantId, uuid_v7};
use relay_core::page::PageRequest;
use sqlx::PgPool;

use super::{Ledger, dead, random10, tenant};
use crate::{JobSpec, LetterFilter, LetterJob, LetterState, Published, RawLetter, ReplayOutcome, Stepped, Window};

impl Ledger {
    async fn letter(&self, endpoint: &Endpoint, reason: DeadReason) -> DeadLetterId {
        let job = self.job(endpoint).await;
        self.record_one(&job, dead(reason)).await;
        DeadLetterId::of_delivery(job.event, job.endpoint)
    }

    fn raw_letter(&self, tenant: Option<TenantId>) -> RawLetter {
        RawLetter {
            id: DeadLetterId(uuid_v7(self.now, random10())),
            event_id: None,
            tenant,
            event_type: Some("a.b".to_owned()),
            reason: DeadReason::Malformed,
            error: "not JSON".to_owned(),
            subject: Bytes::from_static(b"relay.events.default.a.b"),
            payload: Bytes::from_static(b"{"),
            at: self.now,
        }
    }

    async fn job_of(&self, kind: JobKind, filter: LetterFilter, rate: Option<u32>) -> LetterJob {
        let spec = JobSpec { tenant: Some(tenant()), kind, filter, force: false, rate };
        self.create_job(JobId(uuid_v7(self.now, random10())), &spec, Duration::ZERO).await.unwrap()
    }

    /// Steps until it is over; how many letters each step took.
    async fn run_job(&self, job: JobId) -> Vec<u64> {
        let mut taken = Vec::new();
        loop {
            match self.step_job(job, &Published::new()).await.unwrap() {
                Stepped::Over => return taken,
                Stepped::Took { done, .. } => taken.push(done),
                Stepped::Began => {}
                Stepped::Wait(wait) => tokio::time::sleep(wait).await,
                Stepped::NewEvents { letters, .. } => panic!("{letters:?}"),
            }
        }
    }
}

fn open(endpoint: &Endpoint) -> LetterFilter {
    LetterFilter { endpoint: Some(endpoint.id), state: Some(LetterState::Open), ..LetterFilter::default() }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_replays_what_came_before_it_each_once(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (a, b) = (ledger.endpoint().await, ledger.endpoint().await);
    for _ in 0..30 {
        ledger.letter(&a, DeadReason::Exhausted).await;
    }
    let other = ledger.letter(&b, DeadReason::Exhausted).await;
    let job = ledger.job_of(JobKind::Replay, open(&a), Some(100)).await;
    assert_eq!(ledger.runnable_jobs().await.unwrap(), [job.id]);
    let late = ledger.letter(&a, DeadReason::Exhausted).await;

    // Two runners at once: no letter twice, no pace twice.
    let begun = std::time::Instant::now();
    let (one, two) = tokio::join!(ledger.run_job(job.id), ledger.run_job(job.id));
    assert_eq!(one.iter().chain(&two).sum::<u64>(), 30, "{one:?} {two:?}");
    assert!(begun.elapsed() > Duration::from_millis(250), "30 letters at 100 a second: {:?}", begun.elapsed());
    assert_eq!(ledger.count("select count(*) from dead_letters where replay_count = 1").await, 30);
    assert_eq!(ledger.count("select count(*) from open_deliveries").await, 30);
    for letter in [other, late] {
        assert_eq!(ledger.dead_letter(None, letter).await.unwrap().unwrap().state, LetterState::Open);
    }
    let job = ledger.letter_job(Some(&tenant()), job.id).await.unwrap().unwrap();
    assert_eq!((job.state, job.total, job.done, job.skipped, job.errors), (JobState::Done, Some(30), 30, 0, 0));
    assert!(job.started_at.is_some() && job.finished_at.is_some());
    assert!(ledger.runnable_jobs().await.unwrap().is_empty());
    assert!(ledger.letter_job(Some(&TenantId::trusted("other")), job.id).await.unwrap().is_none());
    assert!(!ledger.cancel_job(None, job.id).await.unwrap(), "it is over");
    let stats = ledger.endpoint_stats(&tenant(), a.id).await.unwrap();
    assert_eq!((stats.dead_lettered, stats.pending()), (1, 30));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_says_what_it_could_not_do_and_can_be_cancelled(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (a, gone) = (ledger.endpoint().await, ledger.endpoint().await);
    let recent = ledger.letter(&a, DeadReason::Exhausted).await;
    sqlx::query("update dead_letters set replayed_at = now()").execute(&ledger.pool).await.unwrap();
    let letter = ledger.letter(&gone, DeadReason::Permanent).await;
    ledger.deactivate_endpoint(&tenant(), gone.id).await.unwrap();
    let all = LetterFilter { state: Some(LetterState::Open), ..LetterFilter::default() };
    let job = ledger.job_of(JobKind::Replay, all.clone(), None).await;
    ledger.run_job(job.id).await;
    let job = ledger.letter_job(None, job.id).await.unwrap().unwrap();
    assert_eq!((job.done, job.skipped, job.errors), (0, 1, 1));
    assert_eq!(job.error_examples[0].letter, letter);
    assert_eq!(job.error_examples[0].why, "endpoint_inactive");
    assert_eq!(ledger.dead_letter(None, recent).await.unwrap().unwrap().replay_count, 0);

    // Cancelled in the middle: what is done is done.
    for _ in 0..4 {
        ledger.letter(&a, DeadReason::Exhausted).await;
    }
    let slow = ledger.job_of(JobKind::Discard, open(&a), Some(1)).await;
    assert!(matches!(ledger.step_job(slow.id, &Published::new()).await.unwrap(), Stepped::Began));
    assert!(matches!(ledger.step_job(slow.id, &Published::new()).await.unwrap(), Stepped::Wait(_)));
    sqlx::query("update letter_jobs set paced_until = now() - interval '1 second'")
        .execute(&ledger.pool)
        .await
        .unwrap();
    let step = ledger.step_job(slow.id, &Published::new()).await.unwrap();
    assert!(matches!(step, Stepped::Took { done: 1, .. }), "{step:?}");
    assert!(ledger.cancel_job(Some(&tenant()), slow.id).await.unwrap());
    assert!(matches!(ledger.step_job(slow.id, &Published::new()).await.unwrap(), Stepped::Over));
    let slow = ledger.letter_job(None, slow.id).await.unwrap().unwrap();
    assert_eq!((slow.state, slow.total, slow.done), (JobState::Cancelled, Some(5), 1));
    assert_eq!(ledger.count("select count(*) from dead_letters where state = 'discarded'").await, 1);

    // The rest, at once.
    let rest = ledger.job_of(JobKind::Discard, all, None).await;
    assert_eq!(ledger.run_job(rest.id).await, [5]);
    let stats = ledger.tenant_stats(&tenant()).await.unwrap();
    assert_eq!((stats.discarded, stats.dead_lettered), (6, 0));
    let listed = ledger.jobs(Some(&tenant()), &Window::page(PageRequest { page: 1, size: 2 })).await.unwrap();
    assert_eq!((listed.items.len(), listed.total, listed.items[0].id), (2, Some(3), rest.id));
    assert_eq!(ledger.forget_jobs(ledger.now + chrono::Duration::hours(1)).await.unwrap(), 3);
}

#[sqlx::test(migrations = "../../migrations")]
async fn letters_without_an_event_are_published_before_their_step(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let a = ledger.endpoint().await;
    ledger.letter(&a, DeadReason::Exhausted).await;
    let raw = ledger.raw_letter(Some(tenant()));
    ledger.write_letters(std::slice::from_ref(&raw)).await.unwrap();
    let job = ledger.job_of(
        JobKind::Replay,
        LetterFilter { state: Some(LetterState::Open), ..LetterFilter::default() },
        None,
    );
    let job = job.await.id;
    assert!(matches!(ledger.step_job(job, &Published::new()).await.unwrap(), Stepped::Began));
    match ledger.step_job(job, &Published::new()).await.unwrap() {
        Stepped::NewEvents { letters, force: false } => assert_eq!(letters, [raw.id]),
        other => panic!("{other:?}"),
    }
    assert_eq!(ledger.count("select count(*) from open_deliveries").await, 0, "nothing was changed");
    let event = ledger.reserve_new_event(None, raw.id, false, ledger.event().id).await.unwrap().unwrap();
    let published = Published::from([(raw.id, Ok(event.id))]);
    match ledger.step_job(job, &published).await.unwrap() {
        Stepped::Took { done: 2, outcomes, .. } => {
            assert!(outcomes.contains(&(raw.id, ReplayOutcome::SentAsNewEvent(event.id))), "{outcomes:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ledger.dead_letter(None, raw.id).await.unwrap().unwrap().replayed_as, Some(event.id));
}

#[sqlx::test(migrations = "../../migrations")]
async fn groups_are_counted_and_walked(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let mut endpoints = Vec::new();
    for n in 1..=3 {
        let endpoint = ledger.endpoint().await;
        for _ in 0..n {
            ledger.letter(&endpoint, DeadReason::Exhausted).await;
        }
        endpoints.push(endpoint);
    }
    let gone = ledger.letter(&endpoints[0], DeadReason::Gone).await;
    let nobodys = ledger.raw_letter(None);
    let systems = ledger.raw_letter(Some(TenantId::system()));
    ledger.write_letters(&[ledger.raw_letter(Some(tenant())), nobodys.clone(), systems.clone()]).await.unwrap();

    let page = Window::page(PageRequest::default());
    let all = ledger.letter_groups(Some(&tenant()), None, None, &page).await.unwrap();
    assert_eq!(all.total, Some(5));
    let count = |endpoint: Option<EndpointId>, reason| {
        let group = all.items.iter().find(|g| g.endpoint == endpoint && g.reason == reason).unwrap();
        assert!(group.first_at <= group.last_at && !group.more && group.tenant == Some(tenant()));
        (group.count, group.example)
    };
    assert_eq!(count(Some(endpoints[0].id), DeadReason::Exhausted).0, 1);
    assert_eq!(count(Some(endpoints[2].id), DeadReason::Exhausted).0, 3);
    assert_eq!(count(Some(endpoints[0].id), DeadReason::Gone), (1, gone));
    assert_eq!(count(None, DeadReason::Malformed).0, 1);
    let operators = ledger.letter_groups(None, None, Some(DeadReason::Malformed), &page).await.unwrap();
    let owners: Vec<_> = operators.items.iter().map(|g| g.tenant.clone()).collect();
    assert_eq!((operators.total, owners.len()), (Some(2), 2));
    assert!(owners.contains(&None) && owners.contains(&Some(tenant())), "the system's own are hidden: {owners:?}");

    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let part = ledger.letter_groups(Some(&tenant()), None, None, &Window::after(after, 2)).await.unwrap();
        seen.extend(part.items);
        // What comes meanwhile changes no place.
        ledger.letter(&endpoints[1], DeadReason::Exhausted).await;
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    let key = |g: &crate::LetterGroup| (g.endpoint, g.reason);
    assert_eq!(seen.iter().map(key).collect::<Vec<_>>(), all.items.iter().map(key).collect::<Vec<_>>());
    assert!(ledger.letter_groups(Some(&TenantId::trusted("x")), None, None, &page).await.unwrap().items.is_empty());

    let listed = ledger.dead_letters(None, &LetterFilter::default(), &page).await.unwrap();
    assert!(listed.items.iter().any(|l| l.id == nobodys.id) && listed.items.iter().all(|l| l.id != systems.id));
    let cut = LetterFilter { after: Some(ledger.now + chrono::Duration::hours(1)), ..LetterFilter::default() };
    assert!(ledger.dead_letters(None, &cut, &page).await.unwrap().items.is_empty());
}
