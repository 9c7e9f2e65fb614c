//! Invariant I1 looked at afterwards: every message that an EVENTS still holds and that is acknowledged must have become
//! events, aliases or dead letters. What didn't can be restored from it. `fsck` and `recover` walk it, in parts of
//! bounded memory.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use dispatcher::{Decoded, Unusable, decode};
use relay_bus::{Bus, PublishError, StoredMessage};
use relay_core::audit::ThrownAway;
use relay_core::bundle::BundleWriter;
use relay_core::event::Event;
use relay_core::ids::EventId;
use relay_core::shard::Shard;
use relay_store::Store;

/// Messages of one part: one of them may be a bundle of 500 events.
const PART: u64 = 200;
/// How often a bundle is published whose storing is not known; the ids inside make copies harmless.
const TRIES: usize = 5;

/// The two places that are compared.
pub struct History<'a> {
    pub store: &'a Store,
    pub bus: &'a Bus,
    /// As the dispatchers have it.
    payload_bytes_max: usize,
    pub thrown_away: ThrownAway,
}

/// Some messages that follow each other.
pub struct Part {
    /// How many there are.
    pub messages: u64,
    /// Sequences without a message: it was removed.
    pub absent: u64,
    /// Bundles of a newer program.
    pub newer: u64,
    /// How many events and dead letters they must have become.
    pub events: u64,
    /// Of these: not in PostgreSQL any more, since retention has thrown them away.
    pub dropped: u64,
    /// What PostgreSQL doesn't have of the others.
    pub lost: Vec<Lost>,
    /// Where the next part begins.
    pub next: u64,
}

/// What a message must have become.
pub struct Lost {
    /// Its own id, or that of its letter.
    ids: Vec<EventId>,
    stream: &'static str,
    subject: Arc<str>,
    sequence: u64,
    content: Content,
}

enum Content {
    Event(Event),
    Letter(Box<Unusable>),
}

impl Lost {
    /// The event's id, or the one that its letter has.
    pub fn id(&self) -> EventId {
        match &self.content {
            Content::Event(event) => event.id,
            Content::Letter(letter) => letter.event,
        }
    }

    /// Whether it is a dead letter.
    pub fn is_letter(&self) -> bool {
        matches!(self.content, Content::Letter(_))
    }

    /// In words.
    pub fn what(&self) -> String {
        let place = format!("message {} of {} on {}", self.sequence, self.stream, self.subject);
        match &self.content {
            Content::Event(event) => {
                format!("event {} of tenant {} ({place}) is not in PostgreSQL", event.id, event.tenant)
            }
            Content::Letter(letter) => {
                format!("{place} can't be an event ({}) and has no dead letter", letter.error)
            }
        }
    }
}

impl<'a> History<'a> {
    /// Reads from PostgreSQL what needn't be there any more.
    pub async fn open(store: &'a Store, bus: &'a Bus, payload_bytes_max: usize) -> anyhow::Result<Self> {
        let thrown_away = store.thrown_away().await.context("reading what retention has thrown away")?;
        Ok(Self { store, bus, payload_bytes_max, thrown_away })
    }

    /// Compares the next messages of one of EVENTS from the sequence `from` to `to`.
    pub async fn part(&self, shard: Shard, from: u64, to: u64) -> anyhow::Result<Part> {
        let read = self.bus.retained_part(shard, from, to, PART).await?;
        let messages = read.messages.len() as u64;
        let mut part = Part {
            messages,
            absent: read.next - from - messages,
            newer: 0,
            events: 0,
            dropped: 0,
            lost: Vec::new(),
            next: read.next,
        };
        let mut expected = Vec::new();
        for message in read.messages {
            match expect(message, self.payload_bytes_max) {
                Some(all) => expected.extend(all),
                None => part.newer += 1,
            }
        }
        part.events = expected.len() as u64;
        let ids: Vec<EventId> = expected.iter().flat_map(|e| e.ids.iter().copied()).collect();
        let unknown: HashSet<EventId> = self.store.unknown_events(&ids).await?.into_iter().collect();
        let absent = expected.into_iter().filter(|e| e.ids.iter().all(|id| unknown.contains(id)));
        let (dropped, lost): (Vec<_>, Vec<_>) = absent.partition(|e| self.thrown_away.covers(e.id(), e.is_letter()));
        (part.dropped, part.lost) = (dropped.len() as u64, lost);
        Ok(part)
    }

    /// The ids of the events in the messages of one of EVENTS from the sequence `from` to `to`.
    pub async fn ids(&self, shard: Shard, from: u64, to: u64) -> anyhow::Result<HashSet<EventId>> {
        let (mut ids, mut next) = (HashSet::new(), from);
        while next <= to {
            let read = self.bus.retained_part(shard, next, to, PART).await?;
            next = read.next;
            let all = read.messages.into_iter().filter_map(|m| expect(m, self.payload_bytes_max)).flatten();
            ids.extend(all.map(|e| e.id()));
        }
        Ok(ids)
    }

    /// Publishes events again under their ids, many in a message, and writes letters. All is stored when this returns.
    pub async fn restore(&self, lost: &[Lost]) -> anyhow::Result<()> {
        let (mut events, mut letters) = (Vec::new(), Vec::new());
        for l in lost {
            match &l.content {
                Content::Event(event) => events.push(event),
                Content::Letter(letter) => letters.push(letter.letter()),
            }
        }
        for bundle in bundles(&events) {
            self.publish(bundle).await.context("publishing events again")?;
        }
        self.store.write_letters(&letters).await.context("writing dead letters again")
    }

    async fn publish(&self, bundle: Bytes) -> Result<(), PublishError> {
        for _ in 1..TRIES {
            match self.bus.publish_events(bundle.clone()).await {
                Err(PublishError::Unknown(_)) => {}
                done => return done,
            }
        }
        self.bus.publish_events(bundle).await
    }
}

/// As few messages as hold them.
fn bundles(events: &[&Event]) -> Vec<Bytes> {
    let (mut full, mut bundle) = (Vec::new(), BundleWriter::default());
    for event in events {
        if !bundle.fits(event.payload.len()) {
            full.push(std::mem::take(&mut bundle).finish());
        }
        bundle.push(event);
    }
    if !bundle.is_empty() {
        full.push(bundle.finish());
    }
    full
}

/// What a message must have become; `None`: a newer program knows.
fn expect(message: StoredMessage, payload_max: usize) -> Option<Vec<Lost>> {
    // A dispatcher with another limit on payloads may have made a letter of it, with this id.
    let as_letter = EventId::from_stream(message.stream, message.sequence, message.published);
    let decoded = decode(&message, payload_max);
    let (stream, subject, sequence) = (message.stream, Arc::<str>::from(message.subject), message.sequence);
    let of = |ids, content| Lost { ids, stream, subject: Arc::clone(&subject), sequence, content };
    match decoded {
        Decoded::Events(events) => {
            Some(events.into_iter().map(|event| of(vec![event.id, as_letter], Content::Event(event))).collect())
        }
        Decoded::Unusable(letter) => Some(vec![of(vec![letter.event], Content::Letter(letter))]),
        // Dispatchers leave it for a newer one, so it is not acknowledged for good.
        Decoded::Newer(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone as _, Utc};
    use relay_core::bundle;
    use relay_core::event::EventType;
    use relay_core::ids::TenantId;

    use super::*;

    fn message(subject: &str, payload: impl Into<Bytes>) -> StoredMessage {
        StoredMessage {
            subject: subject.to_owned(),
            msg_id: None,
            endpoint_id: None,
            trace: None,
            payload: payload.into(),
            stream: "EVENTS",
            sequence: 7,
            published: Utc.timestamp_opt(1_800_000_000, 0).single().expect("it is one moment"),
        }
    }

    fn event(n: u32, payload_bytes: usize) -> Event {
        let at = Utc.timestamp_opt(1_800_000_000 + i64::from(n), 0).single().expect("it is one moment");
        Event {
            id: EventId::from_stream("EVENTS", u64::from(n), at),
            tenant: TenantId::default_tenant(),
            event_type: EventType::trusted("a"),
            endpoint: None,
            key: None,
            accepted_at: at,
            trace: None,
            payload: vec![b'1'; payload_bytes].into(),
        }
    }

    #[test]
    fn events_are_packed_in_order_and_unchanged() {
        let sizes = (0..1200).map(|n| if n % 100 == 0 { 700 * 1024 } else { 20 });
        let events: Vec<Event> = sizes.enumerate().map(|(n, size)| event(n as u32, size)).collect();
        let packed = bundles(&events.iter().collect::<Vec<_>>());
        assert!(packed.len() < 30, "{}", packed.len());
        assert!(packed.iter().all(|b| b.len() <= bundle::BYTES_MAX));
        let read: Vec<Event> = packed.into_iter().flat_map(|b| bundle::decode(b).expect("it is a bundle")).collect();
        assert_eq!(read, events);
        assert!(bundles(&[]).is_empty());
    }

    #[test]
    fn a_restored_event_is_expected_under_the_same_id() {
        let first = expect(message("relay.events.default.a", "{}"), 100).expect("it is known");
        let Content::Event(direct) = &first[0].content else { panic!("{}", first[0].what()) };
        let again = expect(message("relay.bundles.0", bundles(&[direct]).remove(0)), 100).expect("it is known");
        assert_eq!(again[0].id(), first[0].id());
        let letter = expect(message("relay.events.default.a", "{"), 100).expect("it is known");
        assert!(letter[0].is_letter() && letter[0].what().contains("message 7 of EVENTS on relay.events.default.a"));
        assert!(expect(message("relay.bundles.0", vec![99]), 100).is_none());
    }
}
