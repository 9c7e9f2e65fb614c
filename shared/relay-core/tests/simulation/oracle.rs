//! What must be true when everything is quiet.

use std::collections::BTreeMap;

use relay_core::delivery::Closed;

use super::world::{FAULTS_UNTIL_MS, Key, QUIET_BY_MS, World, short, short_key};

/// How often it is looked whether all is quiet.
const LOOK_MS: u64 = 1000;
/// Attempts of one life.
const ATTEMPTS_MAX: i32 = 3;

impl World {
    fn is_quiet(&self) -> bool {
        self.producing == 0
            && self.events.all_acked()
            && self.store.rows.values().all(|kept| kept.row.closed().is_some())
            && self.pods.iter().all(super::pod::Pod::is_idle)
    }

    /// One history, to its end. Gives what is wrong with it.
    pub fn run(&mut self) -> Result<(), String> {
        self.arrange();
        self.run_until(FAULTS_UNTIL_MS + 1);
        while self.violation.is_none() && !self.is_quiet() && self.now < QUIET_BY_MS {
            let until = self.now + LOOK_MS;
            self.run_until(until);
        }
        if self.violation.is_none() {
            self.judge();
        }
        self.violation.clone().map_or(Ok(()), Err)
    }

    fn judge(&mut self) {
        if self.producing > 0 || !self.events.all_acked() {
            return self.fail("not quiet: EVENTS isn't drained");
        }
        let open = self.store.rows.iter().find(|(_, kept)| kept.row.closed().is_none());
        if let Some((key, kept)) = open {
            let what = format!("not quiet: {} is {}", short_key(*key), super::store::show(&kept.row));
            return self.fail(what);
        }
        if let Some(p) = self.pods.iter().position(|pod| !pod.is_idle()) {
            return self.fail(format!("not quiet: pod {p}"));
        }
        self.judge_events();
        self.judge_attempts();
        let keys: Vec<Key> = self.store.rows.keys().copied().collect();
        keys.into_iter().for_each(|key| self.judge_delivery(key));
    }

    fn judge_events(&mut self) {
        for event in self.accepted.clone() {
            let Some(means) = self.store.resolve(event.id) else {
                return self.fail(format!("lost: event {} was accepted and isn't there", short(event.id.0)));
            };
            let deliveries = self.store.rows.range((means, relay_core::ids::EndpointId(uuid::Uuid::nil()))..);
            let any = deliveries.take_while(|(key, _)| key.0 == means).next().is_some();
            if !any && !self.store.lone_letters.contains(&means) && self.endpoints.iter().all(|e| !e.was_inactive) {
                return self.fail(format!("lost: event {} has neither deliveries nor a letter", short(means.0)));
            }
        }
    }

    /// Each attempt of a pod that lived is on record, and none that wasn't made.
    fn judge_attempts(&mut self) {
        let missing = self.sends.iter().find(|(id, send)| !send.orphaned && !self.store.attempts.contains_key(id));
        if let Some((_, send)) = missing {
            let key = short_key(send.key);
            return self.fail(format!("an attempt of {key} is not on record though its pod lived"));
        }
        if self.store.attempts.keys().any(|id| !self.sends.contains_key(id)) {
            self.fail("an attempt is on record that nobody made");
        }
    }

    fn judge_delivery(&mut self, key: Key) {
        let Some(row) = self.store.row(key).copied() else { return };
        let seen = self.seen.entry(key).or_default();
        let (receipts, failures) = (seen.receipts_2xx, seen.failures);
        let of_life: BTreeMap<i32, bool> =
            self.store.attempts.values().filter(|a| a.key == key && a.number > row.state().base).fold(
                BTreeMap::new(),
                |mut numbers, a| {
                    *numbers.entry(a.number).or_insert(false) |= a.success;
                    numbers
                },
            );
        let succeeded = of_life.values().any(|success| *success);
        let was_inactive = self.endpoints.iter().any(|e| e.id == key.1 && e.was_inactive);
        let what = match row.closed() {
            Some(Closed::Delivered) if receipts == 0 => Some("delivered, and no receipt was answered 2xx".to_owned()),
            Some(Closed::DeadLettered | Closed::Discarded) if succeeded => {
                Some(format!("{:?}, and a 2xx of this life is on record", row.closed()))
            }
            Some(Closed::DeadLettered) if failures == 0 && !was_inactive => {
                Some(format!("dead-lettered, and nothing explains it; {receipts} receipts answered 2xx"))
            }
            _ => None,
        };
        if let Some(what) = what {
            return self.fail(format!("{}: {what}", short_key(key)));
        }
        if row.state().attempts - row.state().base > ATTEMPTS_MAX {
            self.fail(format!("{}: {} attempts in one life", short_key(key), row.state().attempts - row.state().base));
        }
    }
}
