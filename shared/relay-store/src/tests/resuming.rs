//! The end of a pause without its backlog.

use chrono::{DateTime, Duration, SubsecRound, Utc};
use relay_core::delivery::Status;
use relay_core::endpoint::Endpoint;
use relay_core::ids::{EventId, TenantId};
use sqlx::PgPool;

use super::{Ledger, tenant};
use crate::{EndpointChange, ResumeStep};

async fn pause(ledger: &Ledger, paused: bool) -> Endpoint {
    let endpoint = ledger.endpoint().await;
    let change = EndpointChange { paused: Some(paused), ..EndpointChange::default() };
    ledger.update_endpoint(&tenant(), endpoint.id, &change).await.unwrap().unwrap()
}

/// An event that was accepted at `at` and has a leased delivery.
async fn stored(ledger: &Ledger, endpoint: &Endpoint, at: DateTime<Utc>) -> EventId {
    let planned = ledger.plan(ledger.event_at(at), &[endpoint]).await;
    ledger.dispatch(std::slice::from_ref(&planned)).await.unwrap();
    planned.event.id
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_is_left_out_is_discarded_before_the_pause_ends(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoint = pause(&ledger, true).await;
    let since = (ledger.now - Duration::minutes(10)).trunc_subsecs(6);
    let old = stored(&ledger, &endpoint, since - Duration::seconds(1)).await;
    let older = stored(&ledger, &endpoint, since - Duration::seconds(2)).await;
    let young = stored(&ledger, &endpoint, since).await;

    assert!(ledger.begin_resume(&TenantId::trusted("nobody"), endpoint.id, None).await.unwrap().is_none());
    let resuming = ledger.begin_resume(&tenant(), endpoint.id, Some(since)).await.unwrap().unwrap();
    assert_eq!(ledger.resuming().await.unwrap(), std::slice::from_ref(&resuming));
    assert_eq!(ledger.step_resume(&resuming, 10).await.unwrap(), ResumeStep::Waits, "their jobs are out");
    ledger.make_due().await;
    assert_eq!(ledger.step_resume(&resuming, 1).await.unwrap(), ResumeStep::Discarded(1));
    let now = ledger.get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap();
    assert_eq!((now.paused, now.discard_before), (true, Some(since)));
    assert_eq!(ledger.step_resume(&resuming, 10).await.unwrap(), ResumeStep::Discarded(1));
    let version = ledger.version().await;
    assert_eq!(ledger.step_resume(&resuming, 10).await.unwrap(), ResumeStep::Done);
    let now = ledger.get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap();
    assert_eq!((now.paused, now.discard_before), (false, None));
    assert!(now.version > version, "the pods hear of it");
    assert_eq!(ledger.step_resume(&resuming, 10).await.unwrap(), ResumeStep::Done, "by another one");

    for gone in [old, older] {
        let view = ledger.event_view(&tenant(), gone).await.unwrap().unwrap();
        assert_eq!(view.summary.status, Status::Discarded);
        assert!(view.deliveries[0].last_error.as_ref().unwrap().contains("resumed"));
    }
    let view = ledger.event_view(&tenant(), young).await.unwrap().unwrap();
    assert_eq!(view.summary.status, Status::Pending);
}

#[sqlx::test(migrations = "../../migrations")]
async fn another_word_of_the_user_ends_a_resume(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let running = pause(&ledger, false).await;
    assert!(ledger.begin_resume(&tenant(), running.id, None).await.unwrap().is_none(), "it isn't paused");
    let endpoint = pause(&ledger, true).await;
    stored(&ledger, &endpoint, ledger.now).await;
    let resuming = ledger.begin_resume(&tenant(), endpoint.id, None).await.unwrap().unwrap();
    let other = EndpointChange { name: Some("other".to_owned()), ..EndpointChange::default() };
    let changed = ledger.update_endpoint(&tenant(), endpoint.id, &other).await.unwrap().unwrap();
    assert_eq!(changed.discard_before, Some(resuming.before));
    let change = EndpointChange { paused: Some(true), ..EndpointChange::default() };
    let changed = ledger.update_endpoint(&tenant(), endpoint.id, &change).await.unwrap().unwrap();
    assert_eq!((changed.paused, changed.discard_before), (true, None));
    ledger.make_due().await;
    assert!(ledger.resuming().await.unwrap().is_empty());
    assert_eq!(ledger.step_resume(&resuming, 10).await.unwrap(), ResumeStep::Done);
    assert!(ledger.get_endpoint(&tenant(), endpoint.id).await.unwrap().unwrap().paused);
}
