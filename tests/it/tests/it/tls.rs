//! The interface over TLS: accepting events, a renewal without a restart, and a client that forgot the `s` of https.

use std::path::{Path, PathBuf};

use it::World;
use it::api::PATIENCE;
use it::process::{Process, binary, free_port};
use serde_json::json;
use tokio::time::Instant;

/// A certificate for 127.0.0.1 in two files, and a client that trusts nothing else.
struct Certificate {
    cert: PathBuf,
    key: PathBuf,
}

impl Certificate {
    fn at(dir: &Path) -> Self {
        Self { cert: dir.join("tls.crt"), key: dir.join("tls.key") }
    }

    /// Makes a new one in place of the one before.
    fn renew(&self) -> anyhow::Result<reqwest::Client> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        std::fs::write(&self.cert, made.cert.pem())?;
        std::fs::write(&self.key, made.signing_key.serialize_pem())?;
        let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes())?;
        Ok(reqwest::Client::builder().no_proxy().tls_certs_only([root]).build()?)
    }

    fn flags(&self) -> [String; 4] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        ["--tls-cert".to_owned(), text(&self.cert), "--tls-key".to_owned(), text(&self.key)]
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_restart() -> anyhow::Result<()> {
    let w = World::servers().await?;
    let files = Certificate::at(&w.data(""));
    let client = files.renew()?;
    let (mut ingest, address) = w.service_with("ingest", "ingest", &files.flags(), &[]).await?;
    let events = format!("https://{address}/api/v1/events");
    let body = json!({"event_type": "a", "payload": 1}).to_string();
    let post = async |client: &reqwest::Client| {
        let request = client.post(&events).header("content-type", "application/json").body(body.clone());
        request.send().await.map(|answer| answer.status().as_u16())
    };
    assert_eq!(post(&client).await?, 202);

    let renewed = files.renew()?;
    ingest.signal("HUP")?;
    let deadline = Instant::now() + PATIENCE;
    while post(&renewed).await.is_err() {
        anyhow::ensure!(Instant::now() < deadline, "the new certificate is not taken: {}", ingest.output());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(post(&client).await?, 202, "a connection that stands stays");
    let fresh = it::Api::new(&format!("http://{address}"));
    fresh.get("/health").await?.expect_problem(400, "bad-request");
    std::fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nsesame!\n-----END PRIVATE KEY-----\n")?;
    ingest.signal("HUP")?;
    ingest.wait_said("the one before stays").await?;
    assert_eq!(post(&renewed).await?, 202);
    assert!(ingest.terminate().await?, "{}", ingest.output());
    assert!(!ingest.output().contains("sesame"), "{}", ingest.output());
    Ok(())
}

/// Everything in one process, over TLS, with health and metrics; it says so where it says where it is.
#[tokio::test]
async fn up_speaks_tls() -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("relay-tls-{}-{}", std::process::id(), free_port()));
    std::fs::create_dir_all(&dir)?;
    let files = Certificate::at(&dir);
    let client = files.renew()?;
    let (data, listen) = (dir.join("data").to_string_lossy().into_owned(), format!("127.0.0.1:{}", free_port()));
    let mut args: Vec<String> = [
        "up",
        "--data-dir",
        &data,
        "--postgres-port",
        "0",
        "--redis-port",
        "0",
        "--nats-port",
        "0",
        "--listen",
        &listen,
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend(files.flags());
    let mut up = Process::start(&dir, "up", &binary("webhook-relay")?, &args, &[])?;
    let deadline = Instant::now() + PATIENCE;
    while !up.output().contains(&format!("https://{listen}/api/v1 ")) {
        anyhow::ensure!(up.ended().is_none() && Instant::now() < deadline, "{}", up.output());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    for path in ["/health/ready", "/metrics", "/api/v1/stats"] {
        assert_eq!(client.get(format!("https://{listen}{path}")).send().await?.status().as_u16(), 200, "{path}");
    }
    assert!(up.terminate().await?, "{}", up.output());
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
