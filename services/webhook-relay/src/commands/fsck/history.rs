//! Invariant I1 looked at afterwards: every message that EVENTS still holds and that is acknowledged must have become
//! events, aliases or dead letters. Bounded memory: part by part.

use std::collections::HashSet;

use anyhow::Context as _;
use dispatcher::{Decoded, Message, Unusable, decode};
use relay_bus::RetainedMessage;
use relay_core::bundle::BundleWriter;
use relay_core::event::Event;
use relay_core::ids::EventId;

use super::Links;
use super::report::Check;

/// Messages of one part: one of them may be a bundle of 500 events.
const PART: u64 = 200;
const HOW: &str = "fsck --repair publishes it again under its id; dispatchers store it and deliver it";

/// The check.
pub async fn accepted(links: &Links<'_>) -> Check {
    let mut check = Check::new("accepted", "every acknowledged event that NATS still holds is in PostgreSQL");
    let looked_at = walk(links, &mut check).await;
    check.ended(looked_at)
}

async fn walk(links: &Links<'_>, check: &mut Check) -> anyhow::Result<String> {
    let held = links.bus.retained().await?;
    let mut next = held.first.max(1);
    let (mut messages, mut events) = (0, 0);
    while next <= held.acknowledged {
        let part = links.bus.retained_part(next, held.acknowledged, PART).await?;
        next = part.next;
        messages += part.messages.len();
        events += look(links, check, part.messages).await?;
    }
    let waiting = held.last.saturating_sub(held.acknowledged.max(held.first.saturating_sub(1)));
    Ok(format!("{events} events in {messages} messages; {waiting} messages are not acknowledged yet"))
}

/// What a message must have become.
struct Expected {
    /// Its own id, or that of its letter.
    ids: Vec<EventId>,
    what: String,
    content: Content,
}

enum Content {
    Event(Event),
    Letter(Box<Unusable>),
}

/// Looks at some messages; returns how many events they are.
async fn look(links: &Links<'_>, check: &mut Check, messages: Vec<RetainedMessage>) -> anyhow::Result<usize> {
    let expected: Vec<_> = messages.into_iter().flat_map(|m| expect(m, links.payload_bytes_max)).collect();
    let ids: Vec<EventId> = expected.iter().flat_map(|e| e.ids.iter().copied()).collect();
    let unknown: HashSet<EventId> = links.store.unknown_events(&ids).await?.into_iter().collect();
    for lost in expected.iter().filter(|e| e.ids.iter().all(|id| unknown.contains(id))) {
        if links.repair {
            restore(links, &lost.content).await?;
        }
        check.found(links.repair, lost.what.clone(), HOW);
    }
    Ok(expected.len())
}

fn expect(m: RetainedMessage, payload_max: usize) -> Vec<Expected> {
    // A dispatcher with another limit on payloads may have made a letter of it, with this id.
    let as_letter = EventId::from_stream(m.stream, m.sequence, m.published);
    let place = format!("message {} on {}", m.sequence, m.subject);
    let message = Message {
        subject: m.subject,
        msg_id: m.msg_id,
        endpoint_id: m.endpoint_id,
        trace: m.trace,
        payload: m.payload,
        stream: m.stream,
        sequence: m.sequence,
        published: m.published,
    };
    match decode(&message, payload_max) {
        Decoded::Events(events) => events
            .into_iter()
            .map(|event| Expected {
                ids: vec![event.id, as_letter],
                what: format!("event {} of tenant {} ({place}) is not in PostgreSQL", event.id, event.tenant),
                content: Content::Event(event),
            })
            .collect(),
        Decoded::Unusable(letter) => vec![Expected {
            ids: vec![letter.event],
            what: format!("{place} can't be an event ({}) and has no dead letter", letter.error),
            content: Content::Letter(letter),
        }],
        // Dispatchers leave it for a newer one, so it is not acknowledged for good.
        Decoded::Newer(_) => Vec::new(),
    }
}

async fn restore(links: &Links<'_>, content: &Content) -> anyhow::Result<()> {
    match content {
        Content::Event(event) => {
            let mut bundle = BundleWriter::default();
            bundle.push(event);
            links.bus.publish_events(0, bundle.finish()).await.context("publishing an event again")
        }
        Content::Letter(letter) => Ok(links.store.write_letters(&[letter.letter()]).await?),
    }
}
