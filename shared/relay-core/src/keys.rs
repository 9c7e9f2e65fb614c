//! API keys: their form, their scopes, and the verdict on a key at a time. Asked by `relay_runtime::auth` for every
//! request, and by what makes keys.
//!
//! Invariant: the key itself is kept nowhere. What is stored is its SHA-256; a slow hash (argon2, bcrypt) would add
//! nothing, since it makes *guessing* expensive, and 256 random bits can't be guessed at any price. So a key can be
//! checked in microseconds, on every request.

use std::fmt;
use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::ids::{KeyId, TenantId};

/// How every key begins, so that scanners for leaked secrets can recognise one.
pub const KEY_PREFIX: &str = "wr_";
/// Characters of a key's name.
pub const KEY_NAME_CHARS: RangeInclusive<usize> = 1..=255;
/// Hexadecimal characters of the random part: 256 bits.
const RANDOM_CHARS: usize = 64;
/// Hexadecimal characters of the checksum: the first four bytes of the SHA-256 of all before it.
const CHECK_CHARS: usize = 8;
/// Keys of a tenant that are not revoked, at most.
pub const KEYS_MAX: usize = 1_000;

/// The text of a new key: `wr_`, 64 hexadecimal characters of the random bytes, 8 of a checksum. It is shown once.
pub fn key_text(random: [u8; 32]) -> String {
    let body = format!("{KEY_PREFIX}{}", hex::encode(random));
    let check = checksum(&body);
    body + &check
}

fn checksum(body: &str) -> String {
    hex::encode(&Sha256::digest(body.as_bytes())[..CHECK_CHARS / 2])
}

/// What is stored of a key and looked up by: SHA-256 of its text. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of a text that has the form of a key. `None`: it can't be one of ours (a mistyped one has a wrong
    /// checksum), and nobody needs to look for it.
    pub fn of(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let digits = text.strip_prefix(KEY_PREFIX)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() != RANDOM_CHARS + CHECK_CHARS || !digits.bytes().all(hex) {
            return None;
        }
        let (body, check) = text.split_at(text.len() - CHECK_CHARS);
        (checksum(body) == check).then(|| Self::digest(text))
    }

    /// The hash of a key's text.
    pub fn digest(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a key may be good for. The names are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Sending events: for producers.
    EventsWrite,
    /// Looking at everything of the tenant.
    Read,
    /// Changing the tenant's endpoints, dead letters and keys; implies `read` and `events:write`.
    Admin,
    /// Everything, for all tenants; implies the others.
    Operator,
}

impl Scope {
    /// All of them, the weakest first.
    pub const ALL: [Self; 4] = [Self::EventsWrite, Self::Read, Self::Admin, Self::Operator];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EventsWrite => "events:write",
            Self::Read => "read",
            Self::Admin => "admin",
            Self::Operator => "operator",
        }
    }

    /// The scope of this name.
    pub fn parse(name: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name).ok_or(UnknownScope)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// What a key with this scope may do, as bits.
    fn grants(self) -> u8 {
        match self {
            Self::EventsWrite | Self::Read => self.bit(),
            Self::Admin => self.bit() | Self::Read.bit() | Self::EventsWrite.bit(),
            Self::Operator => u8::MAX,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Scope {
    type Err = UnknownScope;
    fn from_str(name: &str) -> Result<Self, UnknownScope> {
        Self::parse(name)
    }
}

/// A name that is no scope's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be events:write, read, admin or operator")]
pub struct UnknownScope;

/// The scopes of a key.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// None: such a key opens nothing.
    pub const NONE: Self = Self(0);

    /// These.
    pub fn of(scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }

    /// Those with names that this version knows: what a newer one stored beside them is worth nothing here.
    pub fn known<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::of(names.into_iter().filter_map(|name| Scope::parse(name).ok()))
    }

    /// Those that were named, without what they imply.
    pub fn named(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.0 & scope.bit() != 0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether they allow what needs `scope`, by themselves or by what they imply.
    pub fn allow(self, scope: Scope) -> bool {
        self.named().any(|named| named.grants() & scope.bit() != 0)
    }

    /// Whether they allow all that `other` would: nobody hands out more than they have.
    pub fn cover(self, other: Self) -> bool {
        other.named().all(|scope| self.allow(scope))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.named().map(Scope::as_str)).finish()
    }
}

/// A key as every pod has it in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its name in lists and logs.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is looked up by.
    pub hash: KeyHash,
    /// What it may be used for.
    pub scopes: Scopes,
    /// From when on it is void, where it ever is.
    pub expires_at: Option<DateTime<Utc>>,
    /// Since when it is void by somebody's decision.
    pub revoked_at: Option<DateTime<Utc>>,
    /// The tenant's directory version of its last change.
    pub version: i64,
}

/// Why a key doesn't open a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// Somebody revoked it.
    #[error("the API key was revoked at {}", .0.format("%Y-%m-%dT%H:%M:%SZ"))]
    Revoked(DateTime<Utc>),
    /// Its time is over.
    #[error("the API key expired at {}", .0.format("%Y-%m-%dT%H:%M:%SZ"))]
    Expired(DateTime<Utc>),
}

impl ApiKey {
    /// Whether the key is good at `now`, whatever for.
    pub fn check(&self, now: DateTime<Utc>) -> Result<(), KeyRefused> {
        if let Some(at) = self.revoked_at {
            return Err(KeyRefused::Revoked(at));
        }
        match self.expires_at {
            Some(at) if at <= now => Err(KeyRefused::Expired(at)),
            _ => Ok(()),
        }
    }
}

/// Characters of a key that are kept and shown: enough to tell keys apart, 40 bits of 256.
const HINT_CHARS: usize = KEY_PREFIX.len() + 10;

/// The beginning of a key's text, by which its holder recognises it.
pub fn key_hint(text: &str) -> &str {
    text.get(..HINT_CHARS).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn at(seconds: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(seconds, 0).unwrap()
    }

    fn key() -> ApiKey {
        ApiKey {
            id: KeyId(Uuid::from_u128(1)),
            tenant: TenantId::default_tenant(),
            hash: KeyHash([0; 32]),
            scopes: Scopes::of([Scope::Read]),
            expires_at: None,
            revoked_at: None,
            version: 1,
        }
    }

    #[test]
    fn the_form_keeps_its_vector() {
        // Keys are in users' hands: a change of the form would lock them out.
        let text = key_text([7; 32]);
        assert_eq!(text.len(), 75);
        assert!(text.starts_with("wr_0707070707"));
        let hash = KeyHash::of(text.as_bytes()).unwrap();
        assert_eq!(hash.0, <[u8; 32]>::from(Sha256::digest(text.as_bytes())));
        assert_eq!(key_hint(&text), "wr_0707070707");
    }

    #[test]
    fn admin_and_operator_imply_the_weaker_ones() {
        use Scope::{Admin, EventsWrite, Operator, Read};
        for (has, allowed) in [
            (vec![], vec![]),
            (vec![EventsWrite], vec![EventsWrite]),
            (vec![Read], vec![Read]),
            (vec![EventsWrite, Read], vec![EventsWrite, Read]),
            (vec![Admin], vec![EventsWrite, Read, Admin]),
            (vec![Operator], vec![EventsWrite, Read, Admin, Operator]),
        ] {
            let scopes = Scopes::of(has.clone());
            let got: Vec<_> = Scope::ALL.into_iter().filter(|s| scopes.allow(*s)).collect();
            assert_eq!(got, allowed, "{has:?}");
        }
        assert!(Scopes::of([Admin]).cover(Scopes::of([Read, EventsWrite, Admin])));
        assert!(!Scopes::of([Admin]).cover(Scopes::of([Operator])));
        assert!(!Scopes::of([Read]).cover(Scopes::of([EventsWrite])));
        assert_eq!(Scopes::known(["read", "newer"]), Scopes::of([Read]));
        assert!(Scope::parse("Read").is_err());
    }

    #[test]
    fn a_key_ends_at_its_expiry_and_by_revocation() {
        assert_eq!(key().check(at(5)), Ok(()));
        let expiring = ApiKey { expires_at: Some(at(10)), ..key() };
        assert_eq!(expiring.check(at(9)), Ok(()));
        assert_eq!(expiring.check(at(10)), Err(KeyRefused::Expired(at(10))));
        let revoked = ApiKey { revoked_at: Some(at(3)), ..expiring };
        assert_eq!(revoked.check(at(2)), Err(KeyRefused::Revoked(at(3))), "at once, whatever the clocks say");
    }

    proptest! {
        #[test]
        fn every_key_is_known_by_its_form_and_no_mistyped_one(random: [u8; 32], place in 0usize..75, other in "[0-9a-z_]") {
            let text = key_text(random);
            prop_assert!(KeyHash::of(text.as_bytes()).is_some());
            let mut mistyped = text.clone();
            mistyped.replace_range(place..=place, &other);
            prop_assert_eq!(KeyHash::of(mistyped.as_bytes()).is_some(), mistyped == text);
        }

        #[test]
        fn any_bytes_are_a_key_or_none(bytes: Vec<u8>, text in "wr_\\PC{0,80}") {
            prop_assert!(KeyHash::of(&bytes).is_none());
            let _ = KeyHash::of(text.as_bytes());
        }

        #[test]
        fn what_covers_another_allows_all_of_it(a in 0u8..16, b in 0u8..16) {
            let (a, b) = (Scopes(a), Scopes(b));
            if a.cover(b) {
                for scope in Scope::ALL {
                    prop_assert!(!b.allow(scope) || a.allow(scope));
                }
            }
        }
    }
}
