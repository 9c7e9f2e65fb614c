//! Row 27: a dead letter is replayed while an old attempt is on its way.

use it::{Api, Reply};
use serde_json::json;

use super::{STOPPED, Stage, ends};

/// The letter of an event's only delivery.
async fn letter(letters: &Api, endpoint: &str) -> anyhow::Result<String> {
    let found = letters
        .wait_for(&format!("/dlq?endpoint_id={endpoint}"), |a| {
            a.body["items"].as_array().is_some_and(|letters| letters.len() == 1)
        })
        .await?;
    Ok(found.body["items"][0]["id"].as_str().unwrap().to_owned())
}

/// A deliverer is stopped with three answers that it hasn't recorded, all of them 200, and the endpoints are deactivated:
/// when the leases have lapsed the deliveries become dead letters. These are replayed, and it goes on: before the replay
/// is sent (27), after the endpoint has refused it (27-no), and after the endpoint has taken it (27-yes). Each time the
/// late 2xx counts, and resolves the letter; what was sent by then comes twice, and nothing else does.
#[tokio::test]
async fn a_late_2xx_overtakes_a_replay() -> anyhow::Result<()> {
    let mut s = Stage::start(None).await?;
    let (unsent, refused, taken) = ("27", "27-no", "27-yes");
    let mut hooks = Vec::new();
    for (row, second) in [(unsent, 200), (refused, 400), (taken, 200)] {
        hooks.push(s.hook(row, [200, second].map(Reply::status)).await?);
    }
    let _dispatcher = s.run("dispatcher").await?;
    let (_manager, letters) = s.letters().await?;
    let points = ["", "@2", "@3"].map(|nth| format!("deliver.answered{nth}:stall=20")).join(",");
    let late = s.run_until("deliverer", &points)?;
    let mut events = Vec::new();
    for (row, duplicates) in [(unsent, 0), (refused, 0), (taken, 1)] {
        events.push(s.event(row, duplicates).await?);
    }
    while late.output().matches(STOPPED).count() < events.len() {
        anyhow::ensure!(s.w.sink.count() <= events.len(), "it goes on before all are answered:\n{}", late.output());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    late.signal("STOP")?;

    for hook in &hooks {
        s.w.api.delete(&format!("/endpoints/{hook}")).await?.expect(204);
    }
    for event in &events {
        s.w.api.wait_status(event, "dead_lettered").await?;
    }
    let mut ids = Vec::new();
    for hook in &hooks {
        s.w.api.patch(&format!("/endpoints/{hook}"), &json!({"is_active": true})).await?.expect(200);
        ids.push(letter(&letters, hook).await?);
    }
    let other = s.run("deliverer").await?;
    for id in &ids[1..] {
        letters.post(&format!("/dlq/{id}/replay"), &json!({})).await?.expect(200);
    }
    letters.wait_for(&format!("/dlq/{}", ids[1]), |a| a.body["reason"] == "permanent").await?;
    s.w.api.wait_status(&events[2], "delivered").await?;
    ends(other).await?;
    letters.post(&format!("/dlq/{}/replay", ids[0]), &json!({})).await?.expect(200);
    // Its job waits for a deliverer.
    s.w.api.wait_status(&events[0], "delivering").await?;

    late.signal("CONT")?;
    for (event, id) in events.iter().zip(&ids) {
        s.w.api.wait_status(event, "delivered").await?;
        letters.wait_for(&format!("/dlq/{id}"), |a| a.body["state"] == "resolved").await?;
    }
    s.verdict().await?.assert_good();
    for (row, requests) in [(unsent, 1), (refused, 2), (taken, 2)] {
        assert_eq!(s.w.sink.received(&format!("/{row}")).len(), requests, "{row}");
    }
    for (event, attempts) in events.iter().zip([1, 2, 2]) {
        let shown = s.w.api.get(&format!("/events/{event}")).await?.body;
        assert_eq!(shown["attempts"].as_array().map(Vec::len), Some(attempts), "each request is on record: {shown}");
    }
    Ok(())
}
