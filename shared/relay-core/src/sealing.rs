//! Secrets at rest: signing secrets, key pairs and secret header values are stored sealed by AES-256-GCM. Asked by the
//! store when it writes and reads endpoints; nonces come in as arguments.
//!
//! A sealed text is `sealed:v1:<key id>:<base64 of nonce, ciphertext and tag>`. What it belongs to (tenant, endpoint,
//! field) is authenticated with it, so that a text that was copied to another row or field doesn't open. A text that
//! doesn't start like that is a secret that was stored before there was a key: it is taken as it is.
//!
//! Invariant: no two secrets may be sealed by one key and nonce; 96 random bits hold that for 2^32 of them (NIST SP
//! 800-38D, 8.3).

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use crate::ids::{EndpointId, TenantId};

/// What a sealed text starts with. No secret that a user gives may start with it.
pub const SEALED_PREFIX: &str = "sealed:";
/// What a sealed text of this version starts with.
const V1_PREFIX: &str = "sealed:v1:";
/// What the text of a key starts with.
const KEY_PREFIX: &str = "whek_";
/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Keys at most: more is a mistake.
const KEYS_MAX: usize = 16;

/// A nonce: random, never used twice.
pub type NonceBytes = [u8; NONCE_LEN];

/// Which key sealed something: the first bytes of a hash of the key. It tells nothing of the key and may be shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealingKeyId([u8; 4]);

impl fmt::Display for SealingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SealingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SealingKeyId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 4];
        hex::decode_to_slice(text, &mut bytes).map(|()| Self(bytes)).map_err(|_| ())
    }
}

/// Why a text holds no keys. Nothing of the text is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// The key in this place, counted from 1, is none.
    #[error(
        "key {0} is none: a key is whek_ and the base64 (with padding) of 32 bytes, as `webhook-relay secrets generate` makes it"
    )]
    NotAKey(usize),
    /// There is no key at all.
    #[error("there is no key in it")]
    Empty,
    /// More than anybody needs.
    #[error("there are more than {KEYS_MAX} keys")]
    TooMany,
}

/// Why an endpoint's secrets can't be had. Its deliveries wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// This process was not given the key.
    #[error("its secrets are encrypted with key {0}, which this process does not have")]
    MissingKey(SealingKeyId),
    /// The text was changed, or belongs to something else.
    #[error(
        "its secrets do not open with the key that encrypted them: the row was damaged, or copied from another one"
    )]
    Damaged,
    /// This process has no use for secrets, or has not read them from the database yet.
    #[error("its secrets are not read here")]
    NotRead,
}

/// What a sealed text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Whose endpoint.
    pub tenant: &'a TenantId,
    /// Which one.
    pub endpoint: EndpointId,
    /// What of it.
    pub field: Field<'a>,
}

/// A secret of an endpoint. Current and previous one are the same field: a rotation moves the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// The signing secret.
    SigningSecret,
    /// The Ed25519 key pair.
    SigningKey,
    /// The value of the header with this name; case doesn't matter.
    Header(&'a str),
}

impl Place<'_> {
    /// What is authenticated with a text. Neither tenants, ids nor header names have a NUL in them.
    fn bytes(&self) -> Vec<u8> {
        let field = match self.field {
            Field::SigningSecret => "signing_secret".to_owned(),
            Field::SigningKey => "signing_key".to_owned(),
            Field::Header(name) => format!("header\0{}", name.to_ascii_lowercase()),
        };
        format!("webhook-relay\0{}\0{}\0{field}", self.tenant.as_str(), self.endpoint).into_bytes()
    }
}

struct SealingKey {
    id: SealingKeyId,
    key: LessSafeKey,
}

impl SealingKey {
    fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix(KEY_PREFIX)?).ok()?;
        let bytes: [u8; KEY_BYTES] = bytes.try_into().ok()?;
        let hash = Sha256::new().chain_update(b"webhook-relay key id\0").chain_update(bytes).finalize();
        let id = SealingKeyId(hash[..4].try_into().expect("a hash has 32 bytes"));
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("32 bytes are a key of AES-256");
        Some(Self { id, key: LessSafeKey::new(key) })
    }
}

/// The keys of a process: the first one seals, all of them open. Without any, secrets are stored as they are. `Debug`
/// shows their ids.
#[derive(Default)]
pub struct SealingKeys {
    keys: Vec<SealingKey>,
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

impl SealingKeys {
    /// A new key from 32 random bytes: the text that goes into a key file.
    pub fn generate(bytes: [u8; KEY_BYTES]) -> SecretString {
        format!("{KEY_PREFIX}{}", STANDARD.encode(bytes)).into()
    }

    /// Reads keys that stand one a line or separated by commas; `#` begins a comment.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let texts = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|text| !text.is_empty());
        let mut keys: Vec<SealingKey> = Vec::new();
        for (index, text) in texts.enumerate() {
            let key = SealingKey::parse(text).ok_or(InvalidKeys::NotAKey(index + 1))?;
            if keys.iter().all(|known| known.id != key.id) {
                keys.push(key);
            }
        }
        match keys.len() {
            0 => Err(InvalidKeys::Empty),
            1..=KEYS_MAX => Ok(Self { keys }),
            _ => Err(InvalidKeys::TooMany),
        }
    }

    /// The ids of the keys, that of the sealing one first.
    pub fn ids(&self) -> impl Iterator<Item = SealingKeyId> {
        self.keys.iter().map(|key| key.id)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The text to be stored for a secret: sealed by the first key, or as it is where there is none.
    pub fn seal(&self, place: &Place<'_>, secret: &str, nonce: NonceBytes) -> String {
        let Some(SealingKey { id, key }) = self.keys.first() else { return secret.to_owned() };
        let mut sealed = secret.as_bytes().to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.bytes()), &mut sealed)
            .expect("a secret is shorter than 64 GiB");
        format!("{V1_PREFIX}{id}:{}", STANDARD.encode([&nonce[..], &sealed].concat()))
    }

    /// The secret behind a stored text.
    pub fn open(&self, place: &Place<'_>, stored: &str) -> Result<SecretString, Withheld> {
        if !stored.starts_with(SEALED_PREFIX) {
            return Ok(stored.to_owned().into());
        }
        let (id, encoded) = parts(stored).ok_or(Withheld::Damaged)?;
        let key = self.keys.iter().find(|key| key.id == id).ok_or(Withheld::MissingKey(id))?;
        let mut bytes = STANDARD.decode(encoded).map_err(|_| Withheld::Damaged)?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN).ok_or(Withheld::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Withheld::Damaged)?;
        let secret = key.key.open_in_place(nonce, Aad::from(place.bytes()), sealed).map_err(|_| Withheld::Damaged)?;
        std::str::from_utf8(secret).map(|text| text.to_owned().into()).map_err(|_| Withheld::Damaged)
    }

    /// Whether the stored text is as [`SealingKeys::seal`] would make it now: sealed by the first key, where there is one.
    pub fn is_current(&self, stored: &str) -> bool {
        self.keys.first().is_none_or(|first| parts(stored).is_some_and(|(id, _)| id == first.id))
    }
}

/// Whether a stored text is sealed.
pub fn is_sealed(stored: &str) -> bool {
    stored.starts_with(SEALED_PREFIX)
}

fn parts(stored: &str) -> Option<(SealingKeyId, &str)> {
    let (id, encoded) = stored.strip_prefix(V1_PREFIX)?.split_once(':')?;
    Some((id.parse().ok()?, encoded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;
    use uuid::Uuid;

    fn text(byte: u8) -> String {
        SealingKeys::generate([byte; 32]).expose_secret().to_owned()
    }

    fn keys(bytes: &[u8]) -> SealingKeys {
        SealingKeys::parse(&bytes.iter().map(|b| text(*b)).collect::<Vec<_>>().join("\n")).unwrap()
    }

    fn place<'a>(tenant: &'a TenantId, endpoint: u128, field: Field<'a>) -> Place<'a> {
        Place { tenant, endpoint: EndpointId(Uuid::from_u128(endpoint)), field }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let tenant = TenantId::default_tenant();
        let place = place(&tenant, 1, Field::SigningSecret);
        let old = keys(&[1]).seal(&place, "whsec_abc", [9; 12]);
        let both = keys(&[2, 1]);
        assert_eq!(both.open(&place, &old).unwrap().expose_secret(), "whsec_abc");
        assert!(!both.is_current(&old) && keys(&[1]).is_current(&old));
        let new = both.seal(&place, "whsec_abc", [9; 12]);
        assert!(both.is_current(&new));
        let [first, second] = both.ids().collect::<Vec<_>>()[..] else { panic!() };
        assert!(new.starts_with(&format!("sealed:v1:{first}:")) && old.starts_with(&format!("sealed:v1:{second}:")));
        assert_eq!(keys(&[1]).open(&place, &new).unwrap_err(), Withheld::MissingKey(first));
        assert!(Withheld::MissingKey(first).to_string().contains(&first.to_string()));
    }

    /// AES-256-GCM as NIST SP 800-38D has it: a text that another implementation sealed opens (made with Python's
    /// `cryptography` 48: AESGCM(bytes([1]) * 32).encrypt(bytes(range(12)), b"whsec_abc", associated data)).
    #[test]
    fn the_form_is_the_documented_one() {
        let tenant = TenantId::default_tenant();
        let place = place(&tenant, 1, Field::Header("X-Api-Key"));
        assert_eq!(place.bytes(), b"webhook-relay\0default\x0000000000-0000-0000-0000-000000000001\0header\0x-api-key");
        let nonce = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        assert_eq!(keys(&[1]).seal(&place, "whsec_abc", nonce), KNOWN);
    }

    const KNOWN: &str = "sealed:v1:e4fd7442:AAECAwQFBgcICQoLzM7mQ0OhZxudKjSZIeCl3f3dTEBtIvaQNg==";

    #[test]
    fn a_text_opens_in_its_own_place_only() {
        let (mine, other) = (TenantId::default_tenant(), TenantId::parse("other").unwrap());
        let keys = keys(&[1]);
        let home = place(&mine, 1, Field::Header("X-Api-Key"));
        let sealed = keys.seal(&home, "s3cret", [0; 12]);
        assert!(keys.open(&place(&mine, 1, Field::Header("x-api-KEY")), &sealed).is_ok(), "case doesn't matter");
        for elsewhere in [
            place(&other, 1, home.field),
            place(&mine, 2, home.field),
            place(&mine, 1, Field::SigningSecret),
            place(&mine, 1, Field::SigningKey),
            place(&mine, 1, Field::Header("X-Api-Kez")),
        ] {
            assert_eq!(keys.open(&elsewhere, &sealed).unwrap_err(), Withheld::Damaged, "{elsewhere:?}");
        }
    }

    #[test]
    fn without_a_key_secrets_stand_as_they_are() {
        let tenant = TenantId::default_tenant();
        let place = place(&tenant, 1, Field::SigningSecret);
        let none = SealingKeys::default();
        assert_eq!(none.seal(&place, "whsec_abc", [0; 12]), "whsec_abc");
        assert!(none.is_empty() && none.is_current("whsec_abc") && !keys(&[1]).is_current("whsec_abc"));
        assert_eq!(keys(&[1]).open(&place, "whsec_abc").unwrap().expose_secret(), "whsec_abc");
        let sealed = keys(&[1]).seal(&place, "whsec_abc", [0; 12]);
        assert!(
            matches!(none.open(&place, &sealed), Err(Withheld::MissingKey(_))),
            "never taken for the secret itself"
        );
        for odd in ["sealed:", "sealed:v1:", "sealed:v2:00000000:AAAA", "sealed:v1:0000000g:AAAA", "sealed:v1:00000000"]
        {
            assert_eq!(keys(&[1]).open(&place, odd).unwrap_err(), Withheld::Damaged, "{odd}");
        }
    }

    #[test]
    fn keys_are_read_from_lines_and_commas_and_shown_by_id() {
        let (a, b) = (text(1), text(2));
        let written = format!("# made today\n\n {a} # seals\n{b},{a}\r\n");
        let read = SealingKeys::parse(&written).unwrap();
        assert_eq!(read.ids().collect::<Vec<_>>(), keys(&[1, 2]).ids().collect::<Vec<_>>());
        let shown = format!("{read:?}");
        assert!(shown.starts_with('[') && !shown.contains("whek_"), "{shown}");
        assert_eq!(SealingKeys::parse("# none\n , \n").unwrap_err(), InvalidKeys::Empty);
        for bad in ["whek_", "AAAA", "whek_AAAA", &a[1..], &a.to_uppercase(), &format!("{a}A")] {
            let error = SealingKeys::parse(&format!("{b},{bad}")).unwrap_err();
            assert_eq!(error, InvalidKeys::NotAKey(2), "{bad}");
        }
        let many: Vec<_> = (0..=16).map(text).collect();
        assert_eq!(SealingKeys::parse(&many.join(",")).unwrap_err(), InvalidKeys::TooMany);
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_what_was_changed_does_not(
            secret in "\\PC{0,300}", key: u8, nonce: [u8; 12], at: prop::sample::Index, flip in 1u8..,
        ) {
            let tenant = TenantId::default_tenant();
            let place = place(&tenant, 7, Field::SigningSecret);
            let keys = keys(&[key]);
            let sealed = keys.seal(&place, &secret, nonce);
            let opened = keys.open(&place, &sealed).unwrap();
            prop_assert_eq!(opened.expose_secret(), &secret);
            let (head, encoded) = sealed.rsplit_once(':').unwrap();
            let mut bytes = STANDARD.decode(encoded).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let changed = format!("{head}:{}", STANDARD.encode(&bytes));
            prop_assert_eq!(keys.open(&place, &changed).unwrap_err(), Withheld::Damaged);
            bytes.truncate(at);
            let cut = format!("{head}:{}", STANDARD.encode(&bytes));
            prop_assert_eq!(keys.open(&place, &cut).unwrap_err(), Withheld::Damaged);
        }
    }
}
