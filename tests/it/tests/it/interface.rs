//! The shape of the interface: errors, limits, pages, headers, slashes.

use it::World;
use serde_json::json;

#[tokio::test]
async fn bad_input_gets_clear_problems() -> anyhow::Result<()> {
    let w = World::start().await?;
    let url = w.sink.url("/e");
    let id = w.api.endpoint(&url, json!({"event_types_filter": ["a", "b.*"]})).await?.text("id");

    w.api.post_raw("/events", "{".to_owned()).await?.expect_problem(400, "bad-json");
    w.api.post_raw("/events", "[]".to_owned()).await?.expect_problem(422, "validation-failed");
    w.api.post_raw("/events", r#"{"event_type": "a"}"#.to_owned()).await?.expect_problem(422, "validation-failed");
    for (body, field) in [
        (json!({"name": "", "url": url}), "body.name"),
        (json!({"name": "x"}), "body.url"),
        (json!({"name": "x", "url": 7}), "body.url"),
        (json!({"name": "x", "url": "ftp://example.com"}), "body.url"),
        (json!({"name": "x", "url": "http://10.0.0.1/"}), "body.url"),
        (json!({"name": "x", "url": url, "max_retries": 0}), "body.max_retries"),
        (json!({"name": "x", "url": url, "max_retries": 21}), "body.max_retries"),
        (json!({"name": "x", "url": url, "max_retries": "7"}), "body.max_retries"),
        (json!({"name": "x", "url": url, "timeout_seconds": 4}), "body.timeout_seconds"),
        (json!({"name": "x", "url": url, "retry_backoff_base": 0.5}), "body.retry_backoff_base"),
        (json!({"name": "x", "url": url, "retry_max_delay_seconds": 59}), "body.retry_max_delay_seconds"),
        (json!({"name": "x", "url": url, "retry_schedule_seconds": vec![1; 20]}), "body.retry_schedule_seconds"),
        (json!({"name": "x", "url": url, "circuit_failure_threshold": 0}), "body.circuit_failure_threshold"),
        (json!({"name": "x", "url": url, "event_types_filter": ["ok", "a..b"]}), "body.event_types_filter.1"),
        (json!({"name": "x", "url": url, "custom_headers": {"Host": "x"}}), "body.custom_headers.Host"),
        (json!({"name": "x", "url": url, "custom_headers": {"X": "a\r\nb"}}), "body.custom_headers.X"),
        (json!({"name": "x", "url": url, "signing_secret": "short"}), "body.signing_secret"),
    ] {
        let answer = w.api.post("/endpoints", &body).await?.expect_problem(422, "validation-failed");
        assert!(answer.body["errors"].to_string().contains(field), "{field}: {}", answer.body);
    }
    let event = |more: serde_json::Value| {
        let mut body = json!({"endpoint_id": id, "event_type": "a", "payload": {}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    w.api.post("/events", &event(json!({"event_type": "c"}))).await?.expect_problem(422, "event-type-not-accepted");
    w.api.post("/events", &event(json!({"event_type": "b.x"}))).await?.expect(202);
    w.api.post("/events", &event(json!({"event_type": ""}))).await?.expect_problem(422, "validation-failed");
    w.api.post("/events", &event(json!({"event_type": "é"}))).await?.expect_problem(422, "validation-failed");
    w.api.post("/events", &event(json!({"endpoint_id": "7"}))).await?.expect_problem(422, "validation-failed");
    let unknown = uuid::Uuid::from_u128(9).to_string();
    w.api.post("/events", &event(json!({"endpoint_id": unknown}))).await?.expect_problem(404, "endpoint-not-found");
    let large = format!(r#"{{"event_type": "a", "payload": "{}"}}"#, "x".repeat(1024 * 1024));
    w.api.post_raw("/events", large).await?.expect_problem(413, "payload-too-large");
    w.api
        .request("POST", "/api/v1/events", &[("content-type", "text/plain")], Some("{}".to_owned()))
        .await?
        .expect_problem(415, "unsupported-media-type");

    w.api.get(&format!("/events/{}", uuid::Uuid::from_u128(1))).await?.expect_problem(404, "event-not-found");
    w.api.get(&format!("/events/{}/attempts", uuid::Uuid::from_u128(1))).await?.expect_problem(404, "event-not-found");
    w.api.get("/events/not-a-uuid").await?.expect_problem(422, "validation-failed");
    w.api.get(&format!("/endpoints/{unknown}")).await?.expect_problem(404, "endpoint-not-found");
    w.api.patch(&format!("/endpoints/{unknown}"), &json!({})).await?.expect_problem(404, "endpoint-not-found");
    w.api.delete(&format!("/endpoints/{unknown}")).await?.expect_problem(404, "endpoint-not-found");
    w.api
        .post(&format!("/endpoints/{unknown}/rotate-secret"), &json!({}))
        .await?
        .expect_problem(404, "endpoint-not-found");
    w.api.get(&format!("/endpoints/{unknown}/stats")).await?.expect_problem(404, "endpoint-not-found");
    w.api.get("/nothing").await?.expect_problem(404, "not-found");
    w.api.delete("/events").await?.expect_problem(405, "method-not-allowed");
    Ok(())
}

#[tokio::test]
async fn pages_never_fail() -> anyhow::Result<()> {
    let w = World::start().await?;
    for i in 0..5 {
        w.api.endpoint(&w.sink.url("/p"), json!({"name": format!("n{i}")})).await?;
    }
    let page = w.api.get("/endpoints?page=2&size=2").await?.expect(200);
    assert_eq!(
        (
            page.body["total"].as_i64(),
            page.body["pages"].as_i64(),
            page.body["page"].as_i64(),
            page.body["size"].as_i64()
        ),
        (Some(5), Some(3), Some(2), Some(2))
    );
    let names: Vec<_> =
        page.body["items"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["n2", "n1"], "newest first");
    assert_eq!(w.api.get("/endpoints?page=9").await?.expect(200).body["items"], json!([]));
    for bad in ["page=0", "size=0", "size=201", "page=-1", "page=x", "size=99999999999999999999"] {
        for list in ["/endpoints", "/dlq"] {
            w.api.get(&format!("{list}?{bad}")).await?.expect_problem(422, "validation-failed");
        }
    }
    let active = w.api.get("/endpoints?is_active=false").await?.expect(200);
    assert_eq!(active.body["total"], 0);
    Ok(())
}

#[tokio::test]
async fn every_answer_has_its_headers_and_slashes_do_not_matter() -> anyhow::Result<()> {
    let w = World::start().await?;
    let body = json!({"name": "slash", "url": w.sink.url("/s")});
    let created = w.api.post("/endpoints/", &body).await?.expect(201);
    let id = created.text("id");
    for path in [
        "/endpoints/".to_owned(),
        format!("/endpoints/{id}/"),
        format!("/endpoints/{id}/stats/"),
        "/dlq/".to_owned(),
        "/stats/".to_owned(),
    ] {
        w.api.get(&path).await?.expect(200);
    }
    let answer = w.api.request("GET", "/api/v1/nothing", &[("x-request-id", "abc-123")], None).await?;
    assert_eq!(answer.headers["x-request-id"], "abc-123");
    assert!(answer.headers["x-response-time-ms"].to_str()?.parse::<f64>()? >= 0.0);
    let answer = w.api.get("/health").await?.expect(200);
    assert!(answer.headers.contains_key("x-request-id"));
    assert_eq!(answer.body["status"], "healthy");
    assert_eq!(answer.body["database"], "ok");
    assert_eq!(answer.body["redis"], "ok");
    assert_eq!(answer.body["nats"], "ok");
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    Ok(())
}

#[tokio::test]
async fn the_document_describes_every_route() -> anyhow::Result<()> {
    let w = World::start().await?;
    let document = w.api.request("GET", "/openapi.json", &[], None).await?.expect(200).body;
    assert!(document["openapi"].as_str().is_some_and(|v| v.starts_with("3.1")));
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    for path in [
        "/api/v1/endpoints",
        "/api/v1/endpoints/{endpoint_id}",
        "/api/v1/endpoints/{endpoint_id}/stats",
        "/api/v1/endpoints/{endpoint_id}/rotate-secret",
        "/api/v1/endpoints/{endpoint_id}/resume",
        "/api/v1/endpoints/{endpoint_id}/test",
        "/api/v1/endpoints/{endpoint_id}/previous-secret",
        "/api/v1/events",
        "/api/v1/events/{event_id}",
        "/api/v1/events/{event_id}/attempts",
        "/api/v1/events/{event_id}/explain",
        "/api/v1/events/{event_id}/retry",
        "/api/v1/events/batch",
        "/api/v1/endpoints/{endpoint_id}/attempts",
        "/api/v1/dlq",
        "/api/v1/dlq/{id}",
        "/api/v1/dlq/{id}/replay",
        "/api/v1/dlq/groups",
        "/api/v1/dlq/replay/bulk",
        "/api/v1/dlq/discard/bulk",
        "/api/v1/jobs",
        "/api/v1/jobs/{id}",
        "/api/v1/jobs/{id}/cancel",
        "/api/v1/health",
        "/api/v1/stats",
        "/api/v1/inbound/verify",
    ] {
        assert!(paths.iter().any(|p| *p == path), "{path} is not in {paths:?}");
    }
    Ok(())
}

/// Patches: only what is present changes; null clears nothing but the schedule.
#[tokio::test]
async fn a_patch_changes_what_it_names() -> anyhow::Result<()> {
    let w = World::start().await?;
    let id = w
        .api
        .endpoint(&w.sink.url("/p"), json!({"retry_schedule_seconds": [5], "custom_headers": {"X-A": "1"}}))
        .await?
        .text("id");
    let patched =
        w.api.patch(&format!("/endpoints/{id}"), &json!({"name": "new", "url": null, "unknown": 1})).await?.expect(200);
    assert_eq!(patched.body["name"], "new");
    assert_eq!(patched.body["custom_headers"], json!({"X-A": "1"}));
    assert_eq!(patched.body["retry_schedule_seconds"], json!([5]));
    assert!(patched.body["updated_at"].is_string());
    let patched = w
        .api
        .patch(&format!("/endpoints/{id}"), &json!({"retry_schedule_seconds": null, "max_retries": 3}))
        .await?
        .expect(200);
    assert!(patched.body["retry_schedule_seconds"].is_null());
    assert_eq!(patched.body["max_retries"], 3);
    w.api
        .patch(&format!("/endpoints/{id}"), &json!({"max_retries": 99}))
        .await?
        .expect_problem(422, "validation-failed");
    Ok(())
}
