//! The wire form of delivery jobs on `relay.jobs.<lane>.<shard>`: step 7 of an event's way. A job is permission
//! to send one delivery once: it names the claim it was made by, which fences everything done with it.
//!
//! Layout, version 1: one byte version, then jobs until the end. A job is flags (u8: 1 payload, 2 trace,
//! 4 probe), event id, endpoint id (16 each), claim, attempts, base (i32 each), claim time and accept time (i64,
//! microseconds), directory version (i64), tenant, type, \[trace\], \[payload\]. Numbers are big-endian.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};

use crate::event::EventType;
use crate::ids::{EndpointId, EventId, TenantId};
use crate::wire::{Reader, WireError, put_bytes, put_time, put_uuid};

/// Jobs in one bundle at most.
pub const JOBS_MAX: usize = 64;
/// Bytes of one bundle at most (a single job with its payload may be somewhat larger).
pub const BYTES_MAX: usize = 64 * 1024;
/// Payloads up to this size travel in the job; larger ones are read from `events`.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

const VERSION: u8 = 1;
const HAS_PAYLOAD: u8 = 1;
const HAS_TRACE: u8 = 2;
const IS_PROBE: u8 = 4;

/// One delivery to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The event.
    pub event: EventId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its type, for the headers.
    pub event_type: EventType,
    /// The claim that made this job. Results are applied only while the row still has it.
    pub claim: i32,
    /// Attempts already made: this one will be number `attempts + 1`.
    pub attempts: i32,
    /// Attempts made before the last replay; `attempts - base` is what the retry budget looks at.
    pub base: i32,
    /// Postgres's `now()` of the claim: the job's age counts from here.
    pub claimed_at: DateTime<Utc>,
    /// When the event was accepted.
    pub accepted_at: DateTime<Utc>,
    /// The tenant's directory version that the matching or the claim knew.
    pub directory_version: i64,
    /// The claim was made for an endpoint whose circuit waits for a probe.
    pub probe: bool,
    /// The producer's `traceparent`.
    pub trace: Option<Arc<str>>,
    /// The payload, or `None` where it must be read from `events`.
    pub payload: Option<Bytes>,
}

impl Job {
    /// The number of the attempt that this job asks for.
    pub fn attempt_number(&self) -> i32 {
        self.attempts + 1
    }

    /// Bytes that the job takes in a bundle, nearly.
    pub fn wire_bytes(&self) -> usize {
        96 + self.tenant.as_str().len() + self.event_type.as_str().len() + self.payload.as_ref().map_or(0, Bytes::len)
    }
}

/// Writes jobs as one message.
pub fn encode(jobs: &[Job]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + jobs.iter().map(|j| j.wire_bytes() + 64).sum::<usize>());
    out.put_u8(VERSION);
    for job in jobs {
        let flags = [(job.payload.is_some(), HAS_PAYLOAD), (job.trace.is_some(), HAS_TRACE), (job.probe, IS_PROBE)]
            .into_iter()
            .filter_map(|(there, bit)| there.then_some(bit))
            .sum();
        out.put_u8(flags);
        put_uuid(&mut out, job.event.0);
        put_uuid(&mut out, job.endpoint.0);
        out.put_i32(job.claim);
        out.put_i32(job.attempts);
        out.put_i32(job.base);
        put_time(&mut out, job.claimed_at);
        put_time(&mut out, job.accepted_at);
        out.put_i64(job.directory_version);
        put_bytes(&mut out, job.tenant.as_str().as_bytes());
        put_bytes(&mut out, job.event_type.as_str().as_bytes());
        if let Some(trace) = &job.trace {
            put_bytes(&mut out, trace.as_bytes());
        }
        if let Some(payload) = &job.payload {
            put_bytes(&mut out, payload);
        }
    }
    out.freeze()
}

/// Reads a bundle of jobs. Payloads are slices of `message`.
pub fn decode(message: Bytes) -> Result<Vec<Job>, WireError> {
    let mut reader = Reader::new(message);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(WireError::UnknownVersion(version));
    }
    let mut jobs = Vec::new();
    while !reader.is_empty() {
        let flags = reader.u8()?;
        jobs.push(Job {
            event: EventId(reader.uuid()?),
            endpoint: EndpointId(reader.uuid()?),
            claim: reader.i32()?,
            attempts: reader.i32()?,
            base: reader.i32()?,
            claimed_at: reader.time()?,
            accepted_at: reader.time()?,
            directory_version: reader.i64()?,
            tenant: reader.text(TenantId::trusted)?,
            event_type: reader.text(EventType::trusted)?,
            probe: flags & IS_PROBE != 0,
            trace: if flags & HAS_TRACE != 0 { Some(reader.text(|t| t.into())?) } else { None },
            payload: if flags & HAS_PAYLOAD != 0 { Some(reader.bytes()?) } else { None },
        });
    }
    Ok(jobs)
}

/// Groups jobs into bundles within the limits, in their order.
pub fn bundles(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    let mut bytes = 0;
    for job in jobs {
        let size = job.wire_bytes();
        match groups.last_mut() {
            Some(group) if group.len() < JOBS_MAX && bytes + size <= BYTES_MAX => {
                bytes += size;
                group.push(job);
            }
            _ => {
                bytes = size;
                groups.push(vec![job]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{TimeZone, Utc};
    use proptest::prelude::*;
    use uuid::Uuid;

    prop_compose! {
        fn a_job()(event: u128, endpoint: u128, claim: i32, attempts in 0i32..1000, base in 0i32..1000, micros in 0i64..4_000_000_000_000_000,
            probe: bool, trace in prop::option::of("[0-9a-f-]{1,55}"), payload in prop::option::of(prop::collection::vec(any::<u8>(), 0..3000))) -> Job {
            Job {
                event: EventId(Uuid::from_u128(event)),
                endpoint: EndpointId(Uuid::from_u128(endpoint)),
                tenant: TenantId::default_tenant(),
                event_type: EventType::trusted("order.created"),
                claim, attempts, base, probe,
                claimed_at: Utc.timestamp_micros(micros).unwrap(),
                accepted_at: Utc.timestamp_micros(micros).unwrap(),
                directory_version: 7,
                trace: trace.map(Into::into),
                payload: payload.map(Into::into),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_in_bundles_within_limits(jobs in prop::collection::vec(a_job(), 0..150)) {
            let groups = bundles(jobs.clone());
            for group in &groups {
                prop_assert!(group.len() <= JOBS_MAX);
                prop_assert!(group.len() == 1 || group.iter().map(Job::wire_bytes).sum::<usize>() <= BYTES_MAX);
            }
            let back: Vec<Job> = groups.iter().flat_map(|g| decode(encode(g)).unwrap()).collect();
            prop_assert_eq!(back, jobs);
        }

        #[test]
        fn damaged_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }
    }
}
