//! Steps 9 and 10 of an event's way: one attempt. Checks a suspect job, signs the payload, sends it to a permitted
//! address and turns whatever happened into an outcome. Called by `drive`; writes nothing.
//!
//! Invariants: a failure of ours (a check without answer, a payload that can't be read) is never charged to the
//! endpoint; every POST that was begun gives evidence.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use hyper::header::{DATE, RETRY_AFTER};
use relay_core::answer::{Answer, parse_retry_after};
use relay_core::delivery::{DeadReason, DeliveryResult, Evidence, HandBack, Outcome};
use relay_core::ids::{AttemptId, EventId, uuid_v7};
use relay_core::job::Job;
use relay_core::lanes::Completion;
use relay_core::mutation::{self, Safety};
use relay_core::protocol::{Sighting, is_stale, is_suspect};
use relay_runtime::failpoint::{self, Point};
use relay_runtime::random;
use relay_store::{TakeKey, Taken};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Links;
use crate::client::{Reply, Sender, Sent};
use crate::gather::Gather;
use crate::judge::{Judged, judge};
use crate::meters::{Check, Meters};
use crate::pool::{handed_back, report};
use crate::prepared::{Prepared, Unsendable, header_lines};
use crate::stall::Disruptions;
use crate::work::{Report, Settled, Work};

/// What attempts work with.
pub struct Attempts {
    /// Circuits and clock.
    pub links: Links,
    /// The HTTP client.
    pub sender: Sender,
    /// Takes rows for suspect jobs.
    pub checks: Gather<TakeKey, Option<Taken>>,
    /// Reads large payloads.
    pub payloads: Gather<EventId, Option<Bytes>>,
    /// What is counted.
    pub meters: Meters,
    /// When copies of jobs may have gone elsewhere.
    pub disruptions: Disruptions,
    /// Fires when nothing new is to be sent.
    pub stopping: CancellationToken,
    /// Fires when requests in flight are to be cut short.
    pub abort: CancellationToken,
}

/// How a job ended: with something to record, or dropped because it is somebody else's by now, or nobody knows.
pub struct Ended {
    /// What is to be recorded.
    pub report: Result<Report, Settled>,
    /// For the endpoint's place among those in flight.
    pub how: Completion,
    /// What the request took, in milliseconds.
    pub took_ms: u32,
}

impl Ended {
    fn unsent(report: Report) -> Self {
        Self { report: Ok(report), how: Completion::NotSent, took_ms: 0 }
    }

    fn dropped(settled: Settled) -> Self {
        Self { report: Err(settled), how: Completion::NotSent, took_ms: 0 }
    }
}

/// A POST that shutdown cut short is due again after this time: the endpoint may be working on it.
const AFTER_ABORT: Duration = Duration::from_secs(1);

/// Sends one job, or finds that it is not to be sent. `as_probe`: only as the circuit's one probe.
pub async fn run(ctx: &Attempts, mut work: Work, prepared: Result<&Prepared, &Unsendable>, as_probe: bool) -> Ended {
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(Unsendable::Withheld(_)) => return Ended::unsent(handed_back(&work, HandBack::Withheld)),
        Err(why) => return Ended::unsent(unsendable(ctx, &work, why)),
    };
    let body = match &work.job.payload {
        Some(payload) => payload.clone(),
        None => match ctx.payloads.ask(work.job.event).await {
            Some(Some(payload)) => payload,
            // Retention dropped its day.
            Some(None) => {
                let outcome = Outcome::Dead { reason: DeadReason::Expired, deactivate: false };
                return Ended::unsent(report(&work, outcome));
            }
            None => return Ended::dropped(Settled::Unknown),
        },
    };
    failpoint::pass(Point::DeliverNext).await;
    if let Some(how) = check(ctx, &mut work, prepared).await {
        return Ended::dropped(how);
    }
    failpoint::pass(Point::DeliverChecked).await;
    if ctx.stopping.is_cancelled() {
        return Ended::unsent(handed_back(&work, HandBack::Shutdown));
    }
    let endpoint = &prepared.endpoint;
    if as_probe && !ctx.links.circuits.try_probe(endpoint.id, endpoint.lease(), ctx.links.clock.now()).await {
        return Ended::unsent(handed_back(&work, HandBack::CircuitOpen));
    }

    let begun = Instant::now();
    let sent_at = ctx.links.clock.now();
    let sent = ctx
        .abort
        .run_until_cancelled(ctx.sender.post(|| prepared.request(&work.job, &body, sent_at), endpoint.timeout))
        .await;
    let Some(sent) = sent else {
        return Ended::unsent(aborted(ctx, &work, prepared, sent_at, begun.elapsed()));
    };
    failpoint::pass(Point::DeliverAnswered).await;
    let now = ctx.links.clock.now();
    let answer = answer_of(&sent, now);
    let in_life = u32::try_from(work.job.attempt_number() - work.job.base).unwrap_or(1).max(1);
    let Judged { outcome, observation, wait, completion } =
        judge(&answer, endpoint, in_life, as_probe, now, random::unit());
    if let Some(observation) = observation {
        ctx.links.circuits.observe(endpoint.id, &endpoint.circuit, observation, as_probe, now);
    }
    if let Some(wait) = wait {
        ctx.links.circuits.wait_until(endpoint.id, now + wait);
    }
    let took_ms = sent.total_us / 1000;
    let evidence = evidence_of(sent, prepared, &work, sent_at);
    measure(&ctx.meters, &work, &outcome, &evidence);
    Ended { report: Ok(with_evidence(&work, outcome, evidence)), how: completion, took_ms }
}

/// A check whose answer comes late is made again, this often in all; then the row's lease brings the job back.
const CHECKS_MAX: usize = 3;

/// The check: a suspect job takes its delivery's row and goes on under the new claim. `Some`: drop it.
async fn check(ctx: &Attempts, work: &mut Work, prepared: &Prepared) -> Option<Settled> {
    let age = |job: &Job| (ctx.links.clock.now() - job.claimed_at).to_std().unwrap_or_default();
    let sighting = Sighting {
        age: age(&work.job),
        delivered: work.delivered,
        marked: work.marked,
        since_disruption: Some(ctx.disruptions.since(Instant::now())),
    };
    if !is_suspect(&sighting) || mutation::is_broken(Safety::SuspectCheck) {
        return None;
    }
    for _ in 0..CHECKS_MAX {
        let job = &mut work.job;
        let key = TakeKey {
            event: job.event,
            endpoint: job.endpoint,
            claim: job.claim,
            attempts: job.attempts,
            lease: prepared.endpoint.lease(),
        };
        let (result, gone) = match ctx.checks.ask(key).await {
            Some(Some(taken)) => {
                job.claim = taken.claim;
                job.claimed_at = taken.claimed_at;
                (Check::Taken, None)
            }
            Some(None) => (Check::Stale, Some(Settled::Done { claim: job.claim })),
            None => (Check::Unknown, Some(Settled::Unknown)),
        };
        ctx.meters.check(result);
        // Between its commit and its answer a check may have been overtaken, as any old claim may.
        if gone.is_some() || !is_stale(age(job)) {
            return gone;
        }
    }
    Some(Settled::Unknown)
}

fn answer_of(sent: &Sent, now: DateTime<Utc>) -> Answer {
    match &sent.answer {
        Ok(Reply { status, headers, .. }) => {
            let date = headers.get(DATE).map(|v| v.as_bytes());
            let retry_after = headers.get(RETRY_AFTER).and_then(|v| parse_retry_after(v.as_bytes(), date, now));
            Answer::Status { code: *status, retry_after }
        }
        Err(failed) => Answer::Transport(failed.class),
    }
}

fn evidence_of(sent: Sent, prepared: &Prepared, work: &Work, sent_at: DateTime<Utc>) -> Evidence {
    let bare = Evidence {
        id: AttemptId(uuid_v7(sent_at, random::bytes10())),
        attempted_at: sent_at,
        http_status: None,
        error_class: None,
        error: None,
        total_us: sent.total_us,
        connect_us: sent.connect_us,
        first_byte_us: None,
        request_headers: prepared.recorded_headers(&work.job, sent_at),
        response_headers: Bytes::new(),
        excerpt: Bytes::new(),
    };
    match sent.answer {
        Ok(reply) => Evidence {
            http_status: Some(reply.status),
            first_byte_us: Some(reply.first_byte_us),
            response_headers: header_lines(&reply.headers),
            excerpt: reply.excerpt,
            ..bare
        },
        Err(failed) => Evidence { error_class: Some(failed.class.as_str()), error: Some(failed.text), ..bare },
    }
}

fn with_evidence(work: &Work, outcome: Outcome, evidence: Evidence) -> Report {
    let bare = report(work, outcome);
    Report { result: DeliveryResult { evidence: Some(evidence), ..bare.result }, ..bare }
}

/// A POST that shutdown cut short: on record, but it uses up no attempt.
fn aborted(ctx: &Attempts, work: &Work, prepared: &Prepared, sent_at: DateTime<Utc>, after: Duration) -> Report {
    let evidence = Evidence {
        id: AttemptId(uuid_v7(sent_at, random::bytes10())),
        attempted_at: sent_at,
        http_status: None,
        error_class: Some("aborted_by_shutdown"),
        error: Some("the deliverer was shut down while it waited for the answer".to_owned()),
        total_us: u32::try_from(after.as_micros()).unwrap_or(u32::MAX),
        connect_us: None,
        first_byte_us: None,
        request_headers: prepared.recorded_headers(&work.job, sent_at),
        response_headers: Bytes::new(),
        excerpt: Bytes::new(),
    };
    let outcome = Outcome::HandedBack { delay: AFTER_ABORT, reason: HandBack::Shutdown };
    measure(&ctx.meters, work, &outcome, &evidence);
    with_evidence(work, outcome, evidence)
}

/// A row that was never allowed in holds up its own deliveries only: they end as dead letters that say why.
fn unsendable(ctx: &Attempts, work: &Work, why: &Unsendable) -> Report {
    let now = ctx.links.clock.now();
    tracing::error!(endpoint = %work.job.endpoint, error = %why, "nothing can be sent to this endpoint");
    let evidence = Evidence {
        id: AttemptId(uuid_v7(now, random::bytes10())),
        attempted_at: now,
        http_status: None,
        error_class: Some("unsendable"),
        error: Some(why.to_string()),
        total_us: 0,
        connect_us: None,
        first_byte_us: None,
        request_headers: Bytes::new(),
        response_headers: Bytes::new(),
        excerpt: Bytes::new(),
    };
    with_evidence(work, Outcome::Dead { reason: DeadReason::Permanent, deactivate: false }, evidence)
}

fn measure(meters: &Meters, work: &Work, outcome: &Outcome, evidence: &Evidence) {
    let outcome = meters.attempt(outcome, evidence.total_us);
    tracing::debug!(
        event = %work.job.event,
        endpoint = %work.job.endpoint,
        attempt = work.job.attempt_number(),
        outcome,
        status = evidence.http_status,
        error = evidence.error_class,
        total_us = evidence.total_us,
        "attempt"
    );
}
