//! One bad row must not fail a batch: both batch statements run through [`bisect`]. A statement that fails
//! because of its data is run again in halves, down to the one item that can't be stored.

use std::ops::Range;

use crate::error::{ErrorKind, StoreError};

/// What became of a part of a batch.
#[derive(Debug)]
pub enum Piece<R> {
    /// These items are stored.
    Done(Range<usize>, R),
    /// This one can't be stored, alone as it is.
    Refused(usize, StoreError),
}

/// Runs `statement` over `0..len`, in halves where the data are at fault. Any other error ends it: what was
/// done until then stays done, so statements must be safe to repeat.
pub async fn bisect<R, F, Fut>(len: usize, mut statement: F) -> Result<Vec<Piece<R>>, StoreError>
where
    F: FnMut(Range<usize>) -> Fut,
    Fut: Future<Output = Result<R, StoreError>>,
{
    let mut pieces = Vec::with_capacity(1);
    let mut open = Vec::new();
    open.push(0..len);
    while let Some(range) = open.pop() {
        if range.is_empty() {
            continue;
        }
        match statement(range.clone()).await {
            Ok(answer) => pieces.push(Piece::Done(range, answer)),
            Err(e) if matches!(e.kind(), ErrorKind::Data | ErrorKind::MissingPartition) => {
                if range.len() == 1 {
                    pieces.push(Piece::Refused(range.start, e));
                } else {
                    let middle = range.start + range.len() / 2;
                    open.push(middle..range.end);
                    open.push(range.start..middle);
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    fn data() -> StoreError {
        StoreError::Data { sqlstate: "22021".to_owned(), message: String::new() }
    }

    #[tokio::test]
    async fn only_the_bad_ones_are_refused_and_the_others_are_done_once() {
        for bad in [BTreeSet::new(), BTreeSet::from([0]), BTreeSet::from([499]), BTreeSet::from([3, 4, 250])] {
            let calls = RefCell::new(0);
            let pieces = bisect(500, |range| {
                *calls.borrow_mut() += 1;
                let fails = range.clone().any(|n| bad.contains(&n));
                async move { if fails { Err(data()) } else { Ok(()) } }
            })
            .await
            .unwrap();
            let mut done = vec![0; 500];
            let mut refused = BTreeSet::new();
            for piece in pieces {
                match piece {
                    Piece::Done(range, ()) => range.for_each(|n| done[n] += 1),
                    Piece::Refused(n, _) => assert!(refused.insert(n)),
                }
            }
            assert_eq!(refused, bad);
            assert!((0..500).all(|n| done[n] == usize::from(!bad.contains(&n))));
            assert!(*calls.borrow() <= 1 + 2 * 10 * bad.len(), "{}", calls.borrow());
        }
    }

    #[tokio::test]
    async fn other_errors_are_nobodys_fault() {
        let answer = bisect(8, |_| async { Err::<(), _>(StoreError::Timeout) }).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Timeout);
        assert!(bisect(0, |_| async { Err::<(), _>(StoreError::Timeout) }).await.unwrap().is_empty());
    }
}
