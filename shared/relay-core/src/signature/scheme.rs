//! Which signatures an endpoint's deliveries carry. Chosen by the user, stored by name with the endpoint.
//!
//! Invariant: a set is never empty: nothing is delivered unsigned.

use std::fmt;

/// A way to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `X-Webhook-Signature`: a time and HMACs, as the `stripe` libraries verify it.
    Relay,
    /// `webhook-signature` of Standard Webhooks with `v1` entries: HMACs.
    StandardV1,
    /// `webhook-signature` of Standard Webhooks with `v1a` entries: Ed25519.
    StandardV1a,
}

impl Scheme {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Relay, Self::StandardV1, Self::StandardV1a];

    /// Its name in the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "webhook-relay",
            Self::StandardV1 => "standard-v1",
            Self::StandardV1a => "standard-v1a",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Why a list names no set of schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchemes {
    /// No scheme at all.
    #[error("must have at least one scheme")]
    Empty,
    /// Not a scheme's name; its place in the list.
    #[error("must be one of webhook-relay, standard-v1, standard-v1a")]
    Unknown(usize),
}

/// The schemes of one endpoint. By default both HMAC schemes, which need nothing but the one secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Schemes(u8);

impl Default for Schemes {
    fn default() -> Self {
        Self(Scheme::Relay.bit() | Scheme::StandardV1.bit())
    }
}

impl Schemes {
    /// The schemes with these names; a name may stand there twice.
    pub fn parse<T: AsRef<str>>(names: &[T]) -> Result<Self, InvalidSchemes> {
        let mut bits = 0;
        for (place, name) in names.iter().enumerate() {
            let scheme = Scheme::ALL.into_iter().find(|s| s.as_str() == name.as_ref());
            bits |= scheme.ok_or(InvalidSchemes::Unknown(place))?.bit();
        }
        if bits == 0 { Err(InvalidSchemes::Empty) } else { Ok(Self(bits)) }
    }

    /// Whether a scheme is among them.
    pub fn has(self, scheme: Scheme) -> bool {
        self.0 & scheme.bit() != 0
    }

    /// Their names, in a fixed order.
    pub fn names(self) -> Vec<&'static str> {
        Scheme::ALL.into_iter().filter(|s| self.has(*s)).map(Scheme::as_str).collect()
    }
}

impl fmt::Debug for Schemes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_listed_in_one_order() {
        assert_eq!(Schemes::default().names(), ["webhook-relay", "standard-v1"]);
        let schemes = Schemes::parse(&["standard-v1a", "webhook-relay", "standard-v1a"]).unwrap();
        assert_eq!(schemes.names(), ["webhook-relay", "standard-v1a"]);
        assert!(!schemes.has(Scheme::StandardV1));
        assert_eq!(Schemes::parse::<&str>(&[]), Err(InvalidSchemes::Empty));
        assert_eq!(Schemes::parse(&["standard-v1", "v2"]), Err(InvalidSchemes::Unknown(1)));
    }
}
