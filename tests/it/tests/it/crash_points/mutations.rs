//! One safety broken on purpose (see `relay_core::mutation`), and the point or the signal that provokes exactly the harm
//! that it prevents: the books must be red, and for the right reason. Those that show under random faults are in
//! `tests/chaos/tests/mutations.rs`.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Stage, Verdict, delivering, dies};

#[track_caller]
fn assert_twice(verdict: &Verdict) {
    assert!(!verdict.duplicates.is_empty() && verdict.lost.is_empty(), "{verdict:#?}");
}

#[track_caller]
fn assert_lost(verdict: &Verdict) {
    assert!(!verdict.lost.is_empty() && verdict.duplicates.is_empty(), "{verdict:#?}");
}

#[tokio::test]
async fn without_a_check_a_pod_that_stood_still_sends_again() -> anyhow::Result<()> {
    assert_twice(&delivering::a_stopped_deliverer(Some("suspect-check")).await?);
    Ok(())
}

#[tokio::test]
async fn a_check_that_only_looks_lets_a_second_copy_through() -> anyhow::Result<()> {
    assert_twice(&delivering::a_stopped_deliverer(Some("check-takes")).await?);
    Ok(())
}

/// One failure counts as two, so the attempts are used up before the endpoint would have taken the event.
#[tokio::test]
async fn results_without_guards_use_up_attempts() -> anyhow::Result<()> {
    assert_lost(&delivering::an_unknown_record(Some("result-guards")).await?);
    Ok(())
}

/// A message that is delivered again for a dispatcher's death is taken for poison.
#[tokio::test]
async fn a_delivery_count_buries_what_nothing_is_wrong_with() -> anyhow::Result<()> {
    let mut s = Stage::start(Some("delivery-count")).await?;
    s.hook("7", []).await?;
    let _deliverer = s.run("deliverer").await?;
    let dispatcher = s.run_until("dispatcher", "dispatch.matched")?;
    s.event("7", 0).await?;
    dies(dispatcher).await?;
    let _dispatcher = s.run("dispatcher").await?;
    let verdict = s.verdict().await?;
    assert_lost(&verdict);
    Ok(())
}

/// JetStream's de-duplication works stream-wide: another tenant's message with the same id is acknowledged and dropped.
#[tokio::test]
async fn de_duplication_in_the_accept_log_loses_another_tenants_event() -> anyhow::Result<()> {
    let s = Stage::start(Some("equal-ids-stored")).await?;
    let (_dispatcher, _deliverer) = (s.run("dispatcher").await?, s.run("deliverer").await?);
    s.hook("a", []).await?;
    let made: Value = serde_json::from_str(&s.w.command(&["tenants", "create", "acme", "--json"])?)?;
    let acme = s.w.api.with_key(&s.w.key("acme", "admin", &[])?);
    acme.endpoint(&s.w.sink.url("/b"), json!({})).await?;
    let url = reqwest::Url::parse(made["nats_url"].as_str().context("a tenant has a user")?)?;
    let (user, password) = (url.username().to_owned(), url.password().unwrap_or_default().to_owned());
    let of_acme = async_nats::ConnectOptions::with_user_and_password(user, password);
    let of_acme = async_nats::jetstream::new(of_acme.connect(&s.w.nats_url).await?);
    let default = async_nats::jetstream::new(async_nats::connect(&s.w.nats_url).await?);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "order-1");
    for (js, subject) in [(&default, "relay.events.default.row.a"), (&of_acme, "relay.events.acme.row.b")] {
        js.publish_with_headers(subject, headers.clone(), "1".into()).await?.await.context("accepted")?;
    }
    s.w.sink.wait("/a", 1).await?;
    s.quiet().await?;
    assert!(s.w.sink.received("/b").is_empty(), "nobody would notice");
    Ok(())
}
