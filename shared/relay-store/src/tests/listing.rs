//! Lists of events and attempts against a ledger with rows in every state.

use std::collections::BTreeSet;

use relay_core::delivery::Status;
use relay_core::matching::TypeFilter;
use relay_core::page::PageRequest;
use sqlx::PgPool;

use super::*;
use crate::{EventFilter, Window};

const TYPES: [&str; 4] = ["order.created", "order.item.added", "user.created", "user.x-1"];

/// What is known of an event without asking the lists.
#[derive(Clone)]
struct Known {
    id: EventId,
    event_type: &'static str,
    accepted_at: DateTime<Utc>,
    /// Endpoint (0 or 1) and status.
    deliveries: Vec<(usize, Status)>,
}

impl Known {
    fn status(&self, endpoint: Option<usize>) -> Option<Status> {
        let meant = self.deliveries.iter().filter(|(e, _)| endpoint.is_none_or(|wanted| wanted == *e));
        let statuses: Vec<Status> = meant.map(|(_, s)| *s).collect();
        (endpoint.is_none() || !statuses.is_empty()).then(|| Status::of_event(statuses))
    }
}

/// Writes `n` events of every kind, one in ten of another tenant.
async fn fill(ledger: &Ledger, endpoints: &[EndpointId; 2], from: usize, n: usize) -> Vec<Known> {
    use Status::*;
    let kinds = [Delivered, Failed, Pending, Delivering, DeadLettered, Discarded];
    let mut all = Vec::new();
    for i in from..from + n {
        let accepted_at = ledger.now - chrono::Duration::seconds(i64::try_from(3 * i).unwrap());
        let key = IdempotencyKey::parse(&format!("k{i}")).unwrap();
        let id = if i % 7 == 0 {
            EventId::keyed(&tenant(), &key, accepted_at)
        } else {
            EventId::fresh(accepted_at, random10())
        };
        let mut deliveries = Vec::new();
        if i % 5 > 0 {
            deliveries.push((0, kinds[i % kinds.len()]));
        }
        if i % 3 == 0 {
            deliveries.push((1, kinds[(i / 3) % kinds.len()]));
        }
        let owner = if i % 10 == 9 { "_relay" } else { "default" };
        let event_type = TYPES[i % TYPES.len()];
        sqlx::query(
            "insert into events (id, tenant, type, accepted_at, fanout, payload) values ($1, $2, $3, $4, $5, '{}')",
        )
        .bind(id.0)
        .bind(owner)
        .bind(event_type)
        .bind(accepted_at)
        .bind(i32::try_from(deliveries.len()).unwrap())
        .execute(&ledger.pool)
        .await
        .unwrap();
        for (e, status) in &deliveries {
            let open = "insert into open_deliveries (event_id, endpoint_id, tenant, leased, due_at, attempts, claim) values ($1, $2, $3, ";
            let closed = "insert into closed_deliveries (event_id, endpoint_id, tenant, claim, attempts, base, status) values ($1, $2, $3, 1, 1, 0, ";
            let sql = match status {
                Failed => format!("{open} false, now() + interval '1 hour', 1, 1)"),
                Pending => format!("{open} false, now(), 0, 1)"),
                Delivering => format!("{open} true, now() + interval '1 hour', 1, 1)"),
                Delivered => format!("{closed} 1)"),
                DeadLettered => format!("{closed} 2)"),
                _ => format!("{closed} 3)"),
            };
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(id.0)
                .bind(endpoints[*e].0)
                .bind(owner)
                .execute(&ledger.pool)
                .await
                .unwrap();
            if *status == DeadLettered {
                let letter = "insert into dead_letters (event_id, endpoint_id, id, tenant, reason) values ($1, $2, gen_random_uuid(), $3, 'exhausted')";
                sqlx::query(letter).bind(id.0).bind(endpoints[*e].0).bind(owner).execute(&ledger.pool).await.unwrap();
            }
        }
        if owner == "default" {
            all.push(Known { id, event_type, accepted_at, deliveries });
        }
    }
    all
}

async fn walk(ledger: &Ledger, filter: &EventFilter, limit: i64) -> Vec<EventId> {
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let part = ledger.list_events(&tenant(), filter, &Window::after(after, limit)).await.unwrap();
        assert!(part.items.len() <= usize::try_from(limit).unwrap());
        ids.extend(part.items.iter().map(|e| e.id));
        after = part.next;
        if after.is_none() {
            return ids;
        }
    }
}

async fn two_endpoints(ledger: &Ledger) -> [EndpointId; 2] {
    [ledger.endpoint().await.id, ledger.endpoint().await.id]
}

#[sqlx::test(migrations = "../../migrations")]
async fn every_filter_finds_what_it_means_and_nothing_twice(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoints = two_endpoints(&ledger).await;
    let all = fill(&ledger, &endpoints, 0, 240).await;
    let patterns = [None, Some("order.created"), Some("order.*"), Some("order.>"), Some("*.x-1"), Some("none")];
    let span = (ledger.now - chrono::Duration::seconds(400), ledger.now - chrono::Duration::seconds(100));
    for pattern in patterns {
        for status in std::iter::once(None).chain(Status::ALL.map(Some)) {
            for endpoint in [None, Some(0), Some(1)] {
                for (after, before) in [(None, None), (Some(span.0), Some(span.1))] {
                    let event_type = pattern.map(str::to_owned);
                    let filter =
                        EventFilter { event_type, endpoint: endpoint.map(|e| endpoints[e]), status, after, before };
                    let types = TypeFilter::parse(&pattern.map(str::to_owned).into_iter().collect::<Vec<_>>()).unwrap();
                    let meant: BTreeSet<EventId> = all
                        .iter()
                        .filter(|e| types.matches(e.event_type))
                        .filter(|e| e.status(endpoint).is_some_and(|s| status.is_none_or(|wanted| wanted == s)))
                        .filter(|e| after.is_none_or(|t| e.accepted_at > t) && before.is_none_or(|t| e.accepted_at < t))
                        .map(|e| e.id)
                        .collect();
                    let found = walk(&ledger, &filter, 30).await;
                    assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), meant, "{filter:?}");
                    assert_eq!(found.len(), meant.len(), "{filter:?} repeats");
                    let page = Window::page(PageRequest { page: 2, size: 20 });
                    let page = ledger.list_events(&tenant(), &filter, &page).await.unwrap();
                    assert_eq!(page.total, Some(i64::try_from(meant.len()).unwrap()), "{filter:?}");
                    let ids: Vec<EventId> = page.items.iter().map(|e| e.id).collect();
                    assert_eq!(ids, found.iter().copied().skip(20).take(20).collect::<Vec<_>>(), "{filter:?}");
                }
            }
        }
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_walk_repeats_and_misses_nothing_while_events_arrive(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let endpoints = two_endpoints(&ledger).await;
    // What comes later is newer than what is there, as in life; some of it lies between.
    let there = fill(&ledger, &endpoints, 400, 200).await;
    let filters = [
        EventFilter::default(),
        EventFilter { event_type: Some("order.>".to_owned()), ..EventFilter::default() },
        EventFilter { endpoint: Some(endpoints[1]), ..EventFilter::default() },
        EventFilter { status: Some(Status::DeadLettered), ..EventFilter::default() },
        EventFilter { status: Some(Status::Failed), ..EventFilter::default() },
    ];
    let mut next_new = 399;
    for filter in filters {
        let meant: BTreeSet<EventId> = walk(&ledger, &filter, 200).await.into_iter().collect();
        assert!(meant.len() > 20 && meant.len() <= there.len() + 400);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let part = ledger.list_events(&tenant(), &filter, &Window::after(after, 7)).await.unwrap();
            seen.extend(part.items.iter().map(|e| e.id));
            after = part.next;
            if after.is_none() {
                break;
            }
            fill(&ledger, &endpoints, next_new, 1).await;
            next_new -= 1;
        }
        let distinct: BTreeSet<EventId> = seen.iter().copied().collect();
        assert_eq!(distinct.len(), seen.len(), "{filter:?} repeats");
        assert!(meant.is_subset(&distinct), "{filter:?} misses");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_search_that_finds_little_says_where_to_go_on(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    sqlx::query(
        "insert into events (id, tenant, type, accepted_at, fanout, payload)
        select (left(replace(relay_day_floor((now() at time zone 'utc')::date)::text, '-', ''), 12) || '7' || right(md5(n::text), 19))::uuid,
            'default', case n when 20000 then 'rare.one' else 'a.b' end, now() - n * interval '1 millisecond', 0, '{}'
        from generate_series(1, 20000) n",
    )
    .execute(&ledger.pool)
    .await
    .unwrap();
    let wanted = EventFilter { event_type: Some("rare.*".to_owned()), ..EventFilter::default() };
    let page = ledger.list_events(&tenant(), &wanted, &Window::page(PageRequest::default())).await.unwrap();
    assert!(page.items.is_empty() && page.total.is_none() && page.next.is_some());
    assert_eq!(walk(&ledger, &wanted, 10).await.len(), 1);
    let exact = EventFilter { event_type: Some("rare.one".to_owned()), ..EventFilter::default() };
    let page = ledger.list_events(&tenant(), &exact, &Window::page(PageRequest::default())).await.unwrap();
    assert_eq!((page.items.len(), page.total, page.next), (1, Some(1), None));
}

#[sqlx::test(migrations = "../../migrations")]
async fn attempts_are_listed_by_event_and_by_endpoint(pool: PgPool) {
    let ledger = Ledger::new(pool).await;
    let [one, other] = [ledger.endpoint().await, ledger.endpoint().await];
    let mut written = Vec::new();
    for i in 0..30 {
        let job = ledger.job(if i % 3 == 0 { &other } else { &one }).await;
        let mut result = ledger.result(&job, Outcome::Delivered);
        let at = ledger.now + chrono::Duration::milliseconds(i);
        let evidence = result.decisive.evidence.as_mut().unwrap();
        (evidence.id, evidence.attempted_at) = (AttemptId(uuid_v7(at, random10())), at);
        written.push((job.endpoint, evidence.id));
        ledger.record(&[result], "pod", &[]).await.unwrap();
    }
    let of_one: Vec<AttemptId> = written.iter().rev().filter(|(e, _)| *e == one.id).map(|(_, id)| *id).collect();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let part = ledger.attempts_of_endpoint(one.id, &Window::after(after, 7)).await.unwrap();
        seen.extend(part.items.iter().map(|a| a.id));
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, of_one);
    let page = Window::page(PageRequest { page: 2, size: 15 });
    let page = ledger.attempts_of_endpoint(one.id, &page).await.unwrap();
    assert_eq!((page.total, page.items.len()), (Some(20), 5));
}
