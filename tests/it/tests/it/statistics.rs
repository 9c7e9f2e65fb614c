//! Statistics against what the interface says of each event, after a mix of everything and kills in the midst.

use std::collections::BTreeMap;

use it::{Api, Reply, World};
use serde_json::{Value, json};

/// Events for each endpoint.
const EVENTS: usize = 60;
const ENDPOINTS: [&str; 4] = ["/fine", "/flaky", "/refuses", "/breaks"];

/// What the events say of one endpoint, or of all.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    deliveries: i64,
    statuses: BTreeMap<String, i64>,
    attempts: i64,
    attempts_failed: i64,
    /// How long the answered ones took, in ms.
    answered: Vec<f64>,
}

impl Tally {
    fn count(&mut self, delivery: &Value) {
        self.deliveries += 1;
        *self.statuses.entry(delivery["status"].as_str().unwrap().to_owned()).or_default() += 1;
        for attempt in delivery["attempts"].as_array().unwrap() {
            self.attempts += 1;
            self.attempts_failed += i64::from(attempt["success"] == false);
            if !attempt["http_status_code"].is_null() {
                self.answered.push(attempt["duration_ms"].as_f64().unwrap());
            }
        }
    }

    fn status(&self, name: &str) -> i64 {
        self.statuses.get(name).copied().unwrap_or(0)
    }

    /// The figures are what was counted; percentiles within their error.
    fn compare(&mut self, stats: &Value) {
        for name in ["delivered", "dead_lettered", "discarded"] {
            assert_eq!(stats[name], self.status(name), "{name}: {stats} {self:?}");
        }
        assert_eq!((&stats["pending"], &stats["failed"], &stats["due"]), (&json!(0), &json!(0), &json!(0)), "{stats}");
        assert!(stats["oldest_due_at"].is_null() && stats["oldest_pending_at"].is_null(), "{stats}");
        let ended = self.status("delivered") + self.status("dead_lettered");
        let rate = self.status("delivered") as f64 * 100.0 / ended as f64;
        assert!((stats["success_rate"].as_f64().unwrap() - rate).abs() < 0.006, "{stats}");
        self.compare_times(stats);
    }

    fn compare_times(&mut self, stats: &Value) {
        assert_eq!(stats["attempts"], self.attempts, "{stats}");
        assert_eq!(stats["attempts_failed"], self.attempts_failed, "{stats}");
        assert_eq!(stats["latency_ms"]["samples"], self.answered.len(), "{stats}");
        assert_eq!(stats["accept_to_delivered_ms"]["samples"], self.status("delivered"), "{stats}");
        self.answered.sort_by(f64::total_cmp);
        for (name, percent) in [("p50", 50), ("p95", 95), ("p99", 99)] {
            let Some(last) = (self.answered.len() * percent).div_ceil(100).checked_sub(1) else { continue };
            let (shown, exact) = (stats["latency_ms"][name].as_f64().unwrap(), self.answered[last]);
            assert!((shown - exact).abs() <= 0.06 * exact + 0.05, "{name}: {shown} for {exact}");
        }
    }
}

async fn ended(api: &Api, events: &[String]) -> anyhow::Result<()> {
    for event in events {
        api.wait_for(&format!("/events/{event}"), |a| {
            a.status == 200 && ["delivered", "dead_lettered", "discarded"].iter().any(|s| a.body["status"] == *s)
        })
        .await?;
    }
    Ok(())
}

/// The sums over all points of a series.
async fn series(api: &Api, path: &str, step: &str) -> anyhow::Result<BTreeMap<String, i64>> {
    let answer = api.get(&format!("{path}/series?step={step}")).await?.expect(200);
    let points = answer.body["points"].as_array().unwrap().clone();
    assert_eq!(points.len(), if step == "minute" { 60 } else { 24 });
    let mut sums = BTreeMap::new();
    for point in &points {
        for name in ["deliveries", "delivered", "dead_lettered", "discarded", "attempts", "attempts_failed"] {
            *sums.entry(name.to_owned()).or_default() += point[name].as_i64().unwrap();
        }
        for name in ["latency_ms", "accept_to_delivered_ms"] {
            *sums.entry(name.to_owned()).or_default() += point[name]["samples"].as_i64().unwrap();
        }
    }
    Ok(sums)
}

#[tokio::test]
async fn they_are_what_the_events_say_also_after_kills() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (mut dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (mut deliverer, _) = w.service("deliverer", "deliverer").await?;
    let (mut manager, _) = w.service("dlq-manager", "dlq-manager").await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    w.use_api(&address);
    let script = |path: &str, all: &[u16]| w.sink.script(path, all.iter().map(|s| Reply::status(*s)));
    script("/flaky", &[[500, 503, 200].as_slice(); 8].concat());
    script("/refuses", &[400]);
    script("/breaks", &[[500; 9].as_slice(), &[200]].concat());
    let mut endpoints = Vec::new();
    for path in ENDPOINTS {
        // Time-outs of 5 s keep leases short: a job that only its lease brings back comes after 35 s.
        let settings = json!({"timeout_seconds": 5, "retry_schedule_seconds": [1, 1, 1, 1, 1, 1, 1, 1],
            "circuit_failure_threshold": if path == "/breaks" { 3 } else { 100 }, "circuit_recovery_seconds": 1});
        endpoints.push(w.api.endpoint(&w.sink.url(path), settings).await?.text("id"));
    }
    let (api, targets) = (w.api.clone(), endpoints.clone());
    let producer = tokio::spawn(async move {
        let mut events = vec![Vec::new(); targets.len()];
        for i in 0..EVENTS {
            for (endpoint, events) in targets.iter().zip(&mut events) {
                events.push(api.event(endpoint, "a.b", json!(i)).await?);
            }
        }
        anyhow::Ok(events)
    });
    // Everything that writes statistics dies in the midst.
    w.sink.wait("/fine", EVENTS / 6).await?;
    deliverer.kill()?;
    let (_deliverer, _) = w.service("deliverer-again", "deliverer").await?;
    w.sink.wait("/fine", EVENTS / 3).await?;
    dispatcher.kill()?;
    let (_dispatcher, _) = w.service("dispatcher-again", "dispatcher").await?;
    manager.kill()?;
    let (_manager, letters) = w.service("dlq-manager-again", "dlq-manager").await?;
    let events = producer.await??;
    for events in &events {
        ended(&w.api, events).await?;
    }

    // Operators: some are sent again and delivered, some dead again, some discarded.
    let letters = Api::new(&format!("http://{letters}"));
    let items = letters.get("/dlq?size=100").await?.expect(200).body["items"].as_array().unwrap().clone();
    assert_eq!(items.len(), EVENTS, "all that was refused");
    for (n, letter) in items.iter().enumerate().take(15) {
        let path = format!("/dlq/{}", letter["id"].as_str().unwrap());
        match n {
            0..5 => drop(letters.delete(&path).await?.expect(204)),
            5..10 => drop(letters.post(&format!("{path}/replay"), &json!({})).await?.expect(200)),
            10 => {
                ended(&w.api, &events[2]).await?;
                script("/refuses", &[200]);
                letters.post(&format!("{path}/replay"), &json!({})).await?.expect(200);
            }
            _ => drop(letters.post(&format!("{path}/replay"), &json!({})).await?.expect(200)),
        }
    }
    ended(&w.api, &events[2]).await?;

    let mut all = Tally::default();
    for (endpoint, events) in endpoints.iter().zip(&events) {
        let mut tally = Tally::default();
        for event in events {
            let detail = w.api.get(&format!("/events/{event}")).await?.expect(200);
            for delivery in detail.body["deliveries"].as_array().unwrap() {
                tally.count(delivery);
                all.count(delivery);
            }
        }
        let path = format!("/endpoints/{endpoint}/stats");
        let stats = w.api.get(&path).await?.expect(200).body;
        assert_eq!(stats["total_events"], EVENTS);
        tally.compare(&stats);
        compare_series(&w.api, &path, &stats, &tally).await?;
    }
    let stats = w.api.get("/stats").await?.expect(200).body;
    assert_eq!((&stats["total_events"], &stats["unmatched"]), (&json!(EVENTS * 4), &json!(0)));
    all.compare(&stats);
    compare_series(&w.api, "/stats", &stats, &all).await?;
    assert_eq!((all.status("discarded"), all.status("dead_lettered")), (5, EVENTS as i64 - 10), "{all:?}");

    // The circuit that opened is closed again, and how it came to that is on record.
    let path = format!("/endpoints/{}/circuit?limit=200", endpoints[3]);
    let circuit = w
        .api
        .wait_for(&path, |a| {
            a.body["history"].as_array().is_some_and(|h| h.first().is_some_and(|c| c["to"] == "closed"))
        })
        .await?;
    assert_eq!(circuit.body["state"], "closed");
    let history = circuit.body["history"].as_array().unwrap();
    // Its first opening may be what the killed deliverer had not yet written.
    assert!(history.iter().any(|c| c["to"] == "open"), "{history:?}");
    assert!(history.is_sorted_by(|a, b| a["at"].as_str() >= b["at"].as_str()), "newest first: {history:?}");
    let newer = history[0]["at"].as_str().unwrap();
    let older = w.api.get(&format!("{path}&before={newer}&limit=1")).await?.expect(200);
    assert_eq!(older.body["history"], json!([history[1]]));
    Ok(())
}

/// The series have the same sums as the totals, by minute and by hour.
async fn compare_series(api: &Api, path: &str, stats: &Value, tally: &Tally) -> anyhow::Result<()> {
    for step in ["minute", "hour"] {
        let sums = series(api, path, step).await?;
        assert_eq!(sums["deliveries"], tally.deliveries, "{step}");
        for name in ["delivered", "dead_lettered", "discarded", "attempts", "attempts_failed"] {
            assert_eq!(stats[name], sums[name], "{name} by {step}");
        }
        for name in ["latency_ms", "accept_to_delivered_ms"] {
            assert_eq!(stats[name]["samples"], sums[name], "{name} by {step}");
        }
    }
    Ok(())
}

/// A circuit that opened on the last attempt there was is on record without another one.
#[tokio::test]
async fn an_opening_is_on_record_and_what_waits_is_seen() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.sink.script("/down", [Reply::status(500)]);
    let settings =
        json!({"circuit_failure_threshold": 1, "circuit_recovery_seconds": 300, "retry_schedule_seconds": [1]});
    let endpoint = w.api.endpoint(&w.sink.url("/down"), settings).await?.text("id");
    let event = w.api.event(&endpoint, "a", json!(1)).await?;
    w.api.wait_status(&event, "failed").await?;
    let path = format!("/endpoints/{endpoint}/circuit");
    let circuit = w.api.wait_for(&path, |a| a.body["history"].as_array().is_some_and(|h| h.len() == 1)).await?;
    assert_eq!((&circuit.body["state"], &circuit.body["history"][0]["to"]), (&json!("open"), &json!("open")));
    assert!(circuit.body["until"].is_string());
    let held = w.api.event(&endpoint, "a", json!(2)).await?;
    w.api.wait_status(&held, "pending").await?;
    let stats = w.api.wait_for(&format!("/endpoints/{endpoint}/stats"), |a| a.body["due"] == 2).await?;
    assert_eq!((&stats.body["pending"], &stats.body["failed"]), (&json!(1), &json!(1)));
    let accepted = w.api.get(&format!("/events/{held}")).await?.body["created_at"].clone();
    assert_eq!(stats.body["oldest_pending_at"], accepted);
    assert!(stats.body["oldest_due_at"].is_string());
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_shown_is_refused_by_name() -> anyhow::Result<()> {
    let w = World::start().await?;
    let endpoint = w.api.endpoint(&w.sink.url("/x"), json!({})).await?.text("id");
    for (query, field) in [
        ("step=day", "query.step"),
        ("from=now", "query.from"),
        ("to=", "query.to"),
        ("from=2020-01-01T00:00:00Z", "query.from"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "query.from"),
    ] {
        for path in ["/stats/series".to_owned(), format!("/endpoints/{endpoint}/stats/series")] {
            let refused = w.api.get(&format!("{path}?{query}")).await?.expect_problem(422, "validation-failed");
            assert_eq!(refused.body["errors"][0]["field"], field, "{query}");
        }
    }
    let day = "step=minute&from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z";
    let points = w.api.get(&format!("/stats/series?{day}")).await?.expect(200);
    assert_eq!(points.body["points"].as_array().unwrap().len(), 1440);
    for path in ["stats", "stats/series", "circuit"] {
        let unknown = format!("/endpoints/{}/{path}", uuid::Uuid::nil());
        w.api.get(&unknown).await?.expect_problem(404, "endpoint-not-found");
    }
    let refused =
        w.api.get(&format!("/endpoints/{endpoint}/circuit?limit=0")).await?.expect_problem(422, "validation-failed");
    assert_eq!(refused.body["errors"][0]["field"], "query.limit");
    Ok(())
}
