//! Starting and stopping: data stay, nothing is left behind, and the door is shut where it must be.

use std::path::Path;
use std::process::Command;

use it::World;
use it::process::{Process, binary, free_port};
use serde_json::json;

fn args(data: &Path, listen: &str) -> Vec<String> {
    let data = data.to_string_lossy().into_owned();
    ["up", "--data-dir", &data, "--postgres-port", "0", "--redis-port", "0", "--nats-port", "0", "--listen", listen]
        .map(str::to_owned)
        .to_vec()
}

/// The self-check is printed and leaves nothing in the lists.
#[tokio::test]
async fn up_checks_itself() -> anyhow::Result<()> {
    let w = World::start().await?;
    w.api.wait_for("/health", |_| w.up.output().contains("self-check")).await?;
    let output = w.up.output();
    assert!(output.lines().any(|l| l.contains("accepted") && l.contains("delivered") && l.contains(" ms")), "{output}");
    assert_eq!(w.api.get("/endpoints").await?.body["total"], 0);
    assert_eq!(w.api.get("/dlq").await?.body["total"], 0);
    assert_eq!(w.api.get("/stats").await?.body["total_events"], 0);
    Ok(())
}

/// A clean stop and a kill: the next start finds the data, and no server is left running.
#[tokio::test]
async fn data_outlive_stops_and_kills() -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("relay-start-{}", free_port()));
    std::fs::create_dir_all(&dir)?;
    let (data, binary) = (dir.join("data"), binary("webhook-relay")?);
    let sink = it::Sink::start().await?;
    let mut events: Vec<String> = Vec::new();
    for round in 0..3 {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut up = Process::start(&dir, "up", &binary, &args(&data, &listen), &[])?;
        up.wait_ready(&format!("http://{listen}/health/ready")).await?;
        let api = it::Api::new(&format!("http://{listen}"));
        for event in &events {
            api.wait_status(event, "delivered").await?;
        }
        if round == 0 {
            api.endpoint(&sink.url("/e"), json!({})).await?;
        }
        let event = api.post("/events", &json!({"event_type": "a", "payload": round})).await?.expect(202).text("id");
        api.wait_status(&event, "delivered").await?;
        events.push(event);
        if round == 1 {
            up.kill()?;
        } else {
            assert!(up.terminate().await?, "{}", up.output());
            let text =
                String::from_utf8(Command::new("pgrep").args(["-fa", &data.to_string_lossy()]).output()?.stdout)?;
            assert_eq!(text, "", "nothing is left running");
        }
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// On another address than loopback a key is wanted, and then asked for on every route.
#[tokio::test]
async fn an_open_door_is_only_on_loopback() -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("relay-door-{}", free_port()));
    std::fs::create_dir_all(&dir)?;
    let (data, binary) = (dir.join("data"), binary("webhook-relay")?);
    let port = free_port();
    let open = Command::new(&binary)
        .args(args(&data, &format!("0.0.0.0:{port}")))
        .env_remove("RELAY_API_KEY")
        .env_remove("DATABASE_URL")
        .output()?;
    assert!(!open.status.success());
    assert!(
        String::from_utf8_lossy(&open.stderr).contains("RELAY_API_KEY"),
        "{}",
        String::from_utf8_lossy(&open.stderr)
    );

    let key = [("RELAY_API_KEY".to_owned(), "a-long-operator-key".to_owned())];
    let mut up = Process::start(&dir, "up", &binary, &args(&data, &format!("0.0.0.0:{port}")), &key)?;
    up.wait_ready(&format!("http://127.0.0.1:{port}/health/ready")).await?;
    let api = it::Api::new(&format!("http://127.0.0.1:{port}"));
    for path in ["/endpoints", "/stats", "/dlq"] {
        let refused = api.get(path).await?.expect_problem(401, "unauthorized");
        assert!(refused.headers.contains_key("www-authenticate"));
    }
    api.post("/events", &json!({"event_type": "a", "payload": 1})).await?.expect_problem(401, "unauthorized");
    api.request("GET", "/api/v1/stats", &[("authorization", "Bearer wrong")], None)
        .await?
        .expect_problem(401, "unauthorized");
    api.request("GET", "/api/v1/stats", &[("authorization", "Bearer a-long-operator-key")], None).await?.expect(200);
    // A stored key does as well: the next start needs none in its environment.
    let made = json!({"name": "later", "scopes": ["read"]});
    let headers = [("authorization", "Bearer a-long-operator-key"), ("content-type", "application/json")];
    let stored = api.request("POST", "/api/v1/keys", &headers, Some(made.to_string())).await?.expect(201).text("key");
    assert!(up.terminate().await?, "{}", up.output());
    let mut up = Process::start(&dir, "again", &binary, &args(&data, &format!("0.0.0.0:{port}")), &[])?;
    up.wait_ready(&format!("http://127.0.0.1:{port}/health/ready")).await?;
    api.get("/stats").await?.expect_problem(401, "unauthorized");
    api.with_key(&stored).get("/stats").await?.expect(200);
    drop(up);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// `--help` is useful.
#[test]
fn every_command_explains_itself() -> anyhow::Result<()> {
    for name in ["webhook-relay", "ingest", "dispatcher", "deliverer", "dlq-manager"] {
        let help = Command::new(binary(name)?).arg("--help").output()?;
        let text = String::from_utf8(help.stdout)?;
        assert!(help.status.success() && text.contains("Usage"), "{name}: {text}");
    }
    let help = Command::new(binary("webhook-relay")?).args(["up", "--help"]).output()?;
    let text = String::from_utf8(help.stdout)?;
    for flag in [
        "--data-dir",
        "--postgres-port",
        "--redis-port",
        "--nats-port",
        "--database-url",
        "--redis-url",
        "--nats-url",
        "--listen",
    ] {
        assert!(text.contains(flag), "{flag} is not in the help");
    }
    Ok(())
}
