//! Secrets stay secret: a whole run leaves none of them in a log, a table, a stream, an answer or a file of the servers;
//! and a pod without their key holds what it can't sign.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use it::process::binary;
use it::tools::run;
use it::{Answer, Reply, World};
use serde_json::{Value, json};

/// As what `secret` may turn up somewhere: itself, in hex, and in base64 wherever it begins in the encoded text.
fn forms(secret: &str) -> Vec<String> {
    let hex = hex(secret.as_bytes());
    let mut forms = vec![secret.to_owned(), hex.to_uppercase(), hex];
    for before in 0..3 {
        let text = [vec![0; before], secret.as_bytes().to_vec()].concat();
        // Characters that depend on what stands before and behind.
        let (first, last) = ([0, 2, 3][before], usize::from(text.len() % 3 != 0));
        for encoded in [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
            forms.push(encoded[first..encoded.len() - last].to_owned());
        }
    }
    forms
}

/// The files below `dir` in which one of `needles` stands, in whatever form.
fn found(dir: &Path, needles: &[String]) -> anyhow::Result<Vec<String>> {
    let patterns = std::env::temp_dir().join(random("relay-needles"));
    std::fs::write(&patterns, needles.iter().flat_map(|n| forms(n)).collect::<Vec<_>>().join("\n"))?;
    let mut grep = Command::new("grep");
    // The key file must hold the keys.
    grep.args(["-rlaF", "--exclude=secrets.keys", "-f"]).arg(&patterns).arg(dir).env("LC_ALL", "C");
    let output = grep.output()?;
    std::fs::remove_file(patterns)?;
    anyhow::ensure!(output.status.code().is_some_and(|c| c < 2), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn generate() -> anyhow::Result<String> {
    Ok(run(Command::new(binary("webhook-relay")?).args(["secrets", "generate"]))?.trim().to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn random(prefix: &str) -> String {
    let mut bytes = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom").unwrap();
    source.read_exact(&mut bytes).unwrap();
    format!("{prefix}-{}", hex(&bytes))
}

#[test]
fn every_form_is_found() {
    let secret = "s3cr3t/value+of?an-endpoint";
    for (before, after) in [("", ""), ("a", "bc"), ("ab", "c"), ("abc", "d")] {
        let text = format!("{before}{secret}{after}");
        for encoded in [text.clone(), STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
            assert!(forms(secret).iter().any(|form| encoded.contains(form)), "{text}: {encoded}");
        }
    }
    assert!(!forms(secret).iter().any(|form| "something else".contains(form)));
}

#[tokio::test]
async fn a_whole_run_leaves_no_secret_anywhere() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    // As talkative as they can be.
    w.set("RELAY_LOG", "trace");
    let mut secrets = vec![std::fs::read_to_string(w.data("secrets.keys"))?.lines().last().unwrap().to_owned()];
    let (mut ingest, address) = w.service("ingest", "ingest").await?;
    let (mut dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    let (mut deliverer, _) = w.service("deliverer", "deliverer").await?;
    let (mut manager, manager_address) = w.service("dlq-manager", "dlq-manager").await?;
    let operator = w.key("default", "operator", &[])?;
    w.use_api(&address);
    w.api = w.api.with_key(&operator);
    let letters = it::Api::new(&format!("http://{manager_address}")).with_key(&operator);
    secrets.push(operator);
    let made = w.api.post("/keys", &json!({"name": "shop", "scopes": ["events:write"]})).await?.expect(201);
    secrets.push(made.text("key"));
    let mut answers: Vec<Value> = Vec::new();

    // Endpoints that work, fail for good, fail for a while, and are not there at all; one with a circuit that stays open.
    let marker = random("marker");
    let given = random("given-signing-secret");
    let [first, second, marked] = [random("header"), random("header"), random("header")];
    secrets.extend([given.clone(), first.clone(), second.clone()]);
    let settings = json!({
        "signing_secret": given,
        "signature_schemes": ["webhook-relay", "standard-v1", "standard-v1a"],
        "custom_headers": {"X-Team": random("team"), "Authorization": {"value": first, "secret": true}, "X-Marked": marked},
        "event_types_filter": ["good"],
    });
    let good = w.api.endpoint(&w.sink.url("/good"), settings).await?;
    assert_eq!(good.body["custom_headers"]["Authorization"], json!({"secret": true}));
    let team = good.body["custom_headers"]["X-Team"].as_str().unwrap().to_owned();
    let good = good.text("id");
    w.sink.script("/bad", [Reply::status(400)]);
    w.sink.script("/flaky", [Reply::status(500), Reply::status(200)]);
    let secret_header = json!({"X-Pass": {"value": second, "secret": true}});
    let closed = format!("http://127.0.0.1:{}/", it::process::free_port());
    for (name, url) in [("bad", w.sink.url("/bad")), ("flaky", w.sink.url("/flaky")), ("away", closed)] {
        let settings = json!({
            "custom_headers": secret_header, "event_types_filter": [name], "retry_schedule_seconds": [0, 0],
            "circuit_failure_threshold": 1, "circuit_recovery_seconds": 1,
        });
        secrets.push(w.api.endpoint(&url, settings).await?.text("signing_secret"));
    }
    w.sink.script("/open", [Reply::status(500)]);
    let settings = json!({
        "custom_headers": secret_header, "event_types_filter": ["open"], "retry_schedule_seconds": [3600],
        "circuit_failure_threshold": 1, "circuit_recovery_seconds": 3600,
    });
    let open = w.api.endpoint(&w.sink.url("/open"), settings).await?;
    secrets.push(open.text("signing_secret"));

    // Marked later, kept and changed; its secret and the key in the database change.
    let path = format!("/endpoints/{good}");
    let keep = json!({"custom_headers": {
        "x-team": team, "authorization": {"secret": true}, "X-Marked": {"secret": true}, "X-New": {"value": second, "secret": true},
    }});
    answers.push(w.api.patch(&path, &keep).await?.expect(200).body);
    assert_eq!(answers[0]["custom_headers"]["X-Marked"], json!({"secret": true}));
    let unknown = json!({"custom_headers": {"X-Never": {"secret": true}}});
    w.api.patch(&path, &unknown).await?.expect(422);
    let rotated = w.api.post(&format!("{path}/rotate-secret"), &json!({})).await?.expect(200);
    secrets.push(rotated.text("signing_secret"));
    let send = async |event_type: &str| -> anyhow::Result<String> {
        let body = json!({"event_type": event_type, "payload": {"note": marker}});
        Ok(w.api.post("/events", &body).await?.expect(202).text("id"))
    };
    let events = [send("good").await?, send("bad").await?, send("flaky").await?, send("away").await?];
    for (event, status) in events.iter().zip(["delivered", "dead_lettered", "delivered", "dead_lettered"]) {
        answers.push(w.api.wait_status(event, status).await?.body);
    }
    w.api.wait_status(&send("open").await?, "failed").await?;
    let stats = format!("/endpoints/{}/stats", open.text("id"));
    w.api.wait_for(&stats, |answer| answer.body["circuit_state"] == "open").await?;
    let received = w.sink.wait("/good", 1).await?;
    for (name, value) in [("authorization", &first), ("x-marked", &marked), ("x-new", &second), ("x-team", &team)] {
        assert_eq!(received[0].header(name), value, "{name}");
    }

    // A new key for the database.
    let key = generate()?;
    let file = w.data("secrets.keys");
    std::fs::write(&file, format!("{key}\n{}\n", secrets[0]))?;
    let done: Value = serde_json::from_str(&w.command(&["secrets", "rotate", "--json"])?)?;
    assert!(done["rotated"].as_u64().unwrap() >= 12 && done["encrypted"] == 0 && done["failed"] == json!([]), "{done}");
    assert_eq!(done["unneeded_keys"].as_array().unwrap().len(), 1, "{done}");
    std::fs::write(&file, format!("{key}\n"))?;
    secrets.push(key);
    assert!(deliverer.terminate().await?);
    let (mut deliverer, _) = w.service("deliverer-2", "deliverer").await?;
    w.api.wait_status(&send("good").await?, "delivered").await?;
    let received = w.sink.wait("/good", 2).await?;
    assert_eq!(received[1].header("authorization"), first);

    // Everything that can be asked for.
    for path in [path.clone(), "/endpoints".to_owned(), "/events".to_owned(), "/keys".to_owned(), "/stats".to_owned()] {
        answers.push(w.api.get(&path).await?.expect(200).body);
    }
    let listed = letters.get("/dlq").await?.expect(200).body;
    let letter = listed["items"][0]["id"].as_str().unwrap();
    answers.push(letters.post(&format!("/dlq/{letter}/replay"), &json!({})).await?.expect(200).body);
    answers.push(listed);
    for process in [&mut ingest, &mut dispatcher, &mut deliverer, &mut manager] {
        assert!(process.terminate().await?, "{}", process.output());
    }

    // Everything that is written anywhere: answers and logs, the tables, the files of all three servers.
    let dir = w.data("..");
    std::fs::write(dir.join("answers.txt"), json!(answers).to_string())?;
    run(Command::new("pg_dump").arg("--inserts").arg("-f").arg(dir.join("dump.sql")).arg(w.link("DATABASE_URL")?))?;
    let redis = reqwest::Url::parse(&w.link("REDIS_URL")?)?;
    let port = redis.port().unwrap().to_string();
    for command in [&["CONFIG", "SET", "rdbcompression", "no"][..], &["SAVE"]] {
        let mut client = Command::new("redis-cli");
        // Not by its URL: without a user's name in it this program takes the name to be empty.
        client.env("REDISCLI_AUTH", redis.password().unwrap()).args(["-e", "-p", &port]).args(command);
        run(&mut client)?;
    }
    assert_eq!(found(&dir, &secrets)?, Vec::<String>::new());
    // What was stored before it was marked is in old rows and the log of PostgreSQL for a while, and nowhere else.
    let left = found(&dir, &[marked])?;
    assert!(left.iter().all(|file| file.contains("/data/postgres/")), "{left:?}");
    let dump = std::fs::read_to_string(dir.join("dump.sql"))?;
    assert!(dump.contains("sealed:v1:") && !dump.contains("whsec_") && !dump.contains("whsk_"));

    // The same search finds what is no secret, in each of these places.
    let places = |needle: &str| found(&dir, &[needle.to_owned()]);
    let is_in = |files: &[String], part: &str| assert!(files.iter().any(|f| f.contains(part)), "{part}: {files:?}");
    let files = places(&marker)?;
    for part in ["/data/nats", "/data/postgres", "dump.sql", "answers.txt"] {
        is_in(&files, part);
    }
    is_in(&places(&team)?, "dump.sql");
    let files = places(&events[0])?;
    is_in(&files, "deliverer.log");
    is_in(&places(&open.text("id"))?, "dump.rdb");
    Ok(())
}

#[tokio::test]
async fn a_deliverer_without_the_key_holds_and_says_which() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (_ingest, address) = w.service("ingest", "ingest").await?;
    let (_dispatcher, _) = w.service("dispatcher", "dispatcher").await?;
    w.use_api(&address);
    let endpoint = w.api.endpoint(&w.sink.url("/held"), json!({})).await?;
    let other = w.data("other.keys");
    std::fs::write(&other, generate()?)?;
    let right = w.link("RELAY_SECRETS_KEY_FILE")?;
    w.set("RELAY_SECRETS_KEY_FILE", other.to_str().unwrap());
    let it::world::Launched { process: mut blind, health, .. } =
        w.launch("deliverer-blind", "deliverer", None, &[], &[])?;
    let event = w.api.event(&endpoint.text("id"), "order.created", json!({})).await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let handed_back = "relay_deliverer_handed_back_total{reason=\"secrets_withheld\"}";
    let held = async {
        loop {
            let metrics = client.get(format!("http://{health}/metrics")).send().await;
            if let Ok(metrics) = metrics
                && metrics.text().await?.contains(handed_back)
            {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(it::api::PATIENCE, held).await??;
    let ready = client.get(format!("http://{health}/health/ready")).send().await?;
    assert_eq!(ready.status().as_u16(), 503);
    let said: Value = serde_json::from_str(&ready.text().await?)?;
    let said = said["checks"]["secrets"].as_str().unwrap_or_default().to_owned();
    let key = said.strip_prefix("key ").and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
    assert!(key.len() == 8 && said.contains("for 1 endpoints"), "{said}");
    assert!(blind.output().contains(&key), "{}", blind.output());
    let waiting = w.api.get(&format!("/events/{event}")).await?.expect(200);
    assert_eq!(
        (&waiting.body["attempt_count"], &waiting.body["attempts"]),
        (&json!(0), &json!([])),
        "{}",
        waiting.body
    );
    assert!(waiting.body["status"] == "pending" || waiting.body["status"] == "delivering", "{}", waiting.body);
    assert!(blind.terminate().await?);

    // With the key it goes out, signed with the endpoint's secret.
    w.set("RELAY_SECRETS_KEY_FILE", &right);
    let (_deliverer, _) = w.service("deliverer", "deliverer").await?;
    let delivered: Answer = w.api.wait_status(&event, "delivered").await?;
    assert_eq!(delivered.body["attempt_count"], 1);
    let received = w.sink.wait("/held", 1).await?;
    let verified = w
        .api
        .request(
            "POST",
            "/api/v1/inbound/verify",
            &[
                ("x-webhook-signature", received[0].header("x-webhook-signature")),
                ("x-webhook-secret", &endpoint.text("signing_secret")),
                ("content-type", "application/json"),
            ],
            Some(String::from_utf8(received[0].body.to_vec())?),
        )
        .await?;
    assert_eq!(verified.body["valid"], true, "{}", verified.body);
    Ok(())
}
