//! The checks, each a walk in bounded parts.

use std::collections::HashMap;
use std::time::Duration;

use chrono::TimeDelta;
use relay_bus::Unused;
use relay_core::audit::{Attempts, EventFault};
use relay_core::ids::{EndpointId, EventId};
use relay_core::page::Cursor;
use relay_store::OpenFault;
use uuid::Uuid;

use super::Links;
use super::report::Check;
use crate::commands::history::History;

/// Work that has been due for so long is overdue.
const LONG: Duration = Duration::from_secs(600);
/// Pods' clocks differ by less: attempts that near to the beginning are left out.
const CLOCKS: TimeDelta = TimeDelta::minutes(1);

/// Invariant I1: what NATS holds against PostgreSQL.
pub async fn accepted(links: &Links<'_>) -> Check {
    let mut check = Check::new("accepted", "every acknowledged event that NATS still holds is in PostgreSQL");
    let looked_at = walk_history(links, &mut check).await;
    check.ended(looked_at)
}

async fn walk_history(links: &Links<'_>, check: &mut Check) -> anyhow::Result<String> {
    let history = History::open(links.store, links.bus, links.payload_bytes_max).await?;
    let (mut messages, mut events, mut dropped, mut waiting) = (0, 0, 0, 0);
    let streams = links.bus.retained().await?;
    for held in &streams {
        let mut next = held.first.max(1);
        while next <= held.acknowledged {
            let part = history.part(held.shard, next, held.acknowledged).await?;
            next = part.next;
            messages += part.messages;
            events += part.events;
            dropped += part.dropped;
            if links.repair {
                history.restore(&part.lost).await?;
            }
            for lost in part.lost {
                check.found(
                    links.repair,
                    lost.what(),
                    "fsck --repair publishes it again under its id; dispatchers store it and deliver it",
                );
            }
        }
        waiting += held.last.saturating_sub(held.acknowledged.max(held.first.saturating_sub(1)));
    }
    let of = if streams.len() > 1 { format!(" of {} streams", streams.len()) } else { String::new() };
    let dropped = if dropped > 0 { format!(", {dropped} of them thrown away by retention") } else { String::new() };
    let unused = unused_streams(&links.bus.unused().await?);
    Ok(format!(
        "{events} events in {messages} messages{of}{dropped}; {waiting} messages are not acknowledged yet{unused}"
    ))
}

/// What is to be said of streams beyond `--event-streams` and `--job-streams`.
fn unused_streams(unused: &[Unused]) -> String {
    let (empty, others): (Vec<&Unused>, Vec<&Unused>) = unused.iter().partition(|of| of.messages == 0);
    let mut said = String::new();
    for of in others {
        said += &format!("; {} isn't used any more and holds {} messages", of.stream, of.messages);
    }
    if !empty.is_empty() {
        let names: Vec<_> = empty.iter().map(|of| of.stream).collect();
        said += &format!("; not used any more and empty, so they can be deleted: {}", names.join(", "));
    }
    said
}

/// Invariant I2, dead-lettered deliveries without letters, and the attempts of these events against the statistics.
pub async fn deliveries(links: &Links<'_>) -> (Check, Check) {
    let mut check = Check::new(
        "deliveries",
        "each delivery of an event is open or closed, never both, and dead ones have a letter",
    );
    let mut attempts = HashMap::new();
    let looked_at = walk_events(links, &mut check, &mut attempts).await;
    let counted = looked_at.as_ref().map(|_| ()).map_err(|_| anyhow::anyhow!("the events could not be looked at"));
    let check = check.ended(looked_at);
    let mut statistics = Check::new("attempts", "the statistics have every attempt that is on record");
    let looked_at = match counted {
        Ok(()) => compare_attempts(links, &mut statistics, &attempts).await,
        Err(error) => Err(error),
    };
    (check, statistics.ended(looked_at))
}

async fn walk_events(
    links: &Links<'_>,
    check: &mut Check,
    attempts: &mut HashMap<EndpointId, Attempts>,
) -> anyhow::Result<String> {
    let mut after = links.floor;
    let (mut events, mut deliveries) = (0, 0);
    loop {
        let part = links.store.audit_events(after).await?;
        let Some((last, _)) = part.last().copied() else { break };
        events += part.len();
        for (event, counts) in &part {
            deliveries += counts.fanout;
            for fault in counts.faults() {
                event_fault(links, check, *event, fault).await?;
            }
        }
        for (endpoint, found) in links.store.audit_attempts(after, last, links.since + CLOCKS).await? {
            let sum: &mut Attempts = attempts.entry(endpoint).or_default();
            sum.ok += found.ok;
            sum.failed += found.failed;
        }
        after = last.0;
    }
    Ok(format!("{events} events with {deliveries} deliveries"))
}

async fn event_fault(links: &Links<'_>, check: &mut Check, event: EventId, fault: EventFault) -> anyhow::Result<()> {
    let store = links.store;
    let (is_repaired, what, how) = match fault {
        EventFault::Missing(n) => (
            links.repair && store.restore_deliveries(event, n).await? > 0,
            format!("event {event} lacks {n} deliveries: they are neither open nor closed"),
            "fsck --repair makes the rows again where attempts, letters or filters tell for which endpoints; else send the event again",
        ),
        EventFault::Surplus(n) => (
            false,
            format!("event {event} has {n} deliveries more than it was matched with"),
            "nothing is lost; report it",
        ),
        EventFault::Both(n) => {
            let mut dropped = 0;
            if links.repair {
                for doubled in store.doubled(event).await? {
                    dropped += i64::from(store.drop_older(&doubled).await?);
                }
            }
            (
                dropped == n,
                format!("event {event} has {n} deliveries that are open and closed at once"),
                "fsck --repair keeps the row with the higher claim, which is the later one",
            )
        }
        EventFault::Unlettered(n) => (
            links.repair && store.write_lost_letters(event).await? > 0,
            format!("event {event} has {n} dead-lettered deliveries without a dead letter"),
            "fsck --repair writes the letters",
        ),
    };
    check.found(is_repaired, what, how);
    Ok(())
}

async fn compare_attempts(
    links: &Links<'_>,
    check: &mut Check,
    attempts: &HashMap<EndpointId, Attempts>,
) -> anyhow::Result<String> {
    let told = links.store.attempts_in_statistics(links.since).await?;
    let mut sum = 0;
    for (endpoint, rows) in attempts {
        sum += rows.ok + rows.failed;
        let Some(missing) = rows.missing_from(told.get(endpoint).copied().unwrap_or_default()) else { continue };
        if links.repair {
            links.store.add_attempts(*endpoint, missing).await?;
        }
        check.found(
            links.repair,
            format!(
                "statistics of endpoint {endpoint} lack {} attempts answered 2xx and {} others",
                missing.ok, missing.failed
            ),
            "only figures are affected; fsck --repair adds them",
        );
    }
    Ok(format!("{sum} attempts of {} endpoints", attempts.len()))
}

/// All open deliveries: somebody can and will send them.
pub async fn open(links: &Links<'_>) -> Check {
    let mut check =
        Check::new("open", "each open delivery has an event, an endpoint and a time at which it is claimed");
    let looked_at = walk_open(links, &mut check).await;
    check.ended(looked_at)
}

async fn walk_open(links: &Links<'_>, check: &mut Check) -> anyhow::Result<String> {
    let (mut after, mut rows) = ((Uuid::nil(), Uuid::nil()), 0);
    loop {
        let part = links.store.audit_open(after).await?;
        rows += part.rows;
        for (event, endpoint, fault) in part.wrong {
            let delivery = format!("the delivery of event {event} to endpoint {endpoint}");
            let (is_repaired, why, how) = match fault {
                OpenFault::NoEvent => (
                    false,
                    "has no event: there is nothing to send",
                    "restore the event from a backup, or let retention close the delivery as expired",
                ),
                OpenFault::NoEndpoint => {
                    (false, "has an endpoint that doesn't exist", "restore the endpoint from a backup")
                }
                OpenFault::FarLease => (
                    links.repair && links.store.end_far_lease(event, endpoint).await?,
                    "is leased for more than a day: nobody claims it",
                    "fsck --repair makes it due now",
                ),
            };
            check.found(is_repaired, format!("{delivery} {why}"), how);
        }
        match part.last {
            Some(last) => after = last,
            None => return Ok(format!("{rows} open deliveries")),
        }
    }
}

/// Dead letters against their deliveries (I4).
pub async fn letters(links: &Links<'_>) -> Check {
    let mut check = Check::new("letters", "each dead letter says what its delivery is");
    let looked_at = walk_letters(links, &mut check).await;
    check.ended(looked_at)
}

async fn walk_letters(links: &Links<'_>, check: &mut Check) -> anyhow::Result<String> {
    let (mut after, mut letters) = (Cursor { at: links.since, id: Uuid::nil() }, 0);
    loop {
        let part = links.store.audit_letters(after).await?;
        let Some(last) = part.last() else { return Ok(format!("{letters} dead letters")) };
        after = last.cursor;
        letters += part.len();
        for letter in &part {
            let Some(place) = letter.place.filter(|place| place.letter() != letter.state) else { continue };
            let is_repaired = links.repair && links.store.correct_letter(letter).await?;
            let (says, should) = (letter.state.as_str(), place.letter().as_str());
            let what = format!("dead letter {} is {says}, but its delivery is {place:?}", letter.id().0);
            check.found(is_repaired, what, format!("fsck --repair makes it {should}"));
        }
    }
}

/// Work that is due, that nothing holds, and that nobody claims.
pub async fn claims(links: &Links<'_>) -> Check {
    let mut check = Check::new("claims", "what has been due for 10 minutes is paused, held by a circuit or being sent");
    let looked_at = overdue(links, &mut check).await;
    check.ended(looked_at)
}

async fn overdue(links: &Links<'_>, check: &mut Check) -> anyhow::Result<String> {
    let leaders = links.store.leaders().await?;
    for late in links.store.overdue(LONG).await? {
        let (leader, how) = match (late.is_active, &leaders.claims, &leaders.letters) {
            (true, Some(leader), _) => {
                (leader.as_str(), "restart that dispatcher; look at its log and at the deliverers'")
            }
            (true, None, _) => ("nobody", "start a dispatcher"),
            (false, _, Some(leader)) => {
                (leader.as_str(), "restart that dlq-manager, which closes what inactive endpoints had")
            }
            (false, _, None) => ("nobody", "start a dlq-manager, which closes what inactive endpoints had"),
        };
        let lapsed = if late.leased { "a lease that lapsed" } else { "a delivery that is due" };
        let (endpoint, tenant, since) = (late.endpoint, late.tenant, late.since.format("%Y-%m-%d %H:%M:%SZ"));
        check.found(
            false,
            format!(
                "endpoint {endpoint} of tenant {tenant} has {lapsed} since {since} and hears nothing; {leader} leads"
            ),
            how,
        );
    }
    let leader = leaders.claims.as_deref().unwrap_or("nobody");
    Ok(format!("every endpoint; {leader} leads the claiming"))
}

/// Jobs on letters.
pub async fn jobs(links: &Links<'_>) -> Check {
    let mut check = Check::new("jobs", "every job on dead letters has somebody who runs it");
    let looked_at = stuck(links, &mut check).await;
    check.ended(looked_at)
}

async fn stuck(links: &Links<'_>, check: &mut Check) -> anyhow::Result<String> {
    let leader = links.store.leaders().await?.letters;
    for job in links.store.stuck_jobs(LONG).await? {
        let how = match &leader {
            Some(_) => "restart the dlq-manager that leads, or cancel the job",
            None => "start a dlq-manager: it goes on where the job is",
        };
        check.found(false, format!("job {} is not over, and nobody has taken it for 10 minutes", job.0), how);
    }
    Ok(format!("jobs that are not over; {} leads", leader.as_deref().unwrap_or("nobody")))
}

/// Statistics of what is open against the rows.
pub async fn figures(links: &Links<'_>) -> Check {
    let mut check = Check::new("statistics", "the statistics have as many open deliveries as there are");
    let looked_at = compare_figures(links, &mut check).await;
    check.ended(looked_at)
}

async fn compare_figures(links: &Links<'_>, check: &mut Check) -> anyhow::Result<String> {
    let wrong = links.store.wrong_figures().await?;
    if links.repair && !wrong.is_empty() {
        links.store.correct_figures().await?;
    }
    for w in wrong {
        let (told, rows) = (w.statistics, w.rows);
        check.found(
            links.repair,
            format!(
                "statistics of endpoint {} say {} open and {} retrying, there are {} and {}",
                w.endpoint, told.open, told.retrying, rows.open, rows.retrying
            ),
            "only figures are affected; fsck --repair corrects them",
        );
    }
    Ok("every endpoint".to_owned())
}
