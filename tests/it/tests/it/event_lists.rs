//! Lists of events and attempts: filters, pages, walks.

use std::collections::BTreeSet;

use it::{Api, Reply, World};
use serde_json::{Value, json};

/// Walks a list to its end; the ids of its items.
async fn walk(api: &Api, list: &str, limit: u32) -> anyhow::Result<Vec<String>> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let glue = if list.contains('?') { '&' } else { '?' };
        let part = api.get(&format!("{list}{glue}cursor={cursor}&limit={limit}")).await?.expect(200);
        assert!(part.body.get("total").is_none(), "{}", part.body);
        ids.extend(items(&part.body).iter().map(|i| i["id"].as_str().unwrap().to_owned()));
        match part.body["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => return Ok(ids),
        }
    }
}

fn items(page: &Value) -> &Vec<Value> {
    page["items"].as_array().unwrap_or_else(|| panic!("no items in {page}"))
}

#[tokio::test]
async fn events_are_found_by_type_endpoint_status_and_time() -> anyhow::Result<()> {
    let w = World::start().await?;
    let fine = w.api.endpoint(&w.sink.url("/fine"), json!({})).await?.text("id");
    w.sink.script("/refuses", vec![Reply::status(400); 2]);
    let refuses = w.api.endpoint(&w.sink.url("/refuses"), json!({"event_types_filter": ["order.*"]})).await?.text("id");
    let mut sent = Vec::new();
    for event_type in ["order.created", "order.paid", "user.created", "order.item.added"] {
        let body = json!({"event_type": event_type, "payload": {"type": event_type}});
        sent.push(w.api.post("/events", &body).await?.expect(202).text("id"));
    }
    for (id, status) in sent.iter().zip(["dead_lettered", "dead_lettered", "delivered", "delivered"]) {
        w.api.wait_status(id, status).await?;
    }
    let newest_first = |indexes: &[usize]| indexes.iter().map(|i| sent[*i].clone()).collect::<Vec<_>>();
    let after = w.api.get(&format!("/events/{}", sent[1])).await?.expect(200).text("created_at");
    for (filter, wanted) in [
        (String::new(), vec![3, 2, 1, 0]),
        ("event_type=order.paid".to_owned(), vec![1]),
        ("event_type=order.*".to_owned(), vec![1, 0]),
        ("event_type=order.%3E".to_owned(), vec![3, 1, 0]),
        ("event_type=nothing".to_owned(), vec![]),
        ("status=dead_lettered".to_owned(), vec![1, 0]),
        ("status=delivered".to_owned(), vec![3, 2]),
        ("status=unmatched".to_owned(), vec![]),
        (format!("endpoint_id={refuses}"), vec![1, 0]),
        (format!("endpoint_id={fine}&status=delivered"), vec![3, 2, 1, 0]),
        (format!("endpoint_id={fine}&event_type=*.created"), vec![2, 0]),
        (format!("created_after={after}"), vec![3, 2]),
        (format!("created_before={after}"), vec![0]),
    ] {
        let wanted = newest_first(&wanted);
        let page = w.api.get(&format!("/events?size=50&{filter}")).await?.expect(200);
        let found: Vec<&str> = items(&page.body).iter().map(|i| i["id"].as_str().unwrap()).collect();
        assert_eq!(found, wanted, "{filter}");
        assert_eq!(page.body["total"], wanted.len(), "{filter}: {}", page.body);
        assert_eq!(walk(&w.api, &format!("/events?{filter}"), 1).await?, wanted, "{filter}");
    }
    for bad in
        ["event_type=a..b", "status=done", "endpoint_id=7", "created_after=today", "created_before=1", "cursor=x"]
    {
        w.api.get(&format!("/events?{bad}")).await?.expect_problem(422, "validation-failed");
    }
    Ok(())
}

#[tokio::test]
async fn attempts_are_listed_by_event_and_by_endpoint() -> anyhow::Result<()> {
    let w = World::start().await?;
    let one = w.api.endpoint(&w.sink.url("/one"), json!({})).await?.text("id");
    w.api.endpoint(&w.sink.url("/two"), json!({})).await?;
    let mut sent = Vec::new();
    for n in 0..5 {
        sent.push(w.api.post("/events", &json!({"event_type": "a", "payload": n})).await?.expect(202).text("id"));
        w.api.wait_status(&sent[n], "delivered").await?;
    }
    let page = w.api.get(&format!("/endpoints/{one}/attempts?page=2&size=2")).await?.expect(200);
    assert_eq!((page.body["total"].as_i64(), page.body["pages"].as_i64()), (Some(5), Some(3)));
    let events: Vec<&str> = items(&page.body).iter().map(|a| a["event_id"].as_str().unwrap()).collect();
    assert_eq!(events, [&sent[2], &sent[1]], "newest first");
    assert!(items(&page.body).iter().all(|a| a["endpoint_id"] == *one && a["http_status_code"] == 200));
    assert_eq!(walk(&w.api, &format!("/endpoints/{one}/attempts"), 2).await?.len(), 5);

    let of_event = w.api.get(&format!("/events/{}/attempts", sent[0])).await?.expect(200);
    assert_eq!(of_event.body["total"], 2);
    assert_eq!(walk(&w.api, &format!("/events/{}/attempts", sent[0]), 1).await?.len(), 2);
    let unknown = uuid::Uuid::from_u128(9);
    w.api.get(&format!("/endpoints/{unknown}/attempts")).await?.expect_problem(404, "endpoint-not-found");
    w.api.get(&format!("/endpoints/{one}/attempts?limit=0")).await?.expect_problem(422, "validation-failed");
    Ok(())
}

#[tokio::test]
async fn a_walk_repeats_and_misses_nothing_while_events_arrive() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = w.api.endpoint(&w.sink.url("/e"), json!({})).await?.text("id");
    let mut there = BTreeSet::new();
    for n in 0..30 {
        there.insert(w.api.event(&endpoint, "a", json!(n)).await?);
    }
    for id in &there {
        w.api.wait_status(id, "delivered").await?;
    }
    for list in ["/events".to_owned(), format!("/events?endpoint_id={endpoint}"), "/events?event_type=*".to_owned()] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let glue = if list.contains('?') { '&' } else { '?' };
            let part = w.api.get(&format!("{list}{glue}limit=4&cursor={cursor}")).await?.expect(200);
            seen.extend(items(&part.body).iter().map(|i| i["id"].as_str().unwrap().to_owned()));
            let Some(next) = part.body["next_cursor"].as_str() else { break };
            cursor = next.to_owned();
            let id = w.api.event(&endpoint, "b", json!(0)).await?;
            w.api.get(&format!("/events/{id}")).await?.expect(200);
        }
        let distinct: BTreeSet<String> = seen.iter().cloned().collect();
        assert_eq!(distinct.len(), seen.len(), "{list} repeats");
        assert!(there.is_subset(&distinct), "{list} misses");
    }
    Ok(())
}
