//! The life of an endpoint: pause and resume, deactivation and back, rotation, test events, and the check of signatures.

use base64::Engine as _;
use it::{Answer, Received, Reply, World};
use serde_json::{Value, json};

/// An endpoint on `path`, paused.
async fn paused(w: &World, path: &str) -> anyhow::Result<String> {
    let id = w.api.endpoint(&w.sink.url(path), json!({})).await?.text("id");
    w.api.patch(&format!("/endpoints/{id}"), &json!({"paused": true})).await?.expect(200);
    Ok(id)
}

/// Sends `n` events and waits until the ledger has them.
async fn send(w: &World, endpoint: &str, n: usize) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for i in 0..n {
        ids.push(w.api.event(endpoint, "order.created", json!({ "n": i })).await?);
    }
    for id in &ids {
        w.api.wait_status(id, "pending").await?;
    }
    Ok(ids)
}

async fn resume(w: &World, endpoint: &str, body: &Value) -> anyhow::Result<Answer> {
    Ok(w.api.post(&format!("/endpoints/{endpoint}/resume"), body).await?.expect(200))
}

/// Resuming with everything, without a body and with a word for it.
#[tokio::test]
async fn a_pause_ends_with_all_that_waited() -> anyhow::Result<()> {
    let w = World::start().await?;
    for (path, body) in [("/all", Some(json!({"deliver": "all"}))), ("/bare", None)] {
        let id = paused(&w, path).await?;
        let events = send(&w, &id, 5).await?;
        assert!(w.sink.received(path).is_empty());
        let resumed = match body {
            Some(body) => resume(&w, &id, &body).await?,
            None => w.api.request("POST", &format!("/api/v1/endpoints/{id}/resume"), &[], None).await?.expect(200),
        };
        assert_eq!((&resumed.body["paused"], &resumed.body["discarded"]), (&json!(false), &json!(0)));
        for event in &events {
            w.api.wait_status(event, "delivered").await?;
        }
        assert_eq!(w.sink.received(path).len(), 5);
    }
    Ok(())
}

/// Resuming with nothing and with a part: what is left out is discarded, visibly, and never sent.
#[tokio::test]
async fn a_pause_ends_without_what_is_left_out() -> anyhow::Result<()> {
    let w = World::start().await?;
    let id = paused(&w, "/none").await?;
    let old = send(&w, &id, 5).await?;
    let resumed = resume(&w, &id, &json!({"deliver": "none"})).await?;
    assert!(resumed.body["discarded"].as_u64().unwrap() <= 5);
    w.api
        .wait_for(&format!("/endpoints/{id}"), |a| a.body["paused"] == false && a.body["discard_before"].is_null())
        .await?;
    for event in &old {
        let event = w.api.wait_status(event, "discarded").await?;
        assert!(event.body["deliveries"][0]["last_error"].as_str().unwrap().contains("resumed"), "{}", event.body);
    }
    let new = w.api.event(&id, "order.created", json!({"n": "new"})).await?;
    w.api.wait_status(&new, "delivered").await?;
    assert_eq!(w.sink.received("/none").len(), 1);

    let id = paused(&w, "/since").await?;
    let old = send(&w, &id, 3).await?;
    let young = send(&w, &id, 2).await?;
    let since = w.api.get(&format!("/events/{}", young[0])).await?.text("created_at");
    resume(&w, &id, &json!({"deliver": "since", "since": since})).await?;
    for event in &young {
        w.api.wait_status(event, "delivered").await?;
    }
    for event in &old {
        w.api.wait_status(event, "discarded").await?;
    }
    assert_eq!(w.sink.received("/since").len(), 2);

    let wrong = w.api.post(&format!("/endpoints/{id}/resume"), &json!({"deliver": "since"})).await?;
    assert_eq!(wrong.expect(422).body["errors"][0]["field"], "body.since");
    let unknown = "00000000-0000-7000-8000-000000000000";
    w.api.post(&format!("/endpoints/{unknown}/resume"), &json!({})).await?.expect_problem(404, "endpoint-not-found");
    w.api.post(&format!("/endpoints/{unknown}/resume"), &json!({"deliver": "none"})).await?.expect(404);
    Ok(())
}

/// DELETE deactivates; PATCH activates again, and new events arrive.
#[tokio::test]
async fn a_deactivated_endpoint_can_come_back() -> anyhow::Result<()> {
    let w = World::start().await?;
    let id = w.api.endpoint(&w.sink.url("/back"), json!({})).await?.text("id");
    w.api.delete(&format!("/endpoints/{id}")).await?.expect(204);
    w.api.delete(&format!("/endpoints/{id}")).await?.expect(204);
    assert_eq!(w.api.get(&format!("/endpoints/{id}")).await?.expect(200).body["is_active"], false);
    let body = json!({"endpoint_id": id, "event_type": "a.b", "payload": 1});
    w.api.post("/events", &body).await?.expect_problem(422, "endpoint-inactive");
    w.api.post(&format!("/endpoints/{id}/test"), &json!({})).await?.expect_problem(422, "endpoint-inactive");
    let back = w.api.patch(&format!("/endpoints/{id}"), &json!({"is_active": true})).await?.expect(200);
    assert_eq!(back.body["is_active"], true);
    let event = w.api.event(&id, "a.b", json!(1)).await?;
    w.api.wait_status(&event, "delivered").await?;
    Ok(())
}

/// What one check of `/inbound/verify` says.
async fn verify(w: &World, received: &Received, keys: &[(&str, &str)], body: &str) -> anyhow::Result<Value> {
    let names = ["x-webhook-signature", "webhook-id", "webhook-timestamp", "webhook-signature"];
    let there = names.iter().filter(|n| received.headers.contains_key(**n)).map(|n| (*n, received.header(n)));
    let headers: Vec<_> = there.chain(keys.iter().copied()).collect();
    Ok(w.api.request("POST", "/api/v1/inbound/verify", &headers, Some(body.to_owned())).await?.expect(200).body)
}

/// A rotation of secret and key, its overlap, and the early end of that.
#[tokio::test]
async fn a_rotation_overlaps_until_it_is_ended() -> anyhow::Result<()> {
    let w = World::start().await?;
    let schemes = json!(["webhook-relay", "standard-v1", "standard-v1a"]);
    let created = w.api.endpoint(&w.sink.url("/keys"), json!({"signature_schemes": schemes})).await?;
    let id = created.text("id");
    let rotated = w.api.post(&format!("/endpoints/{id}/rotate-secret"), &json!({})).await?.expect(200);
    assert_eq!(rotated.text("previous_public_key"), created.text("public_key"));
    assert_ne!(rotated.text("public_key"), created.text("public_key"));
    let shown = w.api.get(&format!("/endpoints/{id}")).await?.expect(200);
    assert!(shown.body.get("signing_secret").is_none() && !shown.body.to_string().contains("whsk_"), "{}", shown.body);
    assert_eq!(shown.body["signature_schemes"], schemes);

    let keys = |answer: &Answer| (answer.text("signing_secret"), answer.text("public_key"));
    let (old, new) = (keys(&created), keys(&rotated));
    w.api.event(&id, "a.b", json!({})).await?;
    let both = w.sink.wait("/keys", 1).await?.remove(0);
    for (secret, key) in [&old, &new] {
        let verdict = verify(&w, &both, &[("x-webhook-secret", secret), ("x-webhook-public-key", key)], "{}").await?;
        assert_eq!((&verdict["valid"], verdict["checks"].as_array().unwrap().len()), (&json!(true), 3), "{verdict}");
    }
    w.api.delete(&format!("/endpoints/{id}/previous-secret")).await?.expect(204);
    let shown = w.api.get(&format!("/endpoints/{id}")).await?.expect(200);
    assert!(shown.body["previous_secret_until"].is_null() && shown.body["previous_public_key"].is_null());
    w.api.event(&id, "a.b", json!({})).await?;
    let one = w.sink.wait("/keys", 2).await?.remove(1);
    for ((secret, key), good) in [(&old, false), (&new, true)] {
        let verdict = verify(&w, &one, &[("x-webhook-secret", secret), ("x-webhook-public-key", key)], "{}").await?;
        assert_eq!(verdict["checks"].as_array().unwrap().iter().filter(|c| c["valid"] == good).count(), 3, "{verdict}");
    }
    Ok(())
}

/// A secret from another system keeps its users' receivers working, in both schemes; schemes can be chosen.
#[tokio::test]
async fn a_given_secret_signs_and_schemes_are_chosen() -> anyhow::Result<()> {
    let w = World::start().await?;
    let raw = "0123456789abcdef0123456789abcdef";
    let created = w.api.endpoint(&w.sink.url("/moved"), json!({"signing_secret": raw})).await?;
    assert_eq!(created.text("signing_secret"), raw);
    let standard = created.text("standard_webhooks_secret");
    assert_eq!(standard, format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(raw)));
    let id = created.text("id");
    w.api.event(&id, "a.b", json!({})).await?;
    let received = w.sink.wait("/moved", 1).await?.remove(0);
    assert_eq!(verify(&w, &received, &[("x-webhook-secret", raw)], "{}").await?["valid"], true);
    let changed = verify(&w, &received, &[("x-webhook-secret", raw)], "{ }").await?;
    assert_eq!((&changed["valid"], &changed["reason"]), (&json!(false), &json!("no_match")));
    assert_eq!(changed["error"], "Signature verification failed");
    let none = verify(&w, &received, &[], "{}").await?;
    assert_eq!((&none["valid"], &none["reason"]), (&json!(false), &json!("missing_header")));

    let only = json!({"signature_schemes": ["standard-v1a"]});
    let changed = w.api.patch(&format!("/endpoints/{id}"), &only).await?.expect(200);
    w.api.event(&id, "a.b", json!({})).await?;
    let received = w.sink.wait("/moved", 2).await?.remove(1);
    assert!(!received.headers.contains_key("x-webhook-signature"));
    let key = changed.text("public_key");
    assert_eq!(verify(&w, &received, &[("x-webhook-public-key", &key)], "{}").await?["valid"], true);
    let refused = w.api.patch(&format!("/endpoints/{id}"), &json!({"signing_secret": raw})).await?.expect(422);
    assert!(!refused.body.to_string().contains(raw));
    Ok(())
}

/// The test route goes through the pipeline and says what came of it.
#[tokio::test]
async fn a_test_event_says_what_became_of_it() -> anyhow::Result<()> {
    let w = World::start().await?;
    let filter = json!({"event_types_filter": ["order.*"]});
    let id = w.api.endpoint(&w.sink.url("/tested"), filter).await?.text("id");
    let route = format!("/endpoints/{id}/test");
    let tested = w.api.request("POST", &format!("/api/v1{route}"), &[], None).await?.expect(200);
    assert_eq!((tested.text("status"), tested.text("event_type")), ("delivered".to_owned(), "webhook.test".to_owned()));
    assert_eq!(tested.body["attempts"][0]["http_status_code"], 200);
    let event = w.api.get(&format!("/events/{}", tested.text("event_id"))).await?.expect(200);
    assert_eq!(event.body["deliveries"][0]["id"], tested.body["delivery_id"]);

    let mine = json!({"event_type": "order.paid", "payload": {"mine": 1}});
    w.api.post(&route, &mine).await?.expect(200);
    assert_eq!(&w.sink.wait("/tested", 2).await?[1].body[..], br#"{"mine":1}"#);
    w.api.post(&route, &json!({"event_type": "user.made"})).await?.expect_problem(422, "event-type-not-accepted");

    w.sink.script("/tested", [Reply::status(500).body("broken")]);
    let failed = w.api.post(&route, &json!({})).await?.expect(200);
    assert_eq!(
        (failed.text("status"), &failed.body["attempts"][0]["response_body"]),
        ("failed".to_owned(), &json!("broken"))
    );

    w.api.patch(&format!("/endpoints/{id}"), &json!({"paused": true})).await?.expect(200);
    let waits = w.api.post(&route, &json!({})).await?.expect(200);
    assert_eq!(waits.text("status"), "pending");
    assert!(waits.text("detail").contains("paused"));
    Ok(())
}
