//! The servers behind a system, reached past it: what an operator does with psql and the NATS client.

use std::time::Duration;

use it::World;
use serde_json::{Value, json};

/// What PostgreSQL answers, in psql's plain form.
pub fn sql(w: &World, statement: &str) -> anyhow::Result<String> {
    sql_at(&w.link("DATABASE_URL")?, statement)
}

/// The same in another database.
pub fn sql_at(url: &str, statement: &str) -> anyhow::Result<String> {
    let output =
        std::process::Command::new("psql").args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, url]).output()?;
    anyhow::ensure!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The URL of another database on the same server.
pub fn database(w: &World, name: &str) -> anyhow::Result<String> {
    let mut url = reqwest::Url::parse(&w.link("DATABASE_URL")?)?;
    url.set_path(name);
    Ok(url.into())
}

/// NATS, as the services see it.
pub async fn nats(w: &World) -> anyhow::Result<async_nats::Client> {
    nats_at(&w.link("NATS_URL")?).await
}

/// The same at another URL.
pub async fn nats_at(url: &str) -> anyhow::Result<async_nats::Client> {
    let mut url = reqwest::Url::parse(url)?;
    let (user, password) = (url.username().to_owned(), url.password().unwrap_or_default().to_owned());
    let options = async_nats::ConnectOptions::with_user_and_password(user.clone(), password);
    let options = options.custom_inbox_prefix(format!("_R_{user}")).retry_on_initial_connect();
    // They are in the options.
    url.set_password(None).and_then(|()| url.set_username("")).map_err(|()| anyhow::anyhow!("no user in {url}"))?;
    Ok(options.connect(url.as_str()).await?)
}

/// Removes messages of a stream: those before `sequence`, or all.
pub async fn purge(w: &World, stream: &str, sequence: Option<u64>) -> anyhow::Result<()> {
    let body = sequence.map_or(json!({}), |seq| json!({ "seq": seq }));
    let nats = nats(w).await?;
    let ask = nats.request(format!("$JS.API.STREAM.PURGE.{stream}"), body.to_string().into());
    let answer = tokio::time::timeout(Duration::from_secs(5), ask).await??;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    anyhow::ensure!(answer["purged"].as_u64() > Some(0), "nothing was in {stream}: {answer}");
    Ok(())
}
