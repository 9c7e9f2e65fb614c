//! The Ed25519 key pair of an endpoint, for the scheme `v1a` of Standard Webhooks: `whsk_` and the base64 of seed and
//! public key is what we store, `whpk_` and the base64 of the public key is what receivers get.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

const PRIVATE_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";
/// Bytes of a seed, and of a public key.
const KEY_BYTES: usize = 32;

/// Why a text is no key. The text itself is never repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// No public key.
    #[error("a public key is whpk_ and the base64 (with padding) of 32 bytes")]
    Public,
    /// No key pair.
    #[error("a key pair is whsk_ and the base64 (with padding) of a seed and its public key")]
    Private,
}

/// A key pair. `Debug` hides it. Cheap to clone.
#[derive(Clone)]
pub struct SigningKey {
    text: SecretString,
    pair: Arc<Ed25519KeyPair>,
    public: PublicKey,
}

impl SigningKey {
    /// A new pair from 32 random bytes.
    pub fn generate(seed: [u8; KEY_BYTES]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are a seed");
        let public = public_of(&pair);
        let text = format!("{PRIVATE_PREFIX}{}", STANDARD.encode([seed, public.0].concat()));
        Self { text: text.into(), pair: Arc::new(pair), public }
    }

    /// Reads a stored pair.
    pub fn parse(text: String) -> Result<Self, InvalidKey> {
        let bytes = decode(&text, PRIVATE_PREFIX).ok_or(InvalidKey::Private)?;
        let (seed, public) = bytes.split_at_checked(KEY_BYTES).ok_or(InvalidKey::Private)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| InvalidKey::Private)?;
        let public = public_of(&pair);
        Ok(Self { text: text.into(), pair: Arc::new(pair), public })
    }

    /// The text, to store it.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// What receivers verify with.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn pair(&self) -> Arc<Ed25519KeyPair> {
        Arc::clone(&self.pair)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

fn public_of(pair: &Ed25519KeyPair) -> PublicKey {
    PublicKey(pair.public_key().as_ref().try_into().expect("a public key has 32 bytes"))
}

fn decode(text: &str, prefix: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.strip_prefix(prefix)?).ok()
}

/// A public key; its text is `whpk_` and base64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Reads the text.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let bytes = decode(text, PUBLIC_PREFIX).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(InvalidKey::Public)
    }

    /// Whether `signature` is its pair's over `content`.
    pub(super) fn verifies(&self, content: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(content, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", STANDARD.encode(self.0))
    }
}
