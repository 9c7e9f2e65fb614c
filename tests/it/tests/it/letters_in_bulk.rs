//! Many dead letters: filters, groups, replays as new events, jobs with a pace, and their manager's death.

use std::collections::BTreeMap;

use it::{Api, Reply, World};
use serde_json::{Value, json};

/// An endpoint whose events are refused: `n` of them, until the sink's script for its path is changed.
async fn refused(w: &World, path: &str, event_type: &str, n: usize) -> anyhow::Result<(String, Vec<String>)> {
    w.sink.script(path, [Reply::status(400)]);
    let settings = json!({"event_types_filter": [event_type], "circuit_failure_threshold": 100});
    let endpoint = w.api.endpoint(&w.sink.url(path), settings).await?.text("id");
    let mut events = Vec::new();
    for i in 0..n {
        let event = w.api.event(&endpoint, event_type, json!({"i": i})).await?;
        // One after the other: letters of one batch have the same time.
        w.api.wait_status(&event, "dead_lettered").await?;
        events.push(event);
    }
    Ok((endpoint, events))
}

/// How often the sink saw each event.
fn seen(w: &World, path: &str) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for received in w.sink.received(path) {
        *seen.entry(received.header("x-webhook-event-id").to_owned()).or_default() += 1;
    }
    seen
}

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn filters_groups_detail_and_a_new_event() -> anyhow::Result<()> {
    let w = World::start().await?;
    let (a, events) = refused(&w, "/a", "order.created", 3).await?;
    let (b, _) = refused(&w, "/b", "order.paid", 1).await?;
    let all = w.api.get("/dlq").await?.expect(200).body;
    assert_eq!((ids(&all).len(), &all["total"]), (4, &json!(4)), "the self-check's own are hidden: {all}");
    let middle = all["items"][2]["dead_lettered_at"].as_str().unwrap().to_owned();
    for (query, n) in [
        (format!("endpoint_id={a}"), 3),
        ("event_type=order.paid".to_owned(), 1),
        ("reason=permanent".to_owned(), 4),
        ("reason=gone".to_owned(), 0),
        (format!("after={middle}"), 2),
        (format!("before={middle}"), 1),
        (format!("endpoint_id={b}&before={middle}"), 0),
    ] {
        let page = w.api.get(&format!("/dlq?{query}")).await?.expect(200).body;
        assert_eq!(ids(&page).len(), n, "{query}: {page}");
    }
    for query in ["after=x", "event_type=%00", "before=-0001-01-01T00:00:00Z", "reason=x"] {
        w.api.get(&format!("/dlq?{query}")).await?.expect_problem(422, "validation-failed");
    }
    let first = w.api.get("/dlq?limit=3").await?.expect(200).body;
    let rest = format!("/dlq?limit=3&cursor={}", first["next_cursor"].as_str().unwrap());
    let rest = w.api.get(&rest).await?.expect(200).body;
    assert_eq!([ids(&first), ids(&rest)].concat(), ids(&all));
    assert!(rest["next_cursor"].is_null());

    let groups = w.api.get("/dlq/groups").await?.expect(200).body;
    assert_eq!(groups["total"], 2, "{groups}");
    let of_a = groups["items"].as_array().unwrap().iter().find(|g| g["endpoint_id"] == json!(a)).unwrap();
    assert_eq!((&of_a["reason"], &of_a["count"], &of_a["more"]), (&json!("permanent"), &json!(3), &json!(false)));
    assert!(of_a["first_at"].as_str() < of_a["last_at"].as_str(), "{of_a}");
    let example = of_a["example_id"].as_str().unwrap().to_owned();
    let one = w.api.get(&format!("/dlq/groups?limit=1&endpoint_id={b}")).await?.expect(200).body;
    assert_eq!((&one["items"][0]["endpoint_id"], &one["next_cursor"]), (&json!(b), &Value::Null));

    let letter = w.api.get(&format!("/dlq/{example}")).await?.expect(200).body;
    assert_eq!(letter["event_id"], json!(events[2]));
    assert_eq!(letter["attempts"].as_array().map(Vec::len), Some(1), "{letter}");
    assert_eq!(
        (&letter["attempts"][0]["http_status_code"], &letter["attempts"][0]["attempt_number"]),
        (&json!(400), &json!(1))
    );

    // As a new event: another id, the same payload, the same endpoint.
    w.sink.script("/a", [Reply::status(200)]);
    let path = format!("/dlq/{example}/replay");
    let replayed = w.api.post(&path, &json!({"as_new_event": true})).await?.expect(200);
    let event = replayed.text("new_event_id");
    assert_ne!(event, events[2]);
    let new = w.api.wait_status(&event, "delivered").await?.body;
    assert_eq!(
        (&new["payload"], &new["endpoint_id"], &new["event_type"]),
        (&json!({"i": 2}), &json!(a), &json!("order.created"))
    );
    assert_eq!(seen(&w, "/a")[&event], 1);
    let letter = w.api.get(&format!("/dlq/{example}")).await?.expect(200).body;
    assert_eq!(
        (&letter["new_event_id"], &letter["state"], &letter["replay_count"]),
        (&json!(event), &json!("replayed"), &json!(1))
    );
    w.api.post(&path, &json!({"as_new_event": true})).await?.expect_problem(409, "replayed-recently");
    // No body at all, as curl -X POST sends it.
    w.api.request("POST", &format!("/api/v1{path}"), &[], None).await?.expect_problem(409, "replayed-recently");
    let forced = w.api.post(&path, &json!({"as_new_event": true, "force": true})).await?.expect(200);
    assert_ne!(forced.text("new_event_id"), event);
    w.api.wait_status(&forced.text("new_event_id"), "delivered").await?;
    w.api.post(&path, &json!({"as_new_event": "yes"})).await?.expect_problem(422, "validation-failed");
    Ok(())
}

#[tokio::test]
async fn a_paced_job_is_seen_cancelled_and_the_rest_done() -> anyhow::Result<()> {
    let w = World::start().await?;
    let (endpoint, _) = refused(&w, "/a", "order.created", 12).await?;
    refused(&w, "/other", "order.paid", 2).await?;
    w.sink.script("/a", [Reply::status(200)]);
    let filter = json!({"endpoint_id": endpoint, "reason": "permanent"});
    let with = |more: Value| {
        let mut body = filter.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (kind, more) in
        [("replay", json!({"rate": 0})), ("discard", json!({"rate": 10_001})), ("replay", json!({"reason": "x"}))]
    {
        w.api.post(&format!("/dlq/{kind}/bulk"), &with(more)).await?.expect_problem(422, "validation-failed");
    }
    for kind in ["replay", "discard"] {
        let dry = w.api.post(&format!("/dlq/{kind}/bulk"), &with(json!({"dry_run": true}))).await?.expect(200).body;
        assert_eq!((&dry["total"], dry["examples"].as_array().map(Vec::len)), (&json!(12), Some(5)), "{dry}");
    }
    assert_eq!(w.api.get("/jobs").await?.expect(200).body["total"], 0, "a dry run changes nothing");

    let slow = w.api.post("/dlq/replay/bulk", &with(json!({"rate": 2}))).await?.expect(202).body;
    assert_eq!((&slow["replayed"], &slow["remaining"], &slow["job"]["rate"]), (&json!(0), &json!(true), &json!(2)));
    let path = format!("/jobs/{}", slow["job"]["id"].as_str().unwrap());
    let running = w.api.wait_for(&path, |a| a.body["done"].as_i64() >= Some(2)).await?.expect(200).body;
    assert_eq!(
        (&running["state"], &running["total"], &running["kind"]),
        (&json!("running"), &json!(12), &json!("replay"))
    );
    let cancelled = w.api.post(&format!("{path}/cancel"), &json!({})).await?.expect(200).body;
    assert_eq!(cancelled["state"], "cancelled");
    let done = cancelled["done"].as_i64().unwrap();
    assert!((2..12).contains(&done), "{cancelled}");
    w.api.post(&format!("{path}/cancel"), &json!({})).await?.expect(200);
    let open = w.api.get(&format!("/dlq?endpoint_id={endpoint}&state=open")).await?.expect(200).body;
    assert_eq!(open["total"], json!(12 - done));

    // The rest at once: the answer says what became of each. A second time nothing is left.
    let rest = w.api.post("/dlq/replay/bulk", &filter).await?.expect(202).body;
    assert_eq!((&rest["replayed"], &rest["errors"], &rest["remaining"]), (&json!(12 - done), &json!(0), &json!(false)));
    assert_eq!(rest["results"].as_array().map(Vec::len), usize::try_from(12 - done).ok());
    assert_eq!(rest["job"]["state"], "done");
    assert_eq!(w.api.post("/dlq/replay/bulk", &filter).await?.expect(202).body["replayed"], 0);
    w.sink.wait("/a", 24).await?;
    assert!(seen(&w, "/a").values().all(|n| *n == 2), "refused once, replayed once");

    let discard = w.api.post("/dlq/discard/bulk", &json!({"event_type": "order.paid"})).await?.expect(202).body;
    let path = format!("/jobs/{}", discard["job"]["id"].as_str().unwrap());
    let discard = w.api.wait_for(&path, |a| a.body["state"] == "done").await?.body;
    assert_eq!((&discard["done"], &discard["total"]), (&json!(2), &json!(2)));
    assert_eq!(w.api.get("/dlq?event_type=order.paid").await?.body["total"], 0);
    let jobs = w.api.get("/jobs?limit=2").await?.expect(200).body;
    assert_eq!(jobs["items"].as_array().map(Vec::len), Some(2));
    assert!(jobs["next_cursor"].is_string());
    for id in ["/jobs/00000000-0000-0000-0000-000000000000", "/jobs/00000000-0000-0000-0000-000000000000/cancel"] {
        let method = if id.ends_with("cancel") { "POST" } else { "GET" };
        w.api.request(method, &format!("/api/v1{id}"), &[], None).await?.expect_problem(404, "job-not-found");
    }
    Ok(())
}

/// The manager that runs a job is killed in the middle; another one goes on, and no letter is sent twice.
#[tokio::test]
async fn a_job_outlives_its_manager() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let mut running = Vec::new();
    for name in ["dispatcher", "deliverer", "ingest"] {
        running.push(w.service(name, name).await?);
    }
    let ingest = running[2].1.clone();
    w.use_api(&ingest);
    let (mut first, address) = w.service("dlq-manager-1", "dlq-manager").await?;
    let (endpoint, events) = refused(&w, "/a", "order.created", 40).await?;
    w.sink.script("/a", [Reply::status(200)]);
    let manager = Api::new(&format!("http://{address}"));
    let job = manager.post("/dlq/replay/bulk", &json!({"endpoint_id": endpoint, "rate": 10})).await?.expect(202).body;
    let path = format!("/jobs/{}", job["job"]["id"].as_str().unwrap());
    manager.wait_for(&path, |a| a.body["done"].as_i64() >= Some(5)).await?;
    first.kill()?;
    let (_second, address) = w.service("dlq-manager-2", "dlq-manager").await?;
    let manager = Api::new(&format!("http://{address}"));
    let left = manager.get(&path).await?.expect(200).body;
    assert_eq!(left["state"], "running", "{left}");
    let done = manager.wait_for(&path, |a| a.body["state"] == "done").await?.body;
    assert_eq!((&done["done"], &done["skipped"], &done["errors"]), (&json!(40), &json!(0), &json!(0)), "{done}");
    for event in &events {
        w.api.wait_status(event, "delivered").await?;
    }
    assert_eq!(seen(&w, "/a"), events.iter().map(|e| (e.clone(), 2)).collect(), "refused once, replayed once");
    Ok(())
}
