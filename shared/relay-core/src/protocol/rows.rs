//! The other changes of an open row, as pure functions beside [`crate::delivery::apply`]: what the check, the
//! claim and the replay do. The SQL statements do the same; tests compare the two.

use crate::delivery::{Closed, OpenState};

/// The check: takes the row for a suspect job, or `None` where claim or attempts have moved on.
pub fn take(row: OpenState, claim: i32, attempts: i32) -> Option<OpenState> {
    (row.claim == claim && row.attempts == attempts).then_some(OpenState { claim: row.claim + 1, ..row })
}

/// The scheduler's claim of a due row.
pub fn claim(row: OpenState) -> OpenState {
    OpenState { claim: row.claim + 1, ..row }
}

/// A closed delivery is opened again: attempts count on, and the retry budget starts anew.
pub fn replay(_was: Closed, row: OpenState) -> OpenState {
    OpenState { claim: row.claim + 1, attempts: row.attempts, base: row.attempts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_own_a_row_raises_the_fence() {
        let row = OpenState { claim: 2, attempts: 3, base: 1 };
        assert_eq!(take(row, 2, 3), Some(OpenState { claim: 3, ..row }));
        assert_eq!(take(row, 1, 3), None);
        assert_eq!(take(row, 2, 2), None);
        assert_eq!(claim(row).claim, 3);
        assert_eq!(replay(Closed::DeadLettered, row), OpenState { claim: 3, attempts: 3, base: 3 });
    }
}
