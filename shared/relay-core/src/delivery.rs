//! What a delivery is, and how it changes: the states that are stored, the result of one attempt, and the
//! pure transition that the record statement carries out in SQL. Steps 10 and 11 of an event's way.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::ids::{AttemptId, EndpointId, EventId, TenantId};

/// Bytes of a response body that are kept.
pub const EXCERPT_BYTES_MAX: usize = 16 * 1024;

/// How a closed delivery ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i16)]
pub enum Closed {
    /// The endpoint answered 2xx.
    Delivered = 1,
    /// Given up; a dead letter says why.
    DeadLettered = 2,
    /// Discarded by an operator.
    Discarded = 3,
}

impl Closed {
    /// From its stored number.
    pub fn from_number(number: i16) -> Option<Self> {
        [Self::Delivered, Self::DeadLettered, Self::Discarded].into_iter().find(|c| *c as i16 == number)
    }
}

/// A delivery's status, as the interface shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Open, no attempt has failed in this life.
    Pending,
    /// Open, and a job for it is out.
    Delivering,
    /// Open, waiting for a retry.
    Failed,
    /// Closed: the endpoint answered 2xx.
    Delivered,
    /// Closed: given up.
    DeadLettered,
    /// Closed: discarded by an operator.
    Discarded,
    /// Of an event: it matched no endpoint.
    Unmatched,
}

impl Status {
    /// As it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivering => "delivering",
            Self::Failed => "failed",
            Self::Delivered => "delivered",
            Self::DeadLettered => "dead_lettered",
            Self::Discarded => "discarded",
            Self::Unmatched => "unmatched",
        }
    }

    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Delivering,
        Self::Failed,
        Self::Delivered,
        Self::DeadLettered,
        Self::Discarded,
        Self::Unmatched,
    ];

    /// From its text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// Whether there is something to be done.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Delivering | Self::Failed)
    }

    /// The status of an open row. `leased` and a lease that still runs mean that a job is out.
    pub fn of_open(attempts: i32, base: i32, lease_runs: bool) -> Self {
        match (attempts > base, lease_runs) {
            (_, true) => Self::Delivering,
            (true, false) => Self::Failed,
            (false, false) => Self::Pending,
        }
    }

    /// The status of an event: the first that applies of dead_lettered, failed, delivering, pending, discarded,
    /// delivered; `unmatched` without deliveries.
    pub fn of_event(deliveries: impl IntoIterator<Item = Self>) -> Self {
        let weight = |s: Self| match s {
            Self::DeadLettered => 6,
            Self::Failed => 5,
            Self::Delivering => 4,
            Self::Pending => 3,
            Self::Discarded => 2,
            Self::Delivered => 1,
            Self::Unmatched => 0,
        };
        deliveries.into_iter().max_by_key(|s| weight(*s)).unwrap_or(Self::Unmatched)
    }
}

impl From<Closed> for Status {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Delivered => Self::Delivered,
            Closed::DeadLettered => Self::DeadLettered,
            Closed::Discarded => Self::Discarded,
        }
    }
}

/// Why a dead letter exists. The texts are part of the interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// The attempts are used up.
    Exhausted,
    /// The endpoint refused the event for good (a 4xx that isn't retried).
    Permanent,
    /// The endpoint answered 410 and was deactivated.
    Gone,
    /// The endpoint is inactive.
    EndpointInactive,
    /// The message can't be read as an event.
    Malformed,
    /// The tenant in the subject doesn't exist.
    UnknownTenant,
    /// The endpoint it is for doesn't exist.
    UnknownEndpoint,
    /// The payload is over the limit.
    TooLarge,
    /// Its day was dropped by retention before it was delivered.
    Expired,
}

impl DeadReason {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Exhausted,
        Self::Permanent,
        Self::Gone,
        Self::EndpointInactive,
        Self::Malformed,
        Self::UnknownTenant,
        Self::UnknownEndpoint,
        Self::TooLarge,
        Self::Expired,
    ];

    /// Whether a delivery ends with this reason without having been sent.
    pub fn without_attempt(self) -> bool {
        matches!(self, Self::EndpointInactive | Self::Expired | Self::UnknownEndpoint)
    }

    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::Gone => "gone",
            Self::EndpointInactive => "endpoint_inactive",
            Self::Malformed => "malformed",
            Self::UnknownTenant => "unknown_tenant",
            Self::UnknownEndpoint => "unknown_endpoint",
            Self::TooLarge => "too_large",
            Self::Expired => "expired",
        }
    }

    /// From its text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

/// What became of a job: what the recorder writes.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// 2xx.
    Delivered,
    /// To be tried again after this delay.
    Retry {
        /// Counted from the record statement's `now()`.
        delay: Duration,
    },
    /// Given up.
    Dead {
        /// Why.
        reason: DeadReason,
        /// Deactivate the endpoint too (a 410).
        deactivate: bool,
    },
    /// Not sent: back to the table, due at its true time.
    HandedBack {
        /// Zero: due now; the claim looks at what holds it.
        delay: Duration,
        /// Why, for people and for the scheduler's budget.
        reason: HandBack,
    },
}

/// Why a job was handed back unsent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i16)]
pub enum HandBack {
    /// The endpoint's queue in the pod was full.
    Full = 1,
    /// The circuit is open, or another probe is out.
    CircuitOpen = 2,
    /// The endpoint is paused.
    Paused = 3,
    /// The pod shuts down.
    Shutdown = 4,
    /// The endpoint asked to wait (Retry-After) or its rate is used up.
    Waiting = 5,
    /// The pod doesn't have the key of the endpoint's secrets.
    Withheld = 6,
}

/// The evidence of one POST.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The attempt's identity: written once however often the statement is repeated.
    pub id: AttemptId,
    /// When it was sent.
    pub attempted_at: DateTime<Utc>,
    /// The status, where there was an answer.
    pub http_status: Option<u16>,
    /// Stable class of the error, where there was none (`timeout`, `connect` …).
    pub error_class: Option<&'static str>,
    /// The error in words.
    pub error: Option<String>,
    /// Total time in microseconds.
    pub total_us: u32,
    /// Time until connected, where a connection was made.
    pub connect_us: Option<u32>,
    /// Time until the answer's headers.
    pub first_byte_us: Option<u32>,
    /// Request headers without secrets, as `name: value` lines.
    pub request_headers: Bytes,
    /// Response headers, as `name: value` lines.
    pub response_headers: Bytes,
    /// The first [`EXCERPT_BYTES_MAX`] bytes of the response.
    pub excerpt: Bytes,
}

/// One job's result.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryResult {
    /// The event.
    pub event: EventId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The claim it was sent under.
    pub claim: i32,
    /// Attempts before this one.
    pub attempts: i32,
    /// What to do.
    pub outcome: Outcome,
    /// The POST, where there was one (also for an attempt cut short by shutdown).
    pub evidence: Option<Evidence>,
}

/// The part of an open row that transitions look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenState {
    /// The fence.
    pub claim: i32,
    /// Attempts made.
    pub attempts: i32,
    /// Attempts before the last replay.
    pub base: i32,
}

/// What is stored of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A row in `open_deliveries`.
    Open(OpenState),
    /// A row in `closed_deliveries`.
    Closed(Closed, OpenState),
}

/// What a result does to what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: stale or repeated. The attempt row is written all the same.
    Nothing,
    /// A 2xx that found the delivery delivered already.
    AlreadyDelivered,
    /// Open or closed → delivered; an open dead letter is resolved.
    Deliver {
        /// Attempts on record afterwards.
        attempts: i32,
    },
    /// Open → open: due again after the delay, lease off.
    Reschedule {
        /// Attempts on record afterwards.
        attempts: i32,
        /// Until it is due.
        delay: Duration,
    },
    /// Open → dead-lettered, with a dead letter.
    Bury {
        /// Attempts on record afterwards.
        attempts: i32,
        /// Why.
        reason: DeadReason,
    },
}

/// The transition of the protocol. The record statement is this function in SQL; a test compares the two.
///
/// A 2xx counts whatever its claim, if its number is above the row's base (not for a life that was re-sent
/// since); everything else only while claim and attempts are the job's.
pub fn apply(stored: Stored, claim: i32, attempts: i32, outcome: &Outcome) -> Effect {
    let number = attempts + 1;
    match (stored, outcome) {
        (Stored::Open(row), Outcome::Delivered) if number > row.base => {
            Effect::Deliver { attempts: row.attempts.max(number) }
        }
        (Stored::Closed(Closed::Delivered, _), Outcome::Delivered) => Effect::AlreadyDelivered,
        (Stored::Closed(_, row), Outcome::Delivered) if number > row.base => {
            Effect::Deliver { attempts: row.attempts.max(number) }
        }
        (Stored::Open(row), outcome) if row.claim == claim && row.attempts == attempts => match outcome {
            Outcome::Delivered => Effect::Nothing,
            Outcome::Retry { delay } => Effect::Reschedule { attempts: number, delay: *delay },
            Outcome::HandedBack { delay, .. } => Effect::Reschedule { attempts, delay: *delay },
            Outcome::Dead { reason, .. } => {
                Effect::Bury { attempts: if reason.without_attempt() { attempts } else { number }, reason: *reason }
            }
        },
        _ => Effect::Nothing,
    }
}

/// What became of a dead letter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LetterState {
    /// Waits for somebody.
    Open,
    /// Its delivery was opened again.
    Replayed,
    /// Its delivery was delivered after all.
    Resolved,
    /// Discarded by an operator.
    Discarded,
}

impl LetterState {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
        }
    }

    /// From its text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Replayed, Self::Resolved, Self::Discarded].into_iter().find(|s| s.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: OpenState = OpenState { claim: 3, attempts: 2, base: 1 };

    #[test]
    fn a_2xx_counts_whatever_its_claim_but_not_for_a_life_that_was_sent_again() {
        assert_eq!(apply(Stored::Open(ROW), 1, 1, &Outcome::Delivered), Effect::Deliver { attempts: 2 });
        assert_eq!(apply(Stored::Open(ROW), 1, 0, &Outcome::Delivered), Effect::Nothing);
        let dead = Stored::Closed(Closed::DeadLettered, ROW);
        assert_eq!(apply(dead, 1, 1, &Outcome::Delivered), Effect::Deliver { attempts: 2 });
        assert_eq!(apply(Stored::Closed(Closed::Delivered, ROW), 9, 9, &Outcome::Delivered), Effect::AlreadyDelivered);
    }

    #[test]
    fn everything_else_is_guarded_by_claim_and_attempts() {
        let retry = Outcome::Retry { delay: Duration::from_secs(1) };
        assert_eq!(
            apply(Stored::Open(ROW), 3, 2, &retry),
            Effect::Reschedule { attempts: 3, delay: Duration::from_secs(1) }
        );
        assert_eq!(apply(Stored::Open(ROW), 2, 2, &retry), Effect::Nothing);
        assert_eq!(apply(Stored::Open(ROW), 3, 1, &retry), Effect::Nothing);
        assert_eq!(apply(Stored::Closed(Closed::DeadLettered, ROW), 3, 2, &retry), Effect::Nothing);
        let back = Outcome::HandedBack { delay: Duration::ZERO, reason: HandBack::Full };
        assert_eq!(apply(Stored::Open(ROW), 3, 2, &back), Effect::Reschedule { attempts: 2, delay: Duration::ZERO });
        let gone = Outcome::Dead { reason: DeadReason::Gone, deactivate: true };
        assert_eq!(apply(Stored::Open(ROW), 3, 2, &gone), Effect::Bury { attempts: 3, reason: DeadReason::Gone });
        let inactive = Outcome::Dead { reason: DeadReason::EndpointInactive, deactivate: false };
        assert_eq!(
            apply(Stored::Open(ROW), 3, 2, &inactive),
            Effect::Bury { attempts: 2, reason: DeadReason::EndpointInactive }
        );
    }

    #[test]
    fn an_event_shows_its_worst_delivery() {
        use Status::*;
        assert_eq!(Status::of_event([]), Unmatched);
        assert_eq!(Status::of_event([Delivered, Failed, Pending]), Failed);
        assert_eq!(Status::of_event([Delivered, DeadLettered, Failed]), DeadLettered);
        assert_eq!(Status::of_event([Delivered, Discarded]), Discarded);
    }

    #[test]
    fn stored_numbers_and_texts_round_trip() {
        for closed in [Closed::Delivered, Closed::DeadLettered, Closed::Discarded] {
            assert_eq!(Closed::from_number(closed as i16), Some(closed));
        }
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        for reason in DeadReason::ALL {
            assert_eq!(DeadReason::parse(reason.as_str()), Some(reason));
        }
    }
}
