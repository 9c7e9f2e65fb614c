//! How long lists take on a large ledger: a system of its own is filled with events, deliveries and attempts by SQL
//! (see `ledger`), then each list is asked for many times with changing parameters.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::ledger::{self, endpoint};
use crate::report::{Figures, percentile};
use crate::system::System;

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Events in the ledger; some 1.2 KB of disk each
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// Days, and so partitions, that they are spread over
    #[arg(long, default_value_t = 10)]
    days: u64,
    /// Requests of each list
    #[arg(long, default_value_t = 200)]
    requests: u64,
}

/// Endpoints of the tenant that asks; one more has few events.
const ENDPOINTS: u64 = 100;

/// One list: its name, and the path of its i-th request.
type Case = (&'static str, Box<dyn Fn(u64) -> String>);

/// Fills a ledger and measures.
pub async fn measure(args: &Args, binary: &Path) -> anyhow::Result<Figures> {
    let system = System::start(binary)?;
    let url = system.database_url()?;
    let begun = Instant::now();
    ledger::fill(&url, args.events, args.days, ENDPOINTS)?;
    println!("{} events in {:.0} s", args.events, begun.elapsed().as_secs_f64());
    let mut figures = Figures::new(format!("lists of {} events over {} days", args.events, args.days));
    let client = Client { client: reqwest::Client::builder().no_proxy().build()?, base: system.url() };
    for (name, path) in cases(args, &client).await? {
        let mut us = Vec::new();
        // The first ones warm up connections and plans.
        for i in 0..args.requests + 10 {
            let path = path(i);
            let begun = Instant::now();
            client.get(&path).await?;
            if i >= 10 {
                us.push(u64::try_from(begun.elapsed().as_micros())?);
            }
        }
        us.sort_unstable();
        for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
            figures.add(format!("{name}: {what} ms"), percentile(&us, share));
        }
    }
    let mut us = client.walk("/events?", 100).await?;
    us.extend(client.walk(&format!("/events?endpoint_id={}&", endpoint(7)), 100).await?);
    us.sort_unstable();
    figures.add("walks of 100 steps of 200: p50 ms".to_owned(), percentile(&us, 0.5));
    figures.add("walks of 100 steps of 200: p99 ms".to_owned(), percentile(&us, 0.99));
    Ok(figures)
}

struct Client {
    client: reqwest::Client,
    base: String,
}

impl Client {
    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.client.get(format!("{}/api/v1{path}", self.base)).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if status.as_u16() == 200 { Ok(text) } else { bail!("{path}: {status} {text}") }
    }

    async fn json(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.get(path).await?)?)
    }

    /// Walks a list; microseconds of each step.
    async fn walk(&self, list: &str, steps: u64) -> anyhow::Result<Vec<u64>> {
        let (mut us, mut cursor) = (Vec::new(), String::new());
        for _ in 0..steps {
            let begun = Instant::now();
            let part = self.json(&format!("{list}limit=200&cursor={cursor}")).await?;
            us.push(u64::try_from(begun.elapsed().as_micros())?);
            let Some(next) = part["next_cursor"].as_str() else { break };
            cursor = next.to_owned();
        }
        Ok(us)
    }
}

/// All lists. Times are spread over the ledger's days, endpoints over all that there are.
async fn cases(args: &Args, client: &Client) -> anyhow::Result<Vec<Case>> {
    let mut events = Vec::new();
    let mut cursors = Vec::new();
    let today = now_seconds() / 86_400;
    for day in 1..=args.days {
        let noon = rfc3339((today - day) * 86_400 + 43_200);
        let part = client.json(&format!("/events?limit=20&cursor=&created_before={noon}")).await?;
        cursors.push(part["next_cursor"].as_str().context("the ledger ends too early")?.to_owned());
        let ids = part["items"].as_array().context("no items")?.iter().filter_map(|i| i["id"].as_str());
        events.extend(ids.map(str::to_owned));
    }
    let days = args.days;
    let time = move |i: u64| rfc3339((today - 1 - i % days) * 86_400 + i * 7919 % 86_400);
    let cursor = move |i: u64| cursors[usize::try_from(i).unwrap_or(0) % cursors.len()].clone();
    let pick = {
        let events = events.clone();
        move |i: u64| events[usize::try_from(i * 13).unwrap_or(0) % events.len()].clone()
    };
    let (attempts_of, explained) = (pick.clone(), pick.clone());
    let plain = |path: &'static str| -> Box<dyn Fn(u64) -> String> { Box::new(move |_| path.to_owned()) };
    let by_endpoint = |before: &'static str, after: &'static str| -> Box<dyn Fn(u64) -> String> {
        Box::new(move |i| format!("{before}{}{after}", endpoint(i % ENDPOINTS)))
    };
    Ok(vec![
        ("/events, first page", plain("/events")),
        ("/events, last page that pages reach", plain("/events?page=500&size=20")),
        ("/events, a page of 200", plain("/events?size=200")),
        ("/events by cursor", Box::new(move |i| format!("/events?limit=20&cursor={}", cursor(i)))),
        ("/events of an hour", {
            Box::new(move |i| {
                let until = rfc3339((today - 1 - i % days) * 86_400 + 3600 + i * 7919 % 80_000);
                let from = rfc3339((today - 1 - i % days) * 86_400 + i * 7919 % 80_000);
                format!("/events?created_after={from}&created_before={until}")
            })
        }),
        ("/events of a frequent type", plain("/events?event_type=order.created")),
        ("/events of a rare type", plain("/events?event_type=rare.type")),
        ("/events of a frequent pattern", plain("/events?event_type=order.*")),
        ("/events of a pattern that nothing matches", plain("/events?event_type=nothing.*")),
        ("/events of an endpoint", by_endpoint("/events?endpoint_id=", "")),
        ("/events of an endpoint with few", plain("/events?endpoint_id=00000000-0000-7000-8000-000000000100")),
        ("/events of an endpoint and a status", by_endpoint("/events?endpoint_id=", "&status=dead_lettered")),
        (
            "/events of an endpoint, delivered, by cursor",
            by_endpoint("/events?status=delivered&cursor=&endpoint_id=", ""),
        ),
        ("/events that are delivered", plain("/events?status=delivered")),
        ("/events that are dead-lettered", plain("/events?status=dead_lettered")),
        ("/events that failed", plain("/events?status=failed")),
        (
            "/events that failed, before a time",
            Box::new(move |i| format!("/events?status=failed&cursor=&created_before={}", time(i))),
        ),
        ("/events that are pending", plain("/events?status=pending")),
        ("/events that are discarded", plain("/events?status=discarded")),
        ("/events that are unmatched", plain("/events?status=unmatched")),
        ("/events/{id}", Box::new(move |i| format!("/events/{}", pick(i)))),
        ("/events/{id}/attempts", Box::new(move |i| format!("/events/{}/attempts", attempts_of(i)))),
        ("/events/{id}/explain", Box::new(move |i| format!("/events/{}/explain", explained(i)))),
        ("/endpoints/{id}/attempts", by_endpoint("/endpoints/", "/attempts")),
        (
            "/endpoints/{id}/attempts, last page that pages reach",
            by_endpoint("/endpoints/", "/attempts?page=500&size=20"),
        ),
        ("/endpoints", plain("/endpoints")),
        ("/dlq", plain("/dlq")),
        ("/dlq of an endpoint", by_endpoint("/dlq?endpoint_id=", "")),
    ])
}

fn now_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A Unix time as the interface takes it.
fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| chrono::DateTime::from_timestamp(s, 0)).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
