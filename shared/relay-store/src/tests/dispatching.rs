use bytes::Bytes;
use chrono::Duration;
use relay_core::delivery::DeadReason;
use relay_core::event::{Event, EventType};
use relay_core::ids::EndpointId;
use relay_core::protocol::{PlannedDead, PlannedEvent};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Ledger, tenant};
use crate::DispatchOutcome::{Alias, Expired, Inserted, Poison, Present, Stale};
use crate::{ErrorKind, StoreError};

#[sqlx::test(migrations = "../../migrations")]
async fn an_event_is_stored_once_with_everything_that_hangs_on_it(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let (a, b) = (ledger.endpoint().await, ledger.endpoint().await);
    let unmatched = ledger.plan(ledger.event(), &[]).await;
    let mut fanned = ledger.plan(ledger.event(), &[&a, &b]).await;
    fanned.deliveries[1].leased = false;
    let with_dead = |dead| PlannedEvent { dead: Some(dead), ..unmatched.clone() };
    let mut inactive = with_dead(PlannedDead {
        endpoint: a.id,
        reason: DeadReason::EndpointInactive,
        error: "Endpoint is inactive".to_owned(),
    });
    inactive.event = ledger.event();
    let mut unknown = with_dead(PlannedDead {
        endpoint: EndpointId(Uuid::from_u128(9)),
        reason: DeadReason::UnknownEndpoint,
        error: "no such endpoint".to_owned(),
    });
    unknown.event = ledger.event();
    let batch = [unmatched, fanned, inactive, unknown];
    let done = ledger.dispatch(&batch).await.unwrap();
    assert_eq!(done.outcomes, [Inserted, Inserted, Inserted, Inserted]);
    let again = ledger.dispatch(&batch).await.unwrap();
    assert_eq!(again.outcomes, [Present, Present, Present, Present]);

    assert_eq!(ledger.count("select count(*) from events").await, 4);
    assert_eq!(
        ledger
            .count(
                "select count(*) from open_deliveries where leased and claim = 1 and due_at > now() + interval '50 s'"
            )
            .await,
        1
    );
    assert_eq!(
        ledger.count("select count(*) from open_deliveries where not leased and claim = 0 and due_at <= now()").await,
        1
    );
    assert_eq!(ledger.count("select count(*) from closed_deliveries where status = 2 and attempts = 0").await, 1);
    assert_eq!(
        ledger
            .count("select count(*) from dead_letters where reason = 'unknown_endpoint' and payload is not null")
            .await,
        1
    );
    assert_eq!(
        ledger.count("select count(*) from dead_letters where reason = 'endpoint_inactive' and payload is null").await,
        1
    );
    let stats = ledger.tenant_stats(&tenant()).await.unwrap();
    assert_eq!((stats.events, stats.unmatched, stats.opened, stats.dead_lettered, stats.pending()), (4, 1, 4, 2, 2));
    while ledger.fold().await.unwrap().deltas > 0 {}
    assert_eq!(ledger.tenant_stats(&tenant()).await.unwrap(), stats);
    assert_eq!(ledger.endpoint_stats(&tenant(), a.id).await.unwrap().opened, 2);
}

#[sqlx::test(migrations = "../../migrations")]
async fn equal_keys_are_one_event_on_any_day_and_pod(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let today = ledger.now;
    let (yesterday, tomorrow) = (today - Duration::days(1), today + Duration::days(1));

    // Two dispatchers at once: one event.
    let same = ledger.plan(ledger.keyed("k", today), &[&endpoint]).await;
    let (left, right) = (vec![same.clone()], vec![same.clone()]);
    let (one, two) = tokio::join!(ledger.dispatch(&left), ledger.dispatch(&right));
    let mut outcomes = [one.unwrap().outcomes, two.unwrap().outcomes].concat();
    outcomes.sort_by_key(|o| *o != Inserted);
    assert_eq!(outcomes, [Inserted, Present]);

    // The days beside it, in either order, again and again: aliases.
    for day in [yesterday, tomorrow, yesterday] {
        let neighbour = ledger.plan(ledger.keyed("k", day), &[&endpoint]).await;
        assert_eq!(ledger.dispatch(std::slice::from_ref(&neighbour)).await.unwrap().outcomes, [Alias(same.event.id)]);
        let view = ledger.event_view(&tenant(), neighbour.event.id).await.unwrap().unwrap();
        assert_eq!(view.summary.id, same.event.id);
        let keyed = ledger.keyed_event(&tenant(), &[neighbour.event.id]).await.unwrap().unwrap();
        assert_eq!(keyed.key.as_deref(), Some("k"));
    }
    assert_eq!(ledger.count("select count(*) from events").await, 1);
    assert_eq!(ledger.count("select count(*) from open_deliveries").await, 1);
    assert_eq!(ledger.count("select count(*) from event_aliases").await, 2);

    // Folded before: the loser's id becomes an alias with the winner's statement.
    let mut folded = ledger.plan(ledger.keyed("m", today), &[&endpoint]).await;
    folded.aliases = vec![ledger.keyed("m", yesterday).id];
    assert_eq!(ledger.dispatch(std::slice::from_ref(&folded)).await.unwrap().outcomes, [Inserted]);
    assert_eq!(ledger.resolve_event(&tenant(), folded.aliases[0]).await.unwrap(), Some(folded.event.id));
    // Another tenant's look-up finds nothing.
    assert_eq!(
        ledger.resolve_event(&relay_core::ids::TenantId::trusted("other"), folded.event.id).await.unwrap(),
        None
    );
    // Two days later the key is new.
    let later = ledger.plan(ledger.keyed("k", today + Duration::days(2)), &[&endpoint]).await;
    assert_eq!(ledger.dispatch(&[later]).await.unwrap().outcomes, [Inserted]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn nothing_is_stored_for_a_directory_that_has_moved_on(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let stale = ledger.plan(ledger.event(), &[&endpoint]).await;
    ledger.endpoint().await;
    let fresh = ledger.plan(ledger.event(), &[&endpoint]).await;
    let mut nobody = ledger.plan(ledger.event(), &[]).await;
    nobody.event.tenant = relay_core::ids::TenantId::trusted("nobody");
    let done = ledger.dispatch(&[stale.clone(), fresh, nobody]).await.unwrap();
    assert_eq!(done.outcomes, [Stale, Inserted, Stale]);
    assert_eq!(ledger.count("select count(*) from events").await, 1);

    // Under the lock a change waits, so that what was matched can't be stale.
    let lock = ledger.lock_versions(&[tenant()]).await.unwrap();
    let again = ledger.plan(stale.event, &[&endpoint]).await;
    let change = {
        let ledger = ledger.store.clone();
        let id = endpoint.id;
        tokio::spawn(async move { ledger.deactivate_endpoint(&tenant(), id).await })
    };
    super::connections::wait_for_lock(&ledger.pool).await;
    assert_eq!(ledger.dispatch(&[again]).await.unwrap().outcomes, [Inserted]);
    lock.release().await.unwrap();
    assert!(change.await.unwrap().unwrap());
    assert!(!ledger.get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap().is_active);
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_poison_event_does_not_disturb_499_others(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let good = ledger.plan(ledger.event(), &[&endpoint]).await;
    let mut batch: Vec<PlannedEvent> =
        (0..500).map(|_| PlannedEvent { event: ledger.event(), ..good.clone() }).collect();
    batch[237].event.event_type = EventType::trusted("bad\0type");
    let done = ledger.dispatch(&batch).await.unwrap();
    assert!(matches!(&done.outcomes[237], Poison(words) if words.contains("22021")), "{:?}", done.outcomes[237]);
    assert_eq!(done.outcomes.iter().filter(|o| **o == Inserted).count(), 499);
    assert_eq!(ledger.count("select count(*) from events").await, 499);
    assert_eq!(ledger.count("select count(*) from open_deliveries").await, 499);
}

#[sqlx::test(migrations = "../../migrations")]
async fn partitions_are_made_on_demand_for_days_within_reach(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let old = ledger.plan(ledger.event_at(ledger.now - Duration::days(20)), &[&endpoint]).await;
    let lost = ledger.plan(ledger.event_at(ledger.now - Duration::days(40)), &[&endpoint]).await;
    let far = ledger.plan(ledger.event_at(ledger.now + Duration::days(400)), &[&endpoint]).await;
    let good = ledger.plan(ledger.event(), &[&endpoint]).await;
    let done = ledger.dispatch(&[old, lost, good, far]).await.unwrap();
    assert!(matches!(done.outcomes[..], [Inserted, Expired(_), Inserted, Expired(_)]), "{:?}", done.outcomes);
    ledger.make_ahead().await.unwrap();
    let refused = ledger.ensure_partitions([(ledger.now - Duration::days(60)).date_naive()]).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::MissingPartition);
}

/// PostgreSQL's own method takes a large part of a core for payloads of some kilobytes.
#[sqlx::test(migrations = "../../migrations")]
async fn large_payloads_are_compressed_cheaply_also_in_partitions_made_later(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let payload = Bytes::from(format!("[{}0]", r#"{"name": "value"}, "#.repeat(1_000)));
    let large = |at| Event { payload: payload.clone(), ..ledger.event_at(at) };
    let today = ledger.plan(large(ledger.now), &[&endpoint]).await;
    let on_demand = ledger.plan(large(ledger.now - Duration::days(20)), &[&endpoint]).await;
    let done = ledger.dispatch(&[today, on_demand]).await.unwrap();
    assert_eq!(done.outcomes, [Inserted, Inserted]);
    let lz4 = "select count(*) from events where pg_column_compression(payload) = 'lz4'";
    assert_eq!(ledger.count(lz4).await, 2);
}

#[sqlx::test(migrations = "../../migrations")]
async fn dispatchers_with_the_same_keys_do_not_deadlock(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = ledger.endpoint().await;
    let template = ledger.plan(ledger.event(), &[&endpoint]).await;
    let batch: Vec<PlannedEvent> = (0..100)
        .map(|n| PlannedEvent { event: ledger.keyed(&format!("k{n}"), ledger.now), ..template.clone() })
        .collect();
    let reversed: Vec<PlannedEvent> = batch.iter().rev().cloned().collect();
    let (one, two, three) = tokio::join!(ledger.dispatch(&batch), ledger.dispatch(&reversed), ledger.dispatch(&batch));
    let inserted: usize = [one, two, three]
        .into_iter()
        .map(|d: Result<_, StoreError>| d.unwrap().outcomes.iter().filter(|o| **o == Inserted).count())
        .sum();
    assert_eq!(inserted, 100);
    assert_eq!(ledger.count("select count(*) from open_deliveries").await, 100);
}
