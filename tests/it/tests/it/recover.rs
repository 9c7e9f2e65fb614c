//! `webhook-relay recover`: PostgreSQL goes back to an older state, and what was accepted since then comes back.

use std::collections::HashSet;

use it::process::binary;
use it::{Reply, World};
use serde_json::{Value, json};

use crate::fsck::fsck;
use crate::servers::{database, purge, sql, sql_at};

/// Exit code, output and errors of `recover` with these arguments.
fn recover(w: &World, args: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
    let mut command = std::process::Command::new(binary("webhook-relay")?);
    command.arg("recover").args(args);
    for name in ["DATABASE_URL", "NATS_URL"] {
        command.env(name, w.link(name)?);
    }
    let output = command.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

/// The figures of a `recover --json`, which must end with this exit code.
pub fn figures(w: &World, code: i32, args: &[&str]) -> anyhow::Result<Value> {
    let (ended, output, error) = recover(w, &[args, &["--json"]].concat())?;
    anyhow::ensure!(ended == Some(code), "{ended:?}: {output}{error}");
    Ok(serde_json::from_str(&output)?)
}

/// `n` events over HTTP, some with keys, and as many published straight to NATS; how many were accepted.
async fn send(w: &World, name: &str, n: usize) -> anyhow::Result<usize> {
    let jetstream = async_nats::jetstream::new(async_nats::connect(&w.nats_url).await?);
    for i in 0..n {
        let mut event = json!({"event_type": "order.created", "payload": format!("{name} {i}")});
        if i % 2 == 0 {
            event["idempotency_key"] = format!("{name}-{i}").into();
        }
        w.api.post("/events", &event).await?.expect(202);
        let body = json!(format!("{name} direct {i}")).to_string();
        jetstream.publish("relay.events.default.order.created", body.into()).await?.await?;
    }
    Ok(2 * n)
}

/// Event ids and bodies that came to the receiver.
fn came(w: &World, path: &str) -> Vec<(String, Vec<u8>)> {
    let received = w.sink.received(path);
    received.iter().map(|r| (r.header("webhook-id").to_owned(), r.body.to_vec())).collect()
}

#[tokio::test]
async fn a_restored_older_database_is_refilled_and_told_what_is_missing() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let mut up = w.all("before", &[]).await?;
    w.api.endpoint(&w.sink.url("/orders"), json!({})).await?;
    w.sink.script("/refuses", vec![Reply::status(400)]);
    w.api.endpoint(&w.sink.url("/refuses"), json!({"event_types_filter": ["nothing"]})).await?;
    let old = send(&w, "old", 5).await?;
    w.sink.wait("/orders", old).await?;
    anyhow::ensure!(up.terminate().await?, "{}", up.output());

    // The dump: a copy of the database.
    let (admin, name) = (database(&w, "postgres")?, sql(&w, "select current_database()")?);
    sql_at(&admin, &format!("create database dump template \"{name}\""))?;
    let dumped = sql(&w, "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")?;

    let mut up = w.all("since", &[]).await?;
    let new = send(&w, "new", 40).await?;
    let jetstream = async_nats::jetstream::new(async_nats::connect(&w.nats_url).await?);
    jetstream.publish("relay.events.default.order.created", "no JSON".into()).await?.await?;
    w.sink.wait("/orders", old + new).await?;
    w.api.wait_for("/dlq", |a| a.body["items"].as_array().is_some_and(|letters| letters.len() == 1)).await?;
    anyhow::ensure!(up.terminate().await?, "{}", up.output());
    let first: HashSet<_> = came(&w, "/orders")[old..].iter().cloned().collect();
    assert_eq!(first.len(), new);

    // The restore.
    let anew = format!("drop database \"{name}\" with (force)");
    sql_at(&admin, &anew)?;
    sql_at(&admin, &format!("create database \"{name}\" template dump"))?;

    // The self-check of the start in between is an event too.
    let lost = json!(new + 1);
    let dry = figures(&w, 0, &["--since", &dumped, "--dry-run"])?;
    assert_eq!((&dry["recovered"], &dry["recovered_letters"], &dry["present"]), (&lost, &json!(1), &json!(0)), "{dry}");
    let done = figures(&w, 0, &["--since", &dumped])?;
    assert_eq!(
        (&done["recovered"], &done["recovered_letters"], &done["gap"]),
        (&lost, &json!(1), &Value::Null),
        "{done}"
    );
    // Nobody has taken up yet what is published: it isn't published twice.
    let again = figures(&w, 0, &["--since", &dumped])?;
    assert_eq!((&again["recovered"], &again["waiting"], &again["present"]), (&json!(0), &lost, &json!(1)), "{again}");

    let _up = w.all("after", &[]).await?;
    w.sink.wait("/orders", old + 2 * new).await?;
    let second: HashSet<_> = came(&w, "/orders")[old + new..].iter().cloned().collect();
    assert_eq!(second, first, "the same events under the same ids");
    w.api.wait_for("/events?size=1", |a| a.body["total"] == json!(old + new)).await?;
    for (id, _) in &first {
        w.api.wait_status(id, "delivered").await?;
    }
    assert_eq!(w.api.get("/dlq").await?.expect(200).body["items"].as_array().map(Vec::len), Some(1));
    let still = figures(&w, 0, &["--since", &dumped])?;
    assert_eq!((&still["recovered"], &still["waiting"]), (&json!(0), &json!(0)), "{still}");
    let (code, report) = fsck(&w, &[])?;
    assert_eq!(code, Some(0), "{report:#}");

    // From before there was a stream, and then with its begin removed.
    let (code, shown, _) = recover(&w, &["--since", "7d"])?;
    assert!(code == Some(1) && shown.contains("gap         NATS holds nothing of "), "{shown}");
    purge(&w, "EVENTS", Some(30)).await?;
    let gap = figures(&w, 1, &["--since", &dumped])?;
    assert_eq!((&gap["gap"]["from"], &gap["recovered"]), (&gap["since"], &json!(0)), "{gap}");
    assert!(gap["gap"]["to"].as_str() > gap["gap"]["from"].as_str(), "{gap}");
    assert!(gap["messages"].as_u64() > Some(0), "{gap}");
    Ok(())
}

/// What can't be done is told from what has nothing to do.
#[test]
fn servers_that_do_not_answer_and_times_to_come_are_refused() -> anyhow::Result<()> {
    let nobody = "postgres://nobody@127.0.0.1:1/none";
    for (since, says) in [("1h", "does not answer"), ("2999-01-01T00:00:00Z", "not in the past")] {
        let mut command = std::process::Command::new(binary("webhook-relay")?);
        command.args(["recover", "--since", since, "--nats-url", "nats://127.0.0.1:1"]).env("DATABASE_URL", nobody);
        let output = command.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(says), "{error}");
    }
    Ok(())
}

/// The block of commands in docs/backup.md that has these words.
fn documented(words: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(it::tools::repository().join("docs/backup.md"))?;
    let (mut blocks, mut is_in) = (Vec::<String>::new(), false);
    for line in text.lines() {
        let is_command = line.starts_with("    ");
        if is_command && !is_in {
            blocks.push(String::new());
        }
        if let (true, Some(block)) = (is_command, blocks.last_mut()) {
            block.push_str(line);
            block.push('\n');
        }
        is_in = is_command;
    }
    let found: Vec<_> = blocks.into_iter().filter(|block| block.contains(words)).collect();
    anyhow::ensure!(found.len() == 1, "{words}: {found:?}");
    Ok(found.concat())
}

/// Backup and restore with the commands that docs/backup.md has, word by word.
#[tokio::test]
async fn the_documented_commands_restore() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let dir = w.data("backup");
    std::fs::create_dir(&dir)?;
    let programs = binary("webhook-relay")?.parent().expect("it lies in a directory").to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let links = ["DATABASE_URL", "NATS_URL"].map(|name| w.link(name).map(|url| (name, url)));
    let links = links.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let run = |words: &str| {
        let mut shell = std::process::Command::new("bash");
        shell.args(["-euc", &documented(words)?]).current_dir(&dir).env("PATH", &path).envs(links.iter().cloned());
        it::tools::run(&mut shell)
    };

    let mut up = w.all("before", &[]).await?;
    w.api.endpoint(&w.sink.url("/orders"), json!({})).await?;
    let old = send(&w, "old", 3).await?;
    w.sink.wait("/orders", old).await?;
    // The command notes whole seconds, and the accept log of this test isn't older than that.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    run("pg_dump")?;
    let new = send(&w, "new", 4).await?;
    w.sink.wait("/orders", old + new).await?;
    anyhow::ensure!(up.terminate().await?, "{}", up.output());

    run("pg_restore")?;
    assert_eq!(sql(&w, "select count(*) from events where type = 'order.created'")?, old.to_string());
    let migrated =
        std::process::Command::new(binary("webhook-relay")?).arg("migrate").envs(links.iter().cloned()).output()?;
    assert_eq!(String::from_utf8_lossy(&migrated.stdout).trim(), "the schema was up to date");
    let said = run("webhook-relay recover")?;
    let recovered = format!("recovered   {new} events were published again");
    assert!(said.contains(&recovered.replace("were", "would be")) && said.contains(&recovered), "{said}");
    let _up = w.all("after", &[]).await?;
    w.sink.wait("/orders", old + 2 * new).await?;
    w.api.wait_for("/events?event_type=order.created&size=1", |a| a.body["total"] == json!(old + new)).await?;
    let (code, report) = fsck(&w, &[])?;
    assert_eq!(code, Some(0), "{report:#}");
    Ok(())
}
