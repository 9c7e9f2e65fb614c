//! Waits, after the last fault, until nothing is open that could be sent: the accept log is worked off, no delivery is
//! open, and every accepted event has arrived where it should.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::ledger::Accepted;
use crate::plan;
use crate::receivers::Receivers;
use crate::system::System;

/// How it ended.
#[derive(Debug)]
pub struct Quiesced {
    /// How long it took.
    pub took: Duration,
    /// What was still open when the time was over; `None` = nothing.
    pub open: Option<String>,
}

/// Waits at most `limit`.
pub async fn wait(
    system: &System,
    receivers: &Receivers,
    accepted: &[Accepted],
    limit: Duration,
) -> anyhow::Result<Quiesced> {
    let started = Instant::now();
    loop {
        let open = still_open(system, receivers, accepted).await;
        let took = started.elapsed();
        match open {
            None => return Ok(Quiesced { took, open: None }),
            Some(open) if took >= limit => return Ok(Quiesced { took, open: Some(open) }),
            Some(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn still_open(system: &System, receivers: &Receivers, accepted: &[Accepted]) -> Option<String> {
    let log = match system.jetstream("CONSUMER.INFO.EVENTS.dispatcher", &serde_json::json!({})).await {
        Ok(info) => info["num_pending"].as_u64().unwrap_or(1) + info["num_ack_pending"].as_u64().unwrap_or(1),
        Err(error) => return Some(format!("{error:#}")),
    };
    if log > 0 {
        return Some(format!("{log} messages of EVENTS"));
    }
    match system.sql("select count(*) from open_deliveries").await {
        Ok(count) if count == "0" => {}
        Ok(count) => return Some(format!("{count} open deliveries")),
        Err(error) => return Some(format!("{error:#}")),
    }
    let receipts = receivers.receipts();
    let arrived: HashSet<_> = receipts
        .iter()
        .filter(|r| r.taken().is_some() || r.status == 400)
        .filter_map(|r| Some((r.number?, r.hook?)))
        .collect();
    let missing = accepted
        .iter()
        .flat_map(|event| plan::hooks(event.number).map(|hook| (event.number, hook)))
        .filter(|pair| !arrived.contains(pair))
        .count();
    (missing > 0).then(|| format!("{missing} deliveries that nobody made, though nothing is open"))
}
