//! Who may claim how much in one pass: fair shares of a bounded pass, over tenants first and over the endpoints of each
//! tenant then, and an order in which nobody's work stands behind all of another's.

use std::collections::BTreeMap;

/// Deals at most `total` rows to those who want some, and returns the order in which they are claimed, as pairs of index
/// and rows; who gets nothing isn't in it. `wants`: whose endpoint, and how many rows it may have. A share that somebody
/// doesn't use is dealt to the others (max-min fairness).
pub fn deal<T: Ord + Copy>(wants: &[(T, usize)], total: usize) -> Vec<(usize, usize)> {
    let mut tenants: BTreeMap<T, Vec<usize>> = BTreeMap::new();
    for (index, (tenant, _)) in wants.iter().enumerate() {
        tenants.entry(*tenant).or_default().push(index);
    }
    let sums: Vec<usize> = tenants.values().map(|of| of.iter().map(|i| wants[*i].1).sum()).collect();
    let mut queues: Vec<Vec<(usize, usize)>> = Vec::new();
    for (endpoints, share) in tenants.values().zip(fill(&sums, total)) {
        let rows: Vec<usize> = endpoints.iter().map(|i| wants[*i].1).collect();
        let dealt = endpoints.iter().copied().zip(fill(&rows, share)).filter(|(_, rows)| *rows > 0);
        queues.push(dealt.collect());
    }
    // One endpoint of each tenant in turn.
    let longest = queues.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|n| queues.iter().filter_map(move |queue| queue.get(n).copied())).collect()
}

/// The greatest equal share, and what it leaves to those who want more.
fn fill(wants: &[usize], total: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_key(|i| wants[*i]);
    let mut dealt = vec![0; wants.len()];
    let mut left = total;
    for (n, i) in order.into_iter().enumerate() {
        // Those who want least first: what they leave is for the others. The last ones get what division leaves.
        let rows = wants[i].min(left.div_ceil(wants.len() - n));
        dealt[i] = rows;
        left -= rows;
    }
    dealt
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flood_of_many_endpoints_leaves_the_others_their_share() {
        // A tenant with a thousand endpoints, each with a backlog, and one with one.
        let wants: Vec<(u8, usize)> = (0..1000).map(|_| (0, 256)).chain([(1, 256)]).collect();
        let dealt = deal(&wants, 2000);
        assert_eq!(dealt[1], (1000, 256), "all that it wants, and second in the order");
        assert_eq!(dealt.iter().map(|(_, rows)| rows).sum::<usize>(), 2000);
        assert!(dealt.iter().all(|(i, rows)| *i == 1000 || (1..=2).contains(rows)));
    }

    #[test]
    fn at_ten_to_one_both_get_the_half() {
        let dealt = deal(&[("loud", 2000), ("quiet", 2000)], 1000);
        assert_eq!(dealt, [(0, 500), (1, 500)]);
        assert_eq!(deal(&[("loud", 2000), ("quiet", 200)], 1000), [(0, 800), (1, 200)]);
        assert_eq!(deal::<u8>(&[], 1000), []);
        assert_eq!(deal(&[(1, 5)], 0), []);
    }

    proptest! {
        #[test]
        fn shares_are_fair_and_whole(wants in prop::collection::vec((0u8..5, 0usize..50), 0..40), total in 0usize..600) {
            let dealt = deal(&wants, total);
            let mut rows = vec![0; wants.len()];
            for (i, n) in &dealt {
                prop_assert!(rows[*i] == 0 && *n > 0, "each once");
                rows[*i] = *n;
            }
            let wanted: usize = wants.iter().map(|(_, n)| n).sum();
            prop_assert_eq!(rows.iter().sum::<usize>(), wanted.min(total), "nothing is left while somebody wants more");
            prop_assert!(rows.iter().zip(&wants).all(|(got, (_, want))| got <= want));
            // Who gets less than wanted gets no less than another tenant, but for one row.
            let of = |tenant: u8| -> (usize, usize) {
                let all = wants.iter().zip(&rows).filter(|((t, _), _)| *t == tenant);
                all.fold((0, 0), |(w, g), ((_, want), got)| (w + want, g + got))
            };
            for a in 0..5 {
                for b in 0..5 {
                    let ((wanted, got), (_, other)) = (of(a), of(b));
                    prop_assert!(got == wanted || got + 1 >= other, "{got} of {wanted}, and {other}");
                }
            }
        }
    }
}
