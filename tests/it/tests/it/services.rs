//! Two of each service, as processes of their own on the same servers.

use it::{Api, World};
use serde_json::json;

#[tokio::test]
async fn two_of_each_share_the_work() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let mut running = Vec::new();
    for name in ["dispatcher", "deliverer", "ingest", "dlq-manager"] {
        for i in 1..=2 {
            running.push((name, w.service(&format!("{name}-{i}"), name).await?));
        }
    }
    let listens = |wanted: &str| -> Vec<String> {
        running.iter().filter(|(name, _)| *name == wanted).map(|(_, (_, address))| address.clone()).collect()
    };
    let ingests: Vec<Api> = listens("ingest").iter().map(|a| Api::new(&format!("http://{a}"))).collect();
    let managers: Vec<Api> = listens("dlq-manager").iter().map(|a| Api::new(&format!("http://{a}"))).collect();
    w.use_api(&listens("ingest")[0]);
    w.sink.script("/bad", [it::Reply::status(400), it::Reply::status(200)]);
    w.api.endpoint(&w.sink.url("/all"), json!({"event_types_filter": ["good"]})).await?;
    let bad = w.api.endpoint(&w.sink.url("/bad"), json!({"event_types_filter": ["bad"]})).await?.text("id");
    let mut events = Vec::new();
    for i in 0..200 {
        let body = json!({"event_type": "good", "payload": i});
        events.push(ingests[i % 2].post("/events", &body).await?.expect(202).text("id"));
    }
    for (i, event) in events.iter().enumerate() {
        ingests[(i + 1) % 2].wait_status(event, "delivered").await?;
    }
    assert_eq!(w.sink.received("/all").len(), 200);
    let event = ingests[1].event(&bad, "bad", json!({})).await?;
    ingests[0].wait_status(&event, "dead_lettered").await?;
    let letter = managers[0].get("/dlq").await?.expect(200).body["items"][0]["id"].as_str().unwrap().to_owned();
    managers[1].post(&format!("/dlq/{letter}/replay"), &json!({})).await?.expect(200);
    ingests[0].wait_status(&event, "delivered").await?;
    for (name, (process, _)) in &mut running {
        assert!(process.terminate().await?, "{name} ends with success on SIGTERM:\n{}", process.output());
    }
    Ok(())
}

/// Each service says what it needs and how it is.
#[tokio::test]
async fn health_and_metrics() -> anyhow::Result<()> {
    let w = World::servers().await?;
    for name in ["dispatcher", "deliverer"] {
        let (_process, address) = w.service(name, name).await?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        for path in ["/health/live", "/health/ready"] {
            assert_eq!(
                client.get(format!("http://{address}{path}")).send().await?.status().as_u16(),
                200,
                "{name}{path}"
            );
        }
        let metrics = client.get(format!("http://{address}/metrics")).send().await?.text().await?;
        assert!(metrics.contains("# TYPE relay_"), "{name}: {metrics}");
    }
    Ok(())
}
