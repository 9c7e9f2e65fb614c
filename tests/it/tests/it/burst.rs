//! Thousands of retries that are due at once: they drain, evenly, and new events for other endpoints don't stand behind
//! them. Asserted by the order in which things arrive. A new event for an endpoint of the burst comes too, but may stand
//! behind what is due there already: where an endpoint is full, what is oldest goes first.

use std::collections::HashMap;

use it::World;
use it::sink::Reply;
use serde_json::json;

use crate::servers;

/// Retries due at once, over all endpoints of the burst.
const RETRIES: usize = 6_000;
const ENDPOINTS: usize = 6;

#[tokio::test]
async fn a_burst_of_retries_drains_evenly_and_new_events_pass_it() -> anyhow::Result<()> {
    let w = World::start().await?;
    let path = |i: usize| format!("/burst/{i}");
    let mut ids = Vec::new();
    for i in 0..ENDPOINTS {
        w.sink.script(&path(i), [Reply::status(200).after(std::time::Duration::from_millis(20))]);
        ids.push(w.api.endpoint(&w.sink.url(&path(i)), json!({})).await?.text("id"));
    }
    let other = w.api.endpoint(&w.sink.url("/other"), json!({})).await?.text("id");

    let list: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    let statement = format!(
        "begin;
        select relay_make_partitions((now() at time zone 'utc')::date - 1);
        create temporary table burst on commit drop as
            select (left(replace(relay_day_floor((now() at time zone 'utc')::date - 1)::text, '-', ''), 12) || '7' || right(md5('b' || n), 19))::uuid as id,
                (array[{}]::uuid[])[n % {ENDPOINTS} + 1] as endpoint_id
            from generate_series(1, {RETRIES}) n;
        insert into events (id, tenant, type, accepted_at, fanout, payload)
            select id, 'default', 'burst.event', now(), 1, convert_to('{{}}', 'UTF8') from burst;
        insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base)
            select id, endpoint_id, 'default', now(), false, 1, 1, 0 from burst;
        commit",
        list.join(",")
    );
    servers::sql(&w, &statement)?;

    // The burst is on its way when the new events come.
    w.sink.wait_until(|all| all.len() >= 100).await.map_err(|all| anyhow::anyhow!("{} came", all.len()))?;
    let to_other = w.api.event(&other, "new.event", json!("other")).await?;
    let to_same = w.api.event(&ids[0], "new.event", json!("same")).await?;
    let all_there = RETRIES + 2;
    w.sink.wait_until(|all| all.len() >= all_there).await.map_err(|all| anyhow::anyhow!("{} came", all.len()))?;

    let order = w.sink.all();
    assert_eq!(order.len(), all_there, "none comes twice");
    let place = |event: &str| order.iter().position(|r| r.header("webhook-id") == event).unwrap();
    let behind = |at: usize| order[at..].iter().filter(|r| r.path.starts_with("/burst")).count();
    let other_at = place(&to_other);
    assert!(behind(other_at) > RETRIES / 2, "an event for another endpoint: {other_at} of {RETRIES} came before it");
    assert_eq!(order[place(&to_same)].path, path(0));

    // Half way, each endpoint had between a half and twice its share.
    let mut came: HashMap<&str, usize> = HashMap::new();
    for received in order.iter().filter(|r| r.path.starts_with("/burst")).take(RETRIES / 2) {
        *came.entry(&received.path).or_default() += 1;
    }
    let share = RETRIES / 2 / ENDPOINTS;
    assert!(came.len() == ENDPOINTS && came.values().all(|n| (share / 2..=share * 2).contains(n)), "{came:?}");
    Ok(())
}
