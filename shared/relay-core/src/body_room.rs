//! How many bytes of request bodies one process holds, and who may hold more: one room for all, in which no tenant can
//! leave the others without any. Bytes are counted as they arrive, so a length that is only announced takes nothing.
//!
//! Invariants: what is held is never more than the room; each tenant's part is at most three times what is free. So one
//! tenant alone may hold three quarters, `k` greedy ones leave `1 / (3k + 1)` to the next (the dynamic thresholds of
//! Choudhury and Hahne, 1998, with alpha = 3).

use std::collections::HashMap;

use crate::ids::TenantId;

/// What a tenant may hold, as a multiple of what is free.
const ALPHA: usize = 3;

/// Why a body can't grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// For what others hold: without the tenant's other requests it would not fit either.
    Others,
    /// For what the tenant's other requests hold.
    Own,
}

/// The room, and who holds how much of it.
#[derive(Debug)]
pub struct BodyRoom {
    bytes_max: usize,
    used: usize,
    tenants: HashMap<TenantId, usize>,
}

impl BodyRoom {
    /// An empty room of so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, used: 0, tenants: HashMap::new() }
    }

    /// Bytes held.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether more than half is held: then those who hold it without sending on are in the way.
    pub fn is_short(&self) -> bool {
        self.used > self.bytes_max / 2
    }

    /// The largest body that fits into an empty room of so many bytes.
    pub const fn body_max(bytes_max: usize) -> usize {
        bytes_max / (ALPHA + 1) * ALPHA
    }

    /// A tenant's request that holds `held` bytes gets `more`, or holds what it held.
    pub fn take(&mut self, tenant: &TenantId, held: usize, more: usize) -> Result<(), NoRoom> {
        let own = self.tenants.get(tenant).copied().unwrap_or(0);
        let others = self.used - own;
        let fits = |own: usize| own.saturating_add(others) <= self.bytes_max && own <= ALPHA * self.free(others, own);
        if !fits(own.saturating_add(more)) {
            return Err(if fits(held.saturating_add(more)) { NoRoom::Own } else { NoRoom::Others });
        }
        self.used += more;
        // A tenant's name is copied once for many requests.
        match self.tenants.get_mut(tenant) {
            Some(own) => *own += more,
            None => {
                self.tenants.insert(tenant.clone(), more);
            }
        }
        Ok(())
    }

    fn free(&self, others: usize, own: usize) -> usize {
        self.bytes_max.saturating_sub(others).saturating_sub(own)
    }

    /// Bytes that a tenant's request took are free again.
    pub fn give_back(&mut self, tenant: &TenantId, bytes: usize) {
        let Some(own) = self.tenants.get_mut(tenant) else { return };
        let bytes = bytes.min(*own);
        *own -= bytes;
        self.used -= bytes;
        if *own == 0 {
            self.tenants.remove(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: usize) -> TenantId {
        TenantId::trusted(&format!("t{n}"))
    }

    #[test]
    fn one_tenant_leaves_a_quarter_to_the_others() {
        let mut room = BodyRoom::new(1000);
        assert_eq!(BodyRoom::body_max(1000), 750);
        assert_eq!(room.take(&tenant(0), 0, 750), Ok(()), "the largest body");
        assert_eq!(room.take(&tenant(0), 750, 1), Err(NoRoom::Others), "no room of this size has place for it");
        assert_eq!(room.take(&tenant(0), 0, 1), Err(NoRoom::Own));
        assert_eq!(room.take(&tenant(1), 0, 187), Ok(()));
        assert_eq!(room.take(&tenant(1), 187, 1), Err(NoRoom::Others), "the first tenant's doing");
        assert_eq!(room.take(&tenant(2), 0, 40), Ok(()), "there is always some for the next one");
        room.give_back(&tenant(0), 750);
        assert_eq!(room.take(&tenant(1), 187, 300), Ok(()));
        assert!(room.is_short());
        room.give_back(&tenant(1), 487);
        room.give_back(&tenant(2), 40);
        assert_eq!((room.used(), room.is_short(), room.tenants.len()), (0, false, 0), "all is as it was");
    }

    #[test]
    fn nothing_overflows() {
        let mut room = BodyRoom::new(100);
        assert_eq!(room.take(&tenant(0), usize::MAX, usize::MAX), Err(NoRoom::Others));
        assert_eq!(BodyRoom::new(0).take(&tenant(0), 0, 1), Err(NoRoom::Others));
        assert_eq!(room.take(&tenant(0), 0, 1), Ok(()));
        room.give_back(&tenant(0), usize::MAX);
        room.give_back(&tenant(1), 5);
        assert_eq!(room.used(), 0);
    }

    proptest! {
        /// Requests of a few tenants begin, grow and end in any order.
        #[test]
        fn what_is_held_is_counted_and_bounded(
            steps in prop::collection::vec((0usize..4, 0usize..12, 0usize..3000), 0..300),
            bytes_max in 0usize..10_000,
        ) {
            let mut room = BodyRoom::new(bytes_max);
            let mut held: HashMap<(usize, usize), usize> = HashMap::new();
            for (t, request, more) in steps {
                let of = |held: &HashMap<(usize, usize), usize>, t: usize| -> usize {
                    held.iter().filter(|((whose, _), _)| *whose == t).map(|(_, bytes)| bytes).sum()
                };
                if more % 3 == 0 {
                    let bytes = held.remove(&(t, request)).unwrap_or(0);
                    room.give_back(&tenant(t), bytes);
                } else {
                    let before = held.get(&(t, request)).copied().unwrap_or(0);
                    let taken = room.take(&tenant(t), before, more);
                    let others: usize = held.values().sum::<usize>() - of(&held, t);
                    match taken {
                        Ok(()) => *held.entry((t, request)).or_default() += more,
                        Err(NoRoom::Own) => prop_assert!(of(&held, t) > before, "others of its own are there"),
                        Err(NoRoom::Others) => prop_assert!(
                            others > 0 || before + more > BodyRoom::body_max(bytes_max),
                            "it fits when nobody else is there"
                        ),
                    }
                    if taken.is_ok() {
                        let free = bytes_max - held.values().sum::<usize>();
                        prop_assert!(of(&held, t) <= ALPHA * free, "some is left for the next tenant");
                    }
                }
                let total: usize = held.values().sum();
                prop_assert_eq!(room.used(), total);
                prop_assert!(total <= bytes_max);
            }
            for ((t, _), bytes) in held {
                room.give_back(&tenant(t), bytes);
            }
            prop_assert_eq!(room.used(), 0);
            prop_assert!(room.tenants.is_empty());
        }
    }
}
