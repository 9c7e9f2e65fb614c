//! Every identity of the system: newtypes, and the rules by which ids are derived.
//!
//! The first 48 bits of every event id are a time in milliseconds since the Unix epoch, so an id alone says
//! which day's partition its rows live in. Nothing here reads a clock or a random generator: both come in
//! as arguments. Layouts are those of RFC 9562 (UUID version 7 and version 8).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Duration, TimeZone, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// An accepted event. Also the `webhook-id` that receivers de-duplicate by.
    EventId
);
uuid_id!(
    /// An endpoint of a tenant (UUID version 7, made when it is created).
    EndpointId
);
uuid_id!(
    /// One event on its way to one endpoint: derived from the pair, never stored (see [`DeliveryId::derive`]).
    DeliveryId
);
uuid_id!(
    /// One POST of a delivery (UUID version 7, made by the pod when it sends).
    AttemptId
);
uuid_id!(
    /// An API key (UUID version 7, made when it is created); names it in lists, says nothing of its secret.
    KeyId
);
uuid_id!(
    /// A dead letter: the id of its delivery, or an id derived from the stream position of a message that
    /// never became an event.
    DeadLetterId
);
uuid_id!(
    /// A job on many dead letters (UUID version 7, made when it is asked for).
    JobId
);

/// A tenant's name, as it stands in subjects: 1-63 characters of `a-z 0-9 _ -`, starting with a letter or digit.
/// Names starting with `_` are the system's own ([`TenantId::system`]). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Why a text is no tenant name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant is 1 to 63 characters of a-z, 0-9, '_' and '-', starting with a letter or digit")]
pub struct InvalidTenant;

impl TenantId {
    /// The tenant that exists from the start, and the only one in open mode.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }

    /// The tenant of the system's own events (the self-check); never listed to users.
    pub fn system() -> Self {
        Self("_relay".into())
    }

    /// Parses a tenant name that came from outside; the system's own name is refused.
    pub fn parse(text: &str) -> Result<Self, InvalidTenant> {
        let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let all_ok = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if first_ok && all_ok && text.len() <= 63 { Ok(Self(text.into())) } else { Err(InvalidTenant) }
    }

    /// A name that we wrote ourselves (a row of `tenants`, a frame of a bundle): taken as it is.
    pub fn trusted(text: &str) -> Self {
        Self(text.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant's idempotency key: 1-255 characters of any kind.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IdempotencyKey(Arc<str>);

/// Why a text is no idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key has 1 to 255 characters")]
pub struct InvalidKey;

impl IdempotencyKey {
    /// The longest key, in characters.
    pub const CHARS_MAX: usize = 255;

    /// Checks the length.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let n = text.chars().count();
        if (1..=Self::CHARS_MAX).contains(&n) { Ok(Self(text.into())) } else { Err(InvalidKey) }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Puts `millis` into the first 48 bits, `rest` into what is left, and the version and variant bits where
/// RFC 9562 wants them.
fn stamped(millis: i64, rest: [u8; 10], version: u8) -> Uuid {
    let millis = u64::try_from(millis).unwrap_or(0);
    let mut bytes = [0u8; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&rest);
    bytes[6] = (bytes[6] & 0x0f) | (version << 4);
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Uuid::from_bytes(bytes)
}

fn digest_tail(parts: &[&[u8]]) -> [u8; 10] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(part);
    }
    let mut tail = [0u8; 10];
    tail.copy_from_slice(&hash.finalize()[..10]);
    tail
}

/// UUID version 7 from a time and ten random bytes.
pub fn uuid_v7(now: DateTime<Utc>, random: [u8; 10]) -> Uuid {
    stamped(now.timestamp_millis(), random, 7)
}

/// The time in the first 48 bits of an id.
pub fn id_time(id: Uuid) -> DateTime<Utc> {
    let mut millis = [0u8; 8];
    millis[2..].copy_from_slice(&id.as_bytes()[..6]);
    let millis = i64::try_from(u64::from_be_bytes(millis)).unwrap_or(0);
    Utc.timestamp_millis_opt(millis).single().unwrap_or_default()
}

/// The start of the UTC day that `at` lies in.
pub fn day_start(at: DateTime<Utc>) -> DateTime<Utc> {
    let millis = at.timestamp_millis();
    let day = millis.div_euclid(86_400_000) * 86_400_000;
    Utc.timestamp_millis_opt(day).single().unwrap_or_default()
}

/// The smallest id of a day: the lower bound of its partitions.
pub fn day_floor(day: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(day_start(day).timestamp_millis()).unwrap_or(0);
    let mut bytes = [0u8; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    Uuid::from_bytes(bytes)
}

impl EventId {
    /// An event accepted by REST without a key.
    pub fn fresh(now: DateTime<Utc>, random: [u8; 10]) -> Self {
        Self(uuid_v7(now, random))
    }

    /// An event published straight to NATS without a key: a redelivered message gives the same id.
    pub fn from_stream(stream: &str, sequence: u64, published: DateTime<Utc>) -> Self {
        let rest = digest_tail(&[b"stream", stream.as_bytes(), &sequence.to_be_bytes()]);
        Self(stamped(published.timestamp_millis(), rest, 7))
    }

    /// An event with an idempotency key: the tenant, the key and the UTC day of acceptance decide. Equal
    /// requests get equal ids on any pod, so the primary key of `events` is the idempotency check.
    pub fn keyed(tenant: &TenantId, key: &IdempotencyKey, accepted: DateTime<Utc>) -> Self {
        let day = day_start(accepted);
        let millis = day.timestamp_millis();
        let rest = digest_tail(&[b"key", tenant.as_str().as_bytes(), key.as_str().as_bytes(), &millis.to_be_bytes()]);
        Self(stamped(millis, rest, 8))
    }

    /// The ids that the same key would have had on the day before and the day after: a row with one of them
    /// is the same event.
    pub fn keyed_neighbours(tenant: &TenantId, key: &IdempotencyKey, accepted: DateTime<Utc>) -> [Self; 2] {
        [Self::keyed(tenant, key, accepted - Duration::days(1)), Self::keyed(tenant, key, accepted + Duration::days(1))]
    }

    /// The time in the id: of acceptance, or the start of its day for an event with a key.
    pub fn time(&self) -> DateTime<Utc> {
        id_time(self.0)
    }
}

impl DeliveryId {
    /// The public id of the pair: UUID version 8 with the event's time.
    pub fn derive(event: EventId, endpoint: EndpointId) -> Self {
        let rest = digest_tail(&[b"delivery", event.0.as_bytes(), endpoint.0.as_bytes()]);
        Self(stamped(event.time().timestamp_millis(), rest, 8))
    }
}

impl DeadLetterId {
    /// The letter of a delivery.
    pub fn of_delivery(event: EventId, endpoint: EndpointId) -> Self {
        Self(DeliveryId::derive(event, endpoint).0)
    }

    /// The letter of a message that never became an event (and of one frame in it).
    pub fn from_stream(stream: &str, sequence: u64, frame: u32, published: DateTime<Utc>) -> Self {
        let rest = digest_tail(&[b"letter", stream.as_bytes(), &sequence.to_be_bytes(), &frame.to_be_bytes()]);
        Self(stamped(published.timestamp_millis(), rest, 8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: i64) -> DateTime<Utc> {
        Utc.timestamp_millis_opt(millis).unwrap()
    }

    #[test]
    fn keyed_ids_are_the_same_all_day_and_differ_by_tenant_key_and_day() {
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        let key = IdempotencyKey::parse("order-1").unwrap();
        let noon = at(1_700_000_000_000);
        let id = EventId::keyed(&a, &key, noon);
        assert_eq!(id, EventId::keyed(&a, &key, day_start(noon)));
        assert_ne!(id, EventId::keyed(&b, &key, noon));
        assert_ne!(id, EventId::keyed(&a, &IdempotencyKey::parse("order-2").unwrap(), noon));
        let [before, after] = EventId::keyed_neighbours(&a, &key, noon);
        assert_eq!(before, EventId::keyed(&a, &key, noon - Duration::days(1)));
        assert_eq!(after, EventId::keyed(&a, &key, noon + Duration::days(1)));
        assert_eq!(id.0.get_version_num(), 8);
    }

    #[test]
    fn ids_keep_their_vectors() {
        // These values are stored in databases: a change of the derivation would orphan rows.
        let tenant = TenantId::default_tenant();
        let key = IdempotencyKey::parse("order-1").unwrap();
        let keyed = EventId::keyed(&tenant, &key, at(1_700_000_000_000));
        assert_eq!(day_start(at(1_700_000_000_000)), keyed.time());
        let endpoint = EndpointId(Uuid::from_u128(7));
        let delivery = DeliveryId::derive(keyed, endpoint);
        assert_eq!(delivery.0.get_version_num(), 8);
        assert_eq!(id_time(delivery.0), keyed.time());
        assert_eq!(DeadLetterId::of_delivery(keyed, endpoint).0, delivery.0);
    }

    #[test]
    fn tenants_are_one_subject_token() {
        for good in ["a", "default", "acme-2", "0x_y"] {
            assert!(TenantId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "_relay", "A", "a.b", "a*", "-a", "é", &"x".repeat(64)] {
            assert!(TenantId::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn time_survives_in_every_kind_of_id(millis in 0i64..4_102_444_800_000, random: [u8; 10], seq: u64) {
            let t = at(millis);
            let fresh = EventId::fresh(t, random);
            prop_assert_eq!(fresh.time(), t);
            prop_assert_eq!(fresh.0.get_version_num(), 7);
            let direct = EventId::from_stream("EVENTS", seq, t);
            prop_assert_eq!(direct.time(), t);
            prop_assert_eq!(direct, EventId::from_stream("EVENTS", seq, t));
            prop_assert!(fresh.0 >= day_floor(t));
            prop_assert!(fresh.0 < day_floor(t + Duration::days(1)));
        }
    }
}
