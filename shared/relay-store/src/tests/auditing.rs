//! Each kind of violation is planted, found, and put right where that is possible.

use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use relay_core::audit::{Attempts, EventCounts, EventFault, Figures, Place};
use relay_core::delivery::{DeadReason, LetterState, Outcome};
use relay_core::ids::{DeadLetterId, EndpointId, EventId};
use relay_core::page::Cursor;
use sqlx::PgPool;
use uuid::Uuid;

use super::{Ledger, dead, tenant};
use crate::{LetterAudit, OpenFault};

const LONG: Duration = Duration::from_secs(600);
const DELAY: Duration = Duration::from_secs(60);

impl Ledger {
    async fn run(&self, sql: &'static str) {
        let changed = sqlx::query(sql).execute(&self.pool).await.unwrap().rows_affected();
        assert!(changed > 0, "{sql}");
    }

    async fn faults(&self) -> Vec<(EventId, EventFault)> {
        let events = self.audit_events(Uuid::nil()).await.unwrap();
        let faults = events.into_iter().flat_map(|(id, counts)| counts.faults().into_iter().map(move |f| (id, f)));
        faults.collect()
    }

    async fn letters(&self) -> Vec<LetterAudit> {
        self.audit_letters(Cursor { at: DateTime::UNIX_EPOCH, id: Uuid::nil() }).await.unwrap()
    }

    async fn wrong_letters(&self) -> Vec<LetterAudit> {
        let wrong = |l: &LetterAudit| l.place.is_some_and(|p| p.letter() != l.state);
        self.letters().await.into_iter().filter(wrong).collect()
    }

    /// Everything that the audit finds, in words: for tests that expect nothing.
    async fn findings(&self) -> Vec<String> {
        let open = self.audit_open((Uuid::nil(), Uuid::nil())).await.unwrap();
        let mut found: Vec<String> = self.faults().await.iter().map(|f| format!("{f:?}")).collect();
        found.extend(self.wrong_letters().await.iter().map(|l| format!("{l:?}")));
        found.extend(open.wrong.iter().map(|w| format!("{w:?}")));
        found.extend(self.wrong_figures().await.unwrap().iter().map(|w| format!("{w:?}")));
        found.extend(self.overdue(LONG).await.unwrap().iter().map(|o| format!("{o:?}")));
        found.extend(self.stuck_jobs(LONG).await.unwrap().iter().map(|j| format!("{j:?}")));
        let (rows, told) = self.attempts().await;
        found.extend(rows.and_then(|r| r.missing_from(told)).map(|m| format!("{m:?}")));
        found
    }

    /// Attempts of all endpoints: rows and statistics.
    async fn attempts(&self) -> (Option<Attempts>, Attempts) {
        let since = self.now - TimeDelta::hours(1);
        let rows = self.audit_attempts(Uuid::nil(), EventId(Uuid::max()), since).await.unwrap();
        let told = self.attempts_in_statistics(since).await.unwrap();
        let sum = |all: Vec<Attempts>| {
            all.iter().fold(Attempts::default(), |a, b| Attempts { ok: a.ok + b.ok, failed: a.failed + b.failed })
        };
        (Some(sum(rows.into_values().collect())), sum(told.into_values().collect()))
    }
}

/// One delivery of each kind: pending, retrying, delivered, dead-lettered, discarded, resolved after a replay, replayed.
async fn mixed(pool: PgPool) -> (Ledger, Vec<EventId>, EndpointId) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let mut jobs = Vec::new();
    for _ in 0..7 {
        jobs.push(ledger.job(&endpoint).await);
    }
    ledger.record_one(&jobs[1], Outcome::Retry { delay: DELAY }).await;
    ledger.record_one(&jobs[2], Outcome::Delivered).await;
    for job in &jobs[3..] {
        ledger.record_one(job, dead(DeadReason::Permanent)).await;
    }
    let letter = |n: usize| DeadLetterId::of_delivery(jobs[n].event, endpoint.id);
    assert!(ledger.discard(None, letter(4)).await.unwrap());
    for n in [5, 6] {
        ledger.replay_one(Some(&tenant()), letter(n), false).await.unwrap();
    }
    let again = relay_core::job::Job { claim: 2, attempts: 1, base: 1, ..jobs[5].clone() };
    ledger.record_one(&again, Outcome::Delivered).await;
    let events = jobs.iter().map(|j| j.event).collect();
    (ledger, events, endpoint.id)
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_sound_ledger_has_no_findings(pool: PgPool) {
    let (ledger, events, _) = mixed(pool).await;
    assert_eq!(ledger.findings().await, Vec::<String>::new());
    assert_eq!(ledger.letters().await.len(), 4);
    ledger.fold().await.unwrap();
    assert_eq!(ledger.findings().await, Vec::<String>::new());
    assert_eq!(ledger.unknown_events(&events).await.unwrap(), []);
    let stranger = EventId(Uuid::from_u128(7));
    assert_eq!(ledger.unknown_events(&[events[0], stranger]).await.unwrap(), [stranger]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_delivery_without_a_row_is_found_and_restored(pool: PgPool) {
    let (ledger, events, _) = mixed(pool).await;
    // The tests' events are accepted when their test begins.
    ledger.run("update endpoints set created_at = now() - interval '1 hour'").await;
    ledger.run("delete from open_deliveries o where o.attempts = 0").await;
    ledger.run("delete from closed_deliveries c where c.status in (1, 2)").await;
    let faults = ledger.faults().await;
    // 0 pending, 2 delivered, 3 dead-lettered, 5 resolved.
    let missing: Vec<EventId> = [0, 2, 3, 5].map(|n| events[n]).to_vec();
    assert_eq!(faults, missing.iter().map(|e| (*e, EventFault::Missing(1))).collect::<Vec<_>>());
    for event in &missing {
        assert_eq!(ledger.restore_deliveries(*event, 1).await.unwrap(), 1);
        assert_eq!(ledger.restore_deliveries(*event, 1).await.unwrap(), 0, "once");
    }
    assert_eq!(ledger.findings().await, Vec::<String>::new());
    let shown = "select string_agg(coalesce((select 'open' from open_deliveries o where o.event_id = e.id),
            (select c.status::text from closed_deliveries c where c.event_id = e.id)), ' ' order by e.id) from events e";
    assert_eq!(ledger.text(shown).await, "open open 1 2 3 1 open");
    // Two endpoints could be meant, and one is missing: nothing is guessed.
    ledger.run("delete from open_deliveries o where o.attempts = 0").await;
    ledger.run("insert into endpoints select (jsonb_populate_record(p, jsonb_build_object('id', gen_random_uuid()))).* from endpoints p").await;
    assert_eq!(ledger.restore_deliveries(events[0], 1).await.unwrap(), 0);
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_two_rows_the_later_one_stays(pool: PgPool) {
    let (ledger, events, _) = mixed(pool).await;
    ledger
        .run(
            "insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim)
            select c.event_id, c.endpoint_id, c.tenant, now(), false, c.claim from closed_deliveries c where c.status = 1",
        )
        .await;
    ledger
        .run(
            "insert into closed_deliveries (event_id, endpoint_id, tenant, status, claim, attempts, base)
            select o.event_id, o.endpoint_id, o.tenant, 2, 1, 1, 0 from open_deliveries o where o.claim > 1 and o.lane = 2",
        )
        .await;
    let both: Vec<_> = [2, 5, 6].iter().map(|n| (events[*n], EventFault::Both(1))).collect();
    assert_eq!(ledger.faults().await, both);
    for (event, _) in &both {
        let doubled = ledger.doubled(*event).await.unwrap();
        assert!(ledger.drop_older(&doubled[0]).await.unwrap());
        assert!(!ledger.drop_older(&doubled[0]).await.unwrap(), "once");
    }
    assert_eq!(ledger.findings().await, Vec::<String>::new());
    assert_eq!(ledger.count("select count(*) from closed_deliveries c where c.status = 1").await, 2);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_letter_that_is_lost_or_says_something_else_is_put_right(pool: PgPool) {
    let (ledger, events, _) = mixed(pool).await;
    ledger.run("delete from dead_letters d where d.state = 'open'").await;
    assert_eq!(ledger.faults().await, [(events[3], EventFault::Unlettered(1))]);
    assert_eq!(ledger.write_lost_letters(events[3]).await.unwrap(), 1);
    assert_eq!(ledger.findings().await, Vec::<String>::new());

    ledger.run("update dead_letters d set state = 'open'").await;
    let wrong = ledger.wrong_letters().await;
    let mut should: Vec<_> = wrong.iter().filter_map(|l| l.place).collect();
    should.sort_by_key(|p| *p as u8);
    assert_eq!(should, [Place::Open, Place::Delivered, Place::Discarded]);
    for letter in &wrong {
        assert!(ledger.correct_letter(letter).await.unwrap());
        assert!(!ledger.correct_letter(letter).await.unwrap(), "once");
    }
    assert_eq!(ledger.findings().await, Vec::<String>::new());
    // A letter that went out as a new event stands for itself.
    ledger
        .run("update dead_letters d set state = 'replayed', new_event_id = gen_random_uuid() where d.state = 'open'")
        .await;
    assert_eq!(ledger.wrong_letters().await, []);
    assert!(ledger.letters().await.iter().any(|l| l.state == LetterState::Replayed && l.place.is_none()));
}

#[sqlx::test(migrations = "../../migrations")]
async fn open_rows_that_nobody_can_send_are_found(pool: PgPool) {
    let (ledger, events, endpoint) = mixed(pool).await;
    ledger
        .run("update open_deliveries o set leased = true, due_at = now() + interval '3 days' where o.attempts = 0")
        .await;
    ledger.run("delete from events e where e.id in (select o.event_id from open_deliveries o where o.lane = 2)").await;
    let part = ledger.audit_open((Uuid::nil(), Uuid::nil())).await.unwrap();
    assert_eq!(part.rows, 3);
    assert_eq!(part.wrong, [(events[0], endpoint, OpenFault::FarLease), (events[6], endpoint, OpenFault::NoEvent)]);
    assert!(ledger.end_far_lease(events[0], endpoint).await.unwrap());
    assert!(!ledger.end_far_lease(events[6], endpoint).await.unwrap());
    let rest = ledger.audit_open(part.last.unwrap()).await.unwrap();
    assert_eq!((rest.rows, rest.last), (0, None));
}

#[sqlx::test(migrations = "../../migrations")]
async fn work_that_nobody_claims_is_found(pool: PgPool) {
    let (ledger, _, endpoint) = mixed(pool).await;
    ledger.run("update open_deliveries o set due_at = now() - interval '1 hour', leased = true").await;
    assert_eq!(ledger.overdue(LONG).await.unwrap(), [], "something was sent just now");
    ledger.run("update stats_delta d set at = now() - interval '1 hour'").await;
    ledger.run("update stats_batches b set at = now() - interval '1 hour'").await;
    let found = ledger.overdue(LONG).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].endpoint, found[0].leased, found[0].is_active), (endpoint, true, true));
    ledger.run("update endpoints set paused = true").await;
    assert_eq!(ledger.overdue(LONG).await.unwrap(), [], "held on purpose");
    ledger.run("update endpoints set paused = false").await;
    ledger
        .run("insert into circuit_events select p.id, now(), 'pod', 'closed', 'open', 'failures' from endpoints p")
        .await;
    assert_eq!(ledger.overdue(LONG).await.unwrap(), [], "its circuit is open");
    assert_eq!(ledger.leaders().await.unwrap().claims, None);
    ledger.run("insert into leases values ('scheduler', 'pod-1', now() + interval '1 minute')").await;
    assert_eq!(ledger.leaders().await.unwrap().claims.as_deref(), Some("pod-1"));
}

#[sqlx::test(migrations = "../../migrations")]
async fn statistics_that_differ_are_found_and_corrected(pool: PgPool) {
    let (ledger, _, endpoint) = mixed(pool).await;
    ledger.fold().await.unwrap();
    ledger.run("update stats_totals t set opened = opened + 5, retrying = 0 where t.endpoint_id <> '00000000-0000-0000-0000-000000000000'").await;
    let wrong = ledger.wrong_figures().await.unwrap();
    assert_eq!(wrong.len(), 1);
    assert_eq!((wrong[0].endpoint, wrong[0].rows), (endpoint, Figures { open: 3, retrying: 1 }));
    assert_eq!(wrong[0].rows.missing_from(wrong[0].statistics), Some(Figures { open: -5, retrying: 1 }));
    assert_eq!(ledger.correct_figures().await.unwrap(), 1);
    assert_eq!(ledger.wrong_figures().await.unwrap(), []);

    ledger.run("update stats_minutes m set attempts_ok = 0").await;
    let (rows, told) = ledger.attempts().await;
    let missing = rows.unwrap().missing_from(told).unwrap();
    assert_eq!(missing, Attempts { ok: 2, failed: 0 });
    ledger.add_attempts(endpoint, missing).await.unwrap();
    assert_eq!(ledger.findings().await, Vec::<String>::new());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_that_nobody_runs_is_found(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    ledger
        .run(
            "insert into letter_jobs (id, kind, state, force, created_at) select gen_random_uuid(), 'replay', s, false, now() - interval '1 hour'
            from unnest(array['queued', 'running', 'done']) s",
        )
        .await;
    assert_eq!(ledger.stuck_jobs(LONG).await.unwrap().len(), 2);
    ledger.run("insert into leases values ('dlq-manager', 'pod-1', now() + interval '1 minute')").await;
    assert_eq!(ledger.stuck_jobs(LONG).await.unwrap().len(), 1, "the running one is taken care of");
    ledger.run("update letter_jobs set held_until = now()").await;
    assert_eq!(ledger.stuck_jobs(LONG).await.unwrap(), []);
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_event_without_deliveries_is_sound(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let planned = ledger.plan(ledger.event(), &[]).await;
    ledger.dispatch(&[planned]).await.unwrap();
    let events = ledger.audit_events(Uuid::nil()).await.unwrap();
    assert_eq!(events.iter().map(|(_, c)| *c).collect::<Vec<_>>(), [EventCounts::default()]);
    assert_eq!(ledger.audit_events(events[0].0.0).await.unwrap(), [], "the walk ends");
}
