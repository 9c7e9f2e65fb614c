//! Every NATS subject and header of the system, built and parsed in one place.

use std::fmt;

use crate::event::EventType;
use crate::ids::TenantId;

/// Empty stream that EVENTS names as its source, which switches JetStream's de-duplication off there.
pub const EVENTS_IMPORT_STREAM: &str = "EVENTS_IMPORT";
/// Subject of that empty stream; nothing is ever published on it.
pub const EVENTS_IMPORT_SUBJECT: &str = "relay.import.none";
/// Stream of dead-letter hints.
pub const DLQ_STREAM: &str = "DLQ";
/// The dispatchers' durable consumer on EVENTS.
pub const DISPATCHER_CONSUMER: &str = "dispatcher";
/// What producers publish on.
pub const EVENTS_SUBJECTS: &str = "relay.events.>";
/// What the stream JOBS took while there was only one: systems that were made then have it so still.
pub const JOBS_SUBJECTS_BEFORE: &str = "relay.jobs.>";
/// What dead-letter hints are published on.
pub const DLQ_SUBJECTS: &str = "relay.dlq.>";
/// Hint on core NATS: a tenant's directory changed (body: the tenant).
pub const HINT_DIRECTORY: &str = "relay.hint.directory";
/// Hint on core NATS: work falls due soon or an endpoint can be sent to again: the scheduler looks at once. With an
/// endpoint's id as its body, what was said of a full queue of it is over.
pub const HINT_DUE: &str = "relay.hint.due";
/// Hint on core NATS: an endpoint's queue in a deliverer is full (body: the endpoint's id); valid for a second.
pub const HINT_FULL: &str = "relay.hint.full";
/// Hint on core NATS: an endpoint's requests take long, as a deliverer sees it (body: the endpoint's id); valid for a
/// minute.
pub const HINT_SLOW: &str = "relay.hint.slow";

/// Header: the tenant's idempotency key, on `relay.events.>`.
pub const HEADER_MSG_ID: &str = "Nats-Msg-Id";
/// Header: the one endpoint the event is for, on `relay.events.>`.
pub const HEADER_ENDPOINT: &str = "Relay-Endpoint-Id";
/// Header: W3C trace context, on `relay.events.>`.
pub const HEADER_TRACE: &str = "traceparent";
/// Header of ours on `relay.jobs.>`: published a second time after an unknown outcome.
pub const HEADER_SUSPECT: &str = "Relay-Suspect";

/// The class of work a job belongs to; each has its own consumer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// First attempts.
    Fresh = 0,
    /// Attempts after a failure or a wait.
    Retry = 1,
    /// Replays of dead letters.
    Replay = 2,
    /// Work for noisy or slow endpoints.
    Slow = 3,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 4] = [Self::Fresh, Self::Retry, Self::Replay, Self::Slow];

    /// Its token in subjects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Retry => "retry",
            Self::Replay => "replay",
            Self::Slow => "slow",
        }
    }

    /// The lane with this number, as it is stored.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| *lane as i16 == number)
    }

    /// The durable consumer of the lane on JOBS.
    pub fn consumer(self) -> String {
        format!("deliverer-{}", self.as_str())
    }

    /// The subjects that the lane's consumer takes.
    pub fn filter(self) -> String {
        format!("relay.jobs.{}.>", self.as_str())
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where ingest publishes its bundles: `relay.bundles.<shard>`.
pub fn bundles(shard: u16) -> String {
    format!("relay.bundles.{shard}")
}

/// Where jobs of a lane are published: `relay.jobs.<lane>.<shard>`.
pub fn jobs(lane: Lane, shard: u16) -> String {
    format!("relay.jobs.{}.{shard}", lane.as_str())
}

/// Where the hint about a dead letter is published: `relay.dlq.<tenant>.<reason>`; `_` for no tenant.
pub fn dead_letter(tenant: Option<&TenantId>, reason: &str) -> String {
    format!("relay.dlq.{}.{reason}", tenant.map_or("_", TenantId::as_str))
}

/// Where a producer publishes an event: `relay.events.<tenant>.<event type>`.
pub fn event(tenant: &TenantId, event_type: &EventType) -> String {
    format!("relay.events.{tenant}.{event_type}")
}

/// What a subject on EVENTS means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventsSubject {
    /// A bundle that ingest published.
    Bundle,
    /// An event that a producer published.
    Direct {
        /// The tenant token.
        tenant: TenantId,
        /// The tokens after it.
        event_type: EventType,
    },
    /// Neither; the text says why.
    Bad(String),
}

/// Parses a subject on EVENTS.
pub fn parse_events(subject: &str) -> EventsSubject {
    if subject.strip_prefix("relay.bundles.").is_some_and(|shard| shard.parse::<u16>().is_ok()) {
        return EventsSubject::Bundle;
    }
    let Some(rest) = subject.strip_prefix("relay.events.") else {
        return EventsSubject::Bad("the subject is not relay.events.<tenant>.<event type>".to_owned());
    };
    let Some((tenant, event_type)) = rest.split_once('.') else {
        return EventsSubject::Bad("the subject has no event type after the tenant".to_owned());
    };
    match (TenantId::parse(tenant), EventType::parse(event_type)) {
        (Ok(tenant), Ok(event_type)) => EventsSubject::Direct { tenant, event_type },
        (Err(why), _) => EventsSubject::Bad(format!("bad tenant in the subject: {why}")),
        (_, Err(why)) => EventsSubject::Bad(format!("bad event type in the subject: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bundles_and_strangers_are_told_apart() {
        assert_eq!(parse_events(&bundles(0)), EventsSubject::Bundle);
        for bad in ["relay.bundles.x", "relay.events.default", "relay.events..x", "relay.events.A.x", "other"] {
            assert!(matches!(parse_events(bad), EventsSubject::Bad(_)), "{bad}");
        }
    }

    #[test]
    fn lanes_keep_their_numbers() {
        for lane in Lane::ALL {
            assert_eq!(Lane::from_number(lane as i16), Some(lane));
        }
        assert_eq!(Lane::from_number(9), None);
    }

    proptest! {
        #[test]
        fn what_is_built_is_parsed(tenant in "[a-z0-9][a-z0-9_-]{0,62}", kind in "[!-)+-=?-~&&[^.]]{1,20}(\\.[a-zA-Z0-9]{1,9}){0,4}") {
            let tenant = TenantId::parse(&tenant).unwrap();
            let event_type = EventType::parse(&kind).unwrap();
            let subject = event(&tenant, &event_type);
            prop_assert_eq!(parse_events(&subject), EventsSubject::Direct { tenant, event_type });
        }
    }
}
