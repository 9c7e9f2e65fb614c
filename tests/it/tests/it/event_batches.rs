//! Many events in one request, sending again, and explanations.

use it::{Reply, World};
use serde_json::{Value, json};

fn results(body: &Value) -> &Vec<Value> {
    body["results"].as_array().unwrap_or_else(|| panic!("no results in {body}"))
}

#[tokio::test]
async fn each_event_of_a_batch_has_its_own_outcome() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = w.api.endpoint(&w.sink.url("/b"), json!({"event_types_filter": ["a", "b"]})).await?.text("id");
    let unknown = uuid::Uuid::from_u128(9);
    let batch = json!({"events": [
        {"event_type": "a", "payload": {"n": 1}, "idempotency_key": "k1"},
        {"event_type": "a", "payload": {"n": 1}, "idempotency_key": "k1"},
        {"event_type": "a", "payload": {"n": 2}, "idempotency_key": "k1"},
        {"endpoint_id": endpoint, "event_type": "b", "payload": [1, 2]},
        {"endpoint_id": endpoint, "event_type": "c", "payload": 1},
        {"endpoint_id": unknown, "event_type": "b", "payload": 1},
        {"event_type": "", "payload": 1},
        7,
    ]});
    let answer = w.api.post("/events/batch", &batch).await?.expect(202);
    assert_eq!((&answer.body["accepted"], &answer.body["rejected"]), (&json!(3), &json!(5)));
    let of = |index: usize| &results(&answer.body)[index];
    let statuses: Vec<i64> = results(&answer.body).iter().map(|r| r["status"].as_i64().unwrap()).collect();
    assert_eq!(statuses, [202, 202, 409, 202, 422, 404, 422, 422]);
    assert_eq!(of(0)["id"], of(1)["id"]);
    assert_eq!(of(2)["error"]["type"], "urn:webhook-relay:problem:idempotency-conflict");
    assert_eq!(of(6)["error"]["errors"][0]["field"], "body.events.6.event_type");
    assert_eq!(of(7)["error"]["errors"][0]["field"], "body.events.7");
    for index in [0, 3] {
        w.api.wait_status(of(index)["id"].as_str().unwrap(), "delivered").await?;
    }
    assert_eq!(w.sink.received("/b").len(), 2, "the key's event once, and the addressed one");

    // Sent again: the keyed event is known; another body is refused; nothing is accepted twice.
    let again = json!({"events": [
        {"event_type": "a", "payload": {"n": 1}, "idempotency_key": "k1"},
        {"event_type": "a", "payload": {"n": 3}, "idempotency_key": "k1"},
    ]});
    let answer = w.api.post("/events/batch", &again).await?.expect(202);
    assert_eq!(results(&answer.body)[0]["id"], of(0)["id"]);
    assert_eq!(results(&answer.body)[1]["status"], 409);
    Ok(())
}

#[tokio::test]
async fn a_batch_that_brings_nothing_is_a_problem() -> anyhow::Result<()> {
    let w = World::start().await?;
    for bad in [json!({}), json!({"events": []}), json!({"events": 7}), json!({"events": vec![json!({}); 1001]})] {
        w.api.post("/events/batch", &bad).await?.expect_problem(422, "validation-failed");
    }
    w.api.post_raw("/events/batch", "{".to_owned()).await?.expect_problem(400, "bad-json");
    let none = w.api.post("/events/batch", &json!({"events": [{}, 7]})).await?.expect_problem(422, "nothing-accepted");
    assert_eq!((&none.body["accepted"], &none.body["rejected"]), (&json!(0), &json!(2)));
    assert_eq!(results(&none.body).len(), 2);
    let event = json!({"events": [{"event_type": "a", "payload": 1}]}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    w.api
        .request("POST", "/api/v1/events/batch", &headers, Some(event))
        .await?
        .expect_problem(422, "validation-failed");
    let large = json!({"events": vec![json!({"event_type": "a", "payload": "x".repeat(900_000)}); 19]});
    w.api.post("/events/batch", &large).await?.expect_problem(413, "payload-too-large");
    Ok(())
}

#[tokio::test]
async fn a_thousand_events_in_one_request_arrive_in_their_order_of_acceptance() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.api.endpoint(&w.sink.url("/many"), json!({})).await?;
    let events: Vec<Value> = (0..1000).map(|n| json!({"event_type": "a", "payload": n})).collect();
    let answer = w.api.post("/events/batch", &json!({"events": events})).await?.expect(202);
    assert_eq!(answer.body["accepted"], 1000);
    let ids: Vec<String> = results(&answer.body).iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect();
    let newest = w.api.wait_for("/events?size=200", |a| a.body["total"] == 1000).await?;
    for id in [&ids[0], &ids[500], &ids[999]] {
        w.api.wait_status(id, "delivered").await?;
    }
    let listed: Vec<&str> =
        newest.body["items"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids.iter().rev().take(200).collect::<Vec<_>>(), "newest first");
    Ok(())
}

#[tokio::test]
async fn an_event_is_sent_again_to_one_endpoint_or_to_all() -> anyhow::Result<()> {
    let w = World::start().await?;
    let one = w.api.endpoint(&w.sink.url("/one"), json!({})).await?.text("id");
    w.sink.script("/two", [Reply::status(500), Reply::status(200)]);
    let two = w.api.endpoint(&w.sink.url("/two"), json!({"retry_schedule_seconds": [3600]})).await?.text("id");
    w.sink.script("/dead", [Reply::status(400), Reply::status(200)]);
    let dead = w.api.endpoint(&w.sink.url("/dead"), json!({})).await?.text("id");
    let event = w.api.post("/events", &json!({"event_type": "a", "payload": 1})).await?.expect(202).text("id");
    let path = format!("/events/{event}");
    w.api
        .wait_for(&path, |a| {
            let statuses = |s: &str| a.body["deliveries"].to_string().contains(s);
            statuses(r#""status":"delivered""#)
                && statuses(r#""status":"failed""#)
                && statuses(r#""status":"dead_lettered""#)
        })
        .await?;

    // One that waits for an hour goes now; one that was given up begins a new round.
    let retried = w.api.post(&format!("{path}/retry"), &json!({"endpoint_id": two})).await?.expect(202);
    assert_eq!((&retried.body["resent"], &retried.body["results"][0]["outcome"]), (&json!(1), &json!("due_now")));
    let retried = w.api.post(&format!("{path}/retry"), &json!({"endpoint_id": dead})).await?.expect(202);
    assert_eq!(retried.body["results"][0]["outcome"], "reopened");
    w.api.wait_status(&event, "delivered").await?;
    assert_eq!(
        (w.sink.received("/one").len(), w.sink.received("/two").len(), w.sink.received("/dead").len()),
        (1, 2, 2)
    );
    assert_eq!(w.api.get("/dlq").await?.expect(200).body["total"], 0);

    // All, without a body: what was delivered is sent again, under the same id.
    let all = w.api.request("POST", &format!("/api/v1{path}/retry"), &[], None).await?.expect(202);
    assert_eq!((&all.body["resent"], all.body["results"].as_array().unwrap().len()), (&json!(3), 3));
    w.api.wait_for(&path, |a| a.body["status"] == "delivered" && w.sink.received("/one").len() == 2).await?;
    assert!(w.sink.received("/one").iter().all(|r| r.header("x-webhook-event-id") == event));

    w.api.delete(&format!("/endpoints/{one}")).await?.expect(204);
    w.api.post(&format!("{path}/retry"), &json!({"endpoint_id": one})).await?.expect_problem(422, "endpoint-inactive");
    let unknown = uuid::Uuid::from_u128(9);
    w.api
        .post(&format!("{path}/retry"), &json!({"endpoint_id": unknown}))
        .await?
        .expect_problem(404, "delivery-not-found");
    w.api.post(&format!("/events/{unknown}/retry"), &json!({})).await?.expect_problem(404, "event-not-found");
    w.api.post(&format!("{path}/retry"), &json!({"endpoint_id": 7})).await?.expect_problem(422, "validation-failed");
    Ok(())
}

#[tokio::test]
async fn an_explanation_has_every_endpoint_and_why_not() -> anyhow::Result<()> {
    let w = World::start().await?;
    let url = w.sink.url("/e");
    let gets = w.api.endpoint(&url, json!({"event_types_filter": ["order.*"]})).await?.text("id");
    let other_type = w.api.endpoint(&url, json!({"event_types_filter": ["user.*"]})).await?.text("id");
    let inactive = w.api.endpoint(&url, json!({})).await?.text("id");
    w.api.delete(&format!("/endpoints/{inactive}")).await?.expect(204);
    let changed = w.api.endpoint(&url, json!({"event_types_filter": ["user.*"]})).await?.text("id");
    let paused = w.api.endpoint(&url, json!({})).await?.text("id");
    w.api.patch(&format!("/endpoints/{paused}"), &json!({"paused": true})).await?.expect(200);
    let event =
        w.api.post("/events", &json!({"event_type": "order.created", "payload": 1})).await?.expect(202).text("id");
    w.api.get(&format!("/events/{event}")).await?.expect(200);
    w.api.patch(&format!("/endpoints/{changed}"), &json!({"event_types_filter": []})).await?.expect(200);
    let later = w.api.endpoint(&url, json!({})).await?.text("id");

    let path = format!("/events/{event}/explain");
    let all = w.api.get(&path).await?.expect(200);
    assert_eq!(all.body["total"], 6);
    let of = |id: &str| {
        let items = all.body["items"].as_array().unwrap();
        items.iter().find(|i| i["endpoint_id"] == id).unwrap_or_else(|| panic!("{id} is not explained")).clone()
    };
    for (id, reason) in [
        (&other_type, "event_type_not_in_filter"),
        (&inactive, "endpoint_inactive"),
        (&changed, "endpoint_changed_since"),
        (&later, "endpoint_created_later"),
    ] {
        let item = of(id);
        assert_eq!((&item["matched"], &item["judged_by"]), (&json!(false), &json!("current_settings")), "{item}");
        assert_eq!(item["reasons"], json!([reason]), "{item}");
    }
    let item = of(&gets);
    assert_eq!((&item["matched"], &item["judged_by"], &item["reasons"]), (&json!(true), &json!("ledger"), &json!([])));
    let item = of(&paused);
    assert_eq!((&item["matched"], &item["held_by"]), (&json!(true), &json!("pause")), "{item}");
    assert_eq!(item["delivery"]["status"], "pending");

    let named = w.api.event(&gets, "order.created", json!(1)).await?;
    let item = w.api.get(&format!("/events/{named}/explain?limit=1&cursor=")).await?.expect(200);
    assert_eq!(item.body["items"][0]["reasons"], json!(["addressed_to_another_endpoint"]));
    assert!(item.body["next_cursor"].is_string());
    w.api.get(&format!("/events/{}/explain", uuid::Uuid::from_u128(9))).await?.expect_problem(404, "event-not-found");
    Ok(())
}
