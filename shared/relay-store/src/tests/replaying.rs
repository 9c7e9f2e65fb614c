use std::time::Duration;

use bytes::Bytes;
use relay_core::delivery::{DeadReason, Outcome, Status};
use relay_core::ids::{DeadLetterId, EndpointId, TenantId, uuid_v7};
use relay_core::page::PageRequest;
use relay_core::subject::Lane;
use sqlx::PgPool;

use super::{Ledger, dead, tenant};
use crate::{
    ClaimBudget, Due, EndpointChange, EventFilter, LetterFilter, LetterState, RawLetter, Recorded, ReplayOutcome,
    ResendOutcome, ResumeStep, Window,
};

fn page() -> Window {
    Window::page(PageRequest::default())
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_letter_is_replayed_once_and_resolved_by_a_2xx(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let waiting = ledger.job(&endpoint).await;
    let job = ledger.job(&endpoint).await;
    assert_eq!(ledger.record_one(&job, dead(DeadReason::Exhausted)).await, Recorded::Applied);
    let letter = DeadLetterId::of_delivery(job.event, job.endpoint);
    let nobody = TenantId::trusted("nobody");
    assert_eq!(ledger.replay_one(Some(&nobody), letter, false).await.unwrap(), ReplayOutcome::NotFound);

    // Two at once: one wins.
    let owner = tenant();
    let (one, two) =
        tokio::join!(ledger.replay_one(Some(&owner), letter, false), ledger.replay_one(None, letter, false));
    let outcomes = [one.unwrap(), two.unwrap()];
    assert_eq!(outcomes.iter().filter(|o| matches!(o, ReplayOutcome::Replayed { .. })).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|o| **o == ReplayOutcome::ReplayedRecently).count(), 1, "{outcomes:?}");

    // It comes before everything else that waits for the endpoint.
    ledger.make_due().await;
    let letter_view = ledger.dead_letter(Some(&tenant()), letter).await.unwrap().unwrap();
    assert_eq!((letter_view.state, letter_view.replay_count, letter_view.attempts), (LetterState::Replayed, 1, 1));
    assert_eq!(letter_view.payload.as_deref(), Some(&br#"{"a":1}"#[..]));
    let budget =
        ClaimBudget { endpoint: endpoint.id, limit: 5, lease: Duration::from_secs(60), version: 1, probe: true };
    let claimed = ledger.claim(&[budget], Due::Waiting, 2000).await.unwrap();
    let (lane, replayed) = claimed.iter().find(|(_, j)| j.event == job.event).unwrap();
    assert_eq!((*lane, replayed.claim, replayed.attempts, replayed.base), (Lane::Replay, 3, 1, 1));

    // A late 2xx of the old life doesn't count, one of the new life does.
    assert_eq!(ledger.record_one(&job, Outcome::Delivered).await, Recorded::Stale);
    assert_eq!(ledger.record_one(replayed, Outcome::Delivered).await, Recorded::Delivered);
    assert_eq!(ledger.text("select state from dead_letters").await, "resolved");
    assert_eq!(ledger.replay_one(None, letter, false).await.unwrap(), ReplayOutcome::ReplayedRecently);
    // Forced: sent again although it was delivered.
    assert!(matches!(ledger.replay_one(None, letter, true).await.unwrap(), ReplayOutcome::Replayed { .. }));
    let stats = ledger.endpoint_stats(&tenant(), endpoint.id).await.unwrap();
    assert_eq!((stats.delivered, stats.dead_lettered, stats.pending()), (0, 0, 2));
    assert_eq!(waiting.endpoint, endpoint.id);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_replay_goes_before_what_waits(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let job = ledger.job(&endpoint).await;
    ledger.record_one(&job, dead(DeadReason::Exhausted)).await;
    ledger.job(&endpoint).await;
    ledger.make_due().await;
    sqlx::query("update open_deliveries set leased = false").execute(&ledger.pool).await.unwrap();
    ledger.replay_one(None, DeadLetterId::of_delivery(job.event, job.endpoint), false).await.unwrap();
    let budget =
        ClaimBudget { endpoint: endpoint.id, limit: 1, lease: Duration::from_secs(60), version: 1, probe: true };
    assert_eq!(ledger.claim(&[budget], Due::Waiting, 2000).await.unwrap()[0].1.event, job.event);
}

#[sqlx::test(migrations = "../../migrations")]
async fn many_are_replayed_discarded_and_refused_for_reasons(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (a, b) = (ledger.endpoint().await, ledger.endpoint().await);
    let mut jobs = Vec::new();
    for endpoint in [&a, &a, &a, &b] {
        let job = ledger.job(endpoint).await;
        ledger.record_one(&job, dead(DeadReason::Permanent)).await;
        jobs.push(job);
    }
    let filter = LetterFilter { endpoint: Some(a.id), reason: Some(DeadReason::Permanent), ..LetterFilter::default() };
    let listed = ledger.dead_letters(Some(&tenant()), &filter, &page()).await.unwrap();
    assert_eq!((listed.items.len(), listed.total, listed.next), (3, Some(3), None));
    let first = ledger.dead_letters(Some(&tenant()), &filter, &Window::after(None, 2)).await.unwrap();
    let rest = ledger.dead_letters(Some(&tenant()), &filter, &Window::after(first.next, 2)).await.unwrap();
    assert_eq!((first.items.len(), rest.items.len(), rest.next), (2, 1, None));

    // One discarded, the others of a replayed.
    assert!(ledger.discard(Some(&tenant()), listed.items[0].id).await.unwrap());
    assert!(!ledger.discard(Some(&tenant()), listed.items[0].id).await.unwrap());
    let left = [listed.items[1].id, listed.items[2].id];
    for letter in left {
        let outcome = ledger.replay_one(Some(&tenant()), letter, false).await.unwrap();
        assert!(matches!(outcome, ReplayOutcome::Replayed { .. }), "{outcome:?}");
    }
    let stats = ledger.endpoint_stats(&tenant(), a.id).await.unwrap();
    assert_eq!((stats.discarded, stats.dead_lettered, stats.pending()), (1, 0, 2));

    // An inactive endpoint; then active again.
    ledger.deactivate_endpoint(&tenant(), b.id).await.unwrap();
    let of_b = DeadLetterId::of_delivery(jobs[3].event, b.id);
    assert_eq!(ledger.replay_one(None, of_b, false).await.unwrap(), ReplayOutcome::InactiveEndpoint);
    assert_eq!(ledger.resend(&tenant(), jobs[3].event, &[b.id]).await.unwrap(), [ResendOutcome::InactiveEndpoint]);
    let change = EndpointChange { is_active: Some(true), ..EndpointChange::default() };
    ledger.update_endpoint(&tenant(), b.id, &change).await.unwrap().unwrap();
    assert_eq!(ledger.resend(&tenant(), jobs[3].event, &[b.id]).await.unwrap(), [ResendOutcome::Reopened]);
    assert_eq!(ledger.resend(&tenant(), jobs[3].event, &[b.id]).await.unwrap(), [ResendOutcome::DueNow]);

    // A message that never became an event: replayed from its copy, by the caller.
    let letter = RawLetter {
        id: DeadLetterId(uuid_v7(ledger.now, [3; 10])),
        event_id: None,
        tenant: Some(tenant()),
        event_type: Some("a\0b".to_owned()),
        reason: DeadReason::Malformed,
        error: "not JSON\0".to_owned(),
        subject: Bytes::from_static(b"relay.events.default.a"),
        payload: Bytes::from_static(b"\0{"),
        at: ledger.now,
    };
    ledger.write_letters(std::slice::from_ref(&letter)).await.unwrap();
    ledger
        .write_letters(&[
            letter.clone(),
            RawLetter { id: DeadLetterId(uuid_v7(ledger.now, [4; 10])), tenant: None, ..letter.clone() },
        ])
        .await
        .unwrap();
    assert_eq!(ledger.count("select count(*) from dead_letters where reason = 'malformed'").await, 2);
    assert_eq!(ledger.replay_one(None, letter.id, false).await.unwrap(), ReplayOutcome::NeedsNewEvent);
    let copy = ledger.reserve_new_event(None, letter.id, false, ledger.event().id).await.unwrap().unwrap();
    assert_eq!((&copy.payload, copy.endpoint), (&letter.payload, None));
    let again = ledger.reserve_new_event(None, letter.id, false, ledger.event().id).await.unwrap().unwrap();
    assert_eq!(again, copy, "until it counts, a repetition gets the same id");
    assert!(ledger.mark_replayed(letter.id, copy.id).await.unwrap());
    assert!(!ledger.mark_replayed(letter.id, copy.id).await.unwrap());
    let view = ledger.dead_letter(None, letter.id).await.unwrap().unwrap();
    assert_eq!((view.replay_count, view.replayed_as), (1, Some(copy.id)));
    let fresh = ledger.event().id;
    let refused = ledger.reserve_new_event(None, letter.id, false, fresh).await.unwrap();
    assert_eq!(refused, Err(ReplayOutcome::ReplayedRecently));
    assert_eq!(ledger.reserve_new_event(None, letter.id, true, fresh).await.unwrap().unwrap().id, fresh);
    assert_eq!(ledger.replay_one(None, letter.id, false).await.unwrap(), ReplayOutcome::ReplayedRecently);
    assert_eq!(
        ledger.replay_one(None, DeadLetterId(uuid_v7(ledger.now, [4; 10])), false).await.unwrap(),
        ReplayOutcome::NotReplayable
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_unknown_endpoint_that_exists_now_gets_its_event(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let missing = EndpointId(uuid_v7(ledger.now, [8; 10]));
    let mut planned = ledger.plan(ledger.event(), &[]).await;
    planned.dead = Some(relay_core::protocol::PlannedDead {
        endpoint: missing,
        reason: DeadReason::UnknownEndpoint,
        error: "no such endpoint".to_owned(),
    });
    ledger.dispatch(std::slice::from_ref(&planned)).await.unwrap();
    let letter = DeadLetterId::of_delivery(planned.event.id, missing);
    assert_eq!(ledger.replay_one(None, letter, false).await.unwrap(), ReplayOutcome::UnknownEndpoint);
    let view = ledger.event_view(&tenant(), planned.event.id).await.unwrap().unwrap();
    assert_eq!((view.summary.status, view.deliveries.len()), (Status::DeadLettered, 1));
    let endpoint = ledger.endpoint().await;
    sqlx::query("update endpoints set id = $1 where id = $2")
        .bind(missing.0)
        .bind(endpoint.id.0)
        .execute(&ledger.pool)
        .await
        .unwrap();
    assert!(matches!(ledger.replay_one(None, letter, false).await.unwrap(), ReplayOutcome::Replayed { .. }));
    let stats = ledger.tenant_stats(&tenant()).await.unwrap();
    assert_eq!((stats.opened, stats.dead_lettered, stats.pending()), (1, 0, 1));
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_nobody_will_send_is_closed_and_old_days_are_dropped(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (gone, paused) = (ledger.endpoint().await, ledger.endpoint().await);
    let out = ledger.job(&gone).await;
    ledger.deactivate_endpoint(&tenant(), gone.id).await.unwrap();
    assert_eq!(ledger.close_for_inactive(1000).await.unwrap(), 0, "its job is out");
    ledger.make_due().await;
    assert_eq!(ledger.close_for_inactive(1000).await.unwrap(), 1);
    assert_eq!(
        ledger.text("select convert_from(error, 'UTF8') from dead_letters where reason = 'endpoint_inactive'").await,
        "Endpoint is inactive"
    );
    assert_eq!(ledger.record_one(&out, Outcome::Delivered).await, Recorded::Delivered, "a 2xx counts all the same");

    ledger.job(&paused).await;
    ledger.make_due().await;
    let pause = EndpointChange { paused: Some(true), ..EndpointChange::default() };
    ledger.update_endpoint(&tenant(), paused.id, &pause).await.unwrap();
    let later = Some(ledger.now + chrono::Duration::hours(1));
    let resuming = ledger.begin_resume(&tenant(), paused.id, later).await.unwrap().unwrap();
    assert_eq!(ledger.step_resume(&resuming, 10).await.unwrap(), ResumeStep::Discarded(1));

    let old = ledger.plan(ledger.event_at(ledger.now - chrono::Duration::days(20)), &[&paused]).await;
    ledger.dispatch(std::slice::from_ref(&old)).await.unwrap();
    let day = (ledger.now - chrono::Duration::days(10)).date_naive();
    assert!(ledger.drop_before(day).await.unwrap().is_empty(), "its job is out");
    ledger.make_due().await;
    let dropped = ledger.drop_before(day).await.unwrap();
    assert_eq!(dropped.len(), 4, "{dropped:?}");
    assert_eq!(ledger.event_view(&tenant(), old.event.id).await.unwrap().map(|v| v.summary.id), None);
    let letter = ledger.dead_letter(None, DeadLetterId::of_delivery(old.event.id, paused.id)).await.unwrap().unwrap();
    assert_eq!((letter.reason, letter.payload.as_ref()), (DeadReason::Expired, Some(&old.event.payload)));
    assert_eq!(ledger.replay_one(None, letter.id, false).await.unwrap(), ReplayOutcome::NeedsNewEvent);
    let copy = ledger.reserve_new_event(None, letter.id, false, ledger.event().id).await.unwrap().unwrap();
    assert_eq!((copy.endpoint, copy.payload), (Some(paused.id), old.event.payload.clone()));
    assert!(ledger.drop_before(day).await.unwrap().is_empty());
    assert_eq!(ledger.forget_letters(ledger.now + chrono::Duration::hours(1)).await.unwrap(), 2);
    while ledger.fold().await.unwrap().deltas > 0 {}
    assert!(ledger.count("select count(*) from stats_minutes").await > 0);
    assert!(ledger.forget_history(ledger.now + chrono::Duration::hours(1)).await.unwrap() > 0);
    assert_eq!(
        ledger.count("select (select count(*) from stats_minutes) + (select count(*) from stats_hours)").await,
        0
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn lists_of_events_are_paged_and_filtered(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (a, b) = (ledger.endpoint().await, ledger.endpoint().await);
    for n in 0..10 {
        let job = ledger.job(if n % 2 == 0 { &a } else { &b }).await;
        if n < 4 {
            ledger.record_one(&job, Outcome::Delivered).await;
        }
    }
    let all = ledger.list_events(&tenant(), &EventFilter::default(), &page()).await.unwrap();
    assert_eq!((all.items.len(), all.total, all.next), (10, Some(10), None));
    let second = Window::page(PageRequest { page: 2, size: 4 });
    let second = ledger.list_events(&tenant(), &EventFilter::default(), &second).await.unwrap();
    assert_eq!(second.items[0].id, all.items[4].id);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let part = ledger.list_events(&tenant(), &EventFilter::default(), &Window::after(after, 3)).await.unwrap();
        seen.extend(part.items.iter().map(|e| e.id));
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, all.items.iter().map(|e| e.id).collect::<Vec<_>>());
    let wanted = EventFilter { status: Some(Status::Delivered), endpoint: Some(a.id), ..EventFilter::default() };
    let delivered = ledger.list_events(&tenant(), &wanted, &Window::after(None, 10)).await.unwrap();
    assert_eq!(delivered.items.len(), 2);
    assert!(
        delivered.items.iter().all(|e| e.status == Status::Delivered && e.delivered_at.is_some() && e.attempts == 1)
    );
    let other = EventFilter { event_type: Some("other".to_owned()), ..EventFilter::default() };
    assert!(ledger.list_events(&tenant(), &other, &page()).await.unwrap().items.is_empty());
    let id = delivered.items[0].id;
    let attempts = ledger.attempts_of_event(&tenant(), id, &page()).await.unwrap().unwrap();
    assert_eq!((attempts.items.len(), attempts.total, attempts.items[0].number), (1, Some(1), 1));
    assert!(ledger.attempts_of_event(&tenant(), ledger.event().id, &page()).await.unwrap().is_none());
    assert_eq!(ledger.events_present(&[id, ledger.event().id]).await.unwrap(), [id]);
}
