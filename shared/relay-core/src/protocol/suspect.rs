//! Which jobs must be checked before they are sent, and what a failed statement means.

use std::time::Duration;

/// A job older than this, counted from its claim, may have been claimed again.
pub const AGE_MAX: Duration = Duration::from_secs(5);
/// For this long after a disruption acked messages may come back looking fresh. What was acked before it was claimed
/// before it: after [`AGE_MAX`] such a job is stale anyway, and the rest is for clocks that differ.
pub const DISRUPTION: Duration = Duration::from_secs(10);
const _: () = assert!(DISRUPTION.as_secs() >= 2 * AGE_MAX.as_secs());

/// What a pod knows of a job just before it sends it.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// Since its claim.
    pub age: Duration,
    /// JetStream's delivery count; 1 is the first.
    pub delivered: u64,
    /// Published a second time after an unknown outcome.
    pub marked: bool,
    /// Since the pod's connection, its pull stream or the consumer's leader last changed.
    pub since_disruption: Option<Duration>,
}

/// Whether a claim is so old that the row may have been claimed again; also asked of a check's own claim when its
/// answer arrives.
pub fn is_stale(age: Duration) -> bool {
    age > AGE_MAX
}

/// Whether a copy of the job may be elsewhere: then the check takes the row first.
pub fn is_suspect(s: &Sighting) -> bool {
    is_stale(s.age) || s.delivered > 1 || s.marked || s.since_disruption.is_some_and(|d| d < DISRUPTION)
}

/// What a failed statement means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatementFailure {
    /// Some row's data can't be stored: find it by halving.
    Data,
    /// A row's day has no partition: make it and repeat.
    MissingPartition,
    /// A deadlock or a serialisation failure: repeat.
    Conflict,
    /// The server's trouble, not the rows': repeat later, however often.
    Infrastructure,
}

/// Judges an SQLSTATE (PostgreSQL manual, appendix A).
pub fn classify_sqlstate(code: &str) -> StatementFailure {
    match code {
        "23514" => StatementFailure::MissingPartition,
        "40001" | "40P01" => StatementFailure::Conflict,
        _ if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => StatementFailure::Data,
        _ => StatementFailure::Infrastructure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_sign_of_a_copy_makes_a_job_suspect() {
        let fine = Sighting { age: Duration::from_secs(1), delivered: 1, marked: false, since_disruption: None };
        assert!(!is_suspect(&fine));
        assert!(!is_suspect(&Sighting { since_disruption: Some(DISRUPTION), ..fine }));
        assert!(is_suspect(&Sighting { age: Duration::from_millis(5001), ..fine }));
        assert!(is_suspect(&Sighting { delivered: 2, ..fine }));
        assert!(is_suspect(&Sighting { marked: true, ..fine }));
        assert!(is_suspect(&Sighting { since_disruption: Some(Duration::ZERO), ..fine }));
    }

    #[test]
    fn only_data_errors_blame_the_rows() {
        for code in ["22021", "23502", "54000"] {
            assert_eq!(classify_sqlstate(code), StatementFailure::Data);
        }
        for code in ["08006", "53100", "55P03", "57014", "58030", "XX000", "42601", ""] {
            assert_eq!(classify_sqlstate(code), StatementFailure::Infrastructure, "{code}");
        }
        assert_eq!(classify_sqlstate("23514"), StatementFailure::MissingPartition);
        assert_eq!(classify_sqlstate("40P01"), StatementFailure::Conflict);
    }
}
