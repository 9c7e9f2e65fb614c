//! Switches that break one safety each on purpose: a test shows with them that the ledger of `tests/chaos` would notice.
//! They exist in builds with debug assertions only; in others [`is_broken`] is `false` for good, and no flag sets it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// What can be broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Safety {
    /// EVENTS is acknowledged after the commit.
    EventsAckedLate,
    /// JOBS is acknowledged after the record.
    JobsAckedLate,
    /// A claimed row is due again when its lease lapses.
    Lease,
    /// A full EVENTS refuses and never drops.
    RefuseWhenFull,
    /// EVENTS stores what has the id of another message: ids are the tenants' keys.
    EqualIdsStored,
    /// How often a message was delivered is no evidence against it.
    DeliveryCount,
    /// A job that may have a copy elsewhere is checked before it is sent.
    SuspectCheck,
    /// A check takes the row, so that other copies find it moved on.
    CheckTakes,
    /// A result changes its row only while claim and attempts are its own.
    ResultGuards,
}

impl Safety {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::EventsAckedLate,
        Self::JobsAckedLate,
        Self::Lease,
        Self::RefuseWhenFull,
        Self::EqualIdsStored,
        Self::DeliveryCount,
        Self::SuspectCheck,
        Self::CheckTakes,
        Self::ResultGuards,
    ];
}

impl fmt::Display for Safety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EventsAckedLate => "events-acked-late",
            Self::JobsAckedLate => "jobs-acked-late",
            Self::Lease => "lease",
            Self::RefuseWhenFull => "refuse-when-full",
            Self::EqualIdsStored => "equal-ids-stored",
            Self::DeliveryCount => "delivery-count",
            Self::SuspectCheck => "suspect-check",
            Self::CheckTakes => "check-takes",
            Self::ResultGuards => "result-guards",
        })
    }
}

impl FromStr for Safety {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(|s| s.to_string()).join(", ");
        Self::ALL.into_iter().find(|s| s.to_string() == text).ok_or_else(|| format!("must be one of {}", names()))
    }
}

static BROKEN: OnceLock<Safety> = OnceLock::new();

/// Breaks it for the rest of the process; `false` where another one is broken already, or nothing can be.
pub fn break_on_purpose(safety: Safety) -> bool {
    cfg!(debug_assertions) && *BROKEN.get_or_init(|| safety) == safety
}

/// Whether it is broken.
pub fn is_broken(safety: Safety) -> bool {
    cfg!(debug_assertions) && BROKEN.get() == Some(&safety)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_safety_has_a_name_and_none_is_broken_by_itself() {
        for safety in Safety::ALL {
            assert_eq!(safety.to_string().parse(), Ok(safety));
            assert!(!is_broken(safety));
        }
        assert!("no".parse::<Safety>().is_err());
    }
}
