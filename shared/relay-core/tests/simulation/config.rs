//! What one seed is about: how much of everything, which faults, and which safety is switched off.

use super::world::Dice;

/// One safety switched off: each must make some seed fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// EVENTS acked before the dispatch statement commits.
    AckEventsBeforeCommit,
    /// JOBS acked before the result is on record.
    AckJobsBeforeRecord,
    /// A row with a job out is never due by itself.
    NoLease,
    /// Suspect jobs are sent without a check.
    NoSuspectCheck,
    /// The check looks whether the row is still the job's, and doesn't take it.
    CheckDoesNotTake,
    /// A result changes the row whatever claim it has.
    NoClaimGuard,
    /// A result changes the row however many attempts it has.
    NoAttemptsGuard,
    /// A 2xx counts only while the claim is its own.
    SuccessGuardedByClaim,
    /// Results and events are not folded before their statements.
    NoFold,
    /// A 2xx that matched nothing is not run again.
    NoRerun,
    /// Events are matched with any directory version.
    NoVersionFence,
    /// A second publish isn't marked, and JOBS doesn't de-duplicate.
    NoDeduplication,
    /// Lapsed leases are claimed at once after an outage.
    NoGrace,
    /// The age of a job counts from when the pod got it.
    AgeFromMessage,
    /// A job of a newer claim is acked with the older one that the pod works on.
    AckNewerCopy,
    /// A check whose answer comes late counts as fresh.
    LateCheckCounts,
}

impl Mutation {
    pub const ALL: [Self; 16] = [
        Self::AckEventsBeforeCommit,
        Self::AckJobsBeforeRecord,
        Self::NoLease,
        Self::NoSuspectCheck,
        Self::CheckDoesNotTake,
        Self::NoClaimGuard,
        Self::NoAttemptsGuard,
        Self::SuccessGuardedByClaim,
        Self::NoFold,
        Self::NoRerun,
        Self::NoVersionFence,
        Self::NoDeduplication,
        Self::NoGrace,
        Self::AgeFromMessage,
        Self::AckNewerCopy,
        Self::LateCheckCounts,
    ];
}

/// What goes wrong at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    KillDispatcher,
    StallDispatcher,
    KillPod,
    StallPod,
    StopPod,
    KillNats,
    /// Another server leads the streams: the connections stay, the last acks are forgotten.
    Failover,
    DeleteJobs,
    KillPostgres,
    /// Every process of ours at once.
    KillAll,
    /// No connection to PostgreSQL, which goes on: what it was about to commit it commits or not.
    PostgresAway,
    /// No connection to JetStream, which goes on and forgets nothing.
    NatsAway,
    /// EVENTS takes nothing: producers are refused.
    EventsFull,
    /// PostgreSQL is restored to an older dump, with everything stopped and JOBS emptied, and refilled from EVENTS.
    Restore,
    Replay,
    Resend,
    Discard,
    Deactivate,
    Pause,
    CreateEndpoint,
}

impl Fault {
    /// Something that people do.
    fn is_done_by_operators(self) -> bool {
        matches!(
            self,
            Self::Replay | Self::Resend | Self::Discard | Self::Deactivate | Self::Pause | Self::CreateEndpoint
        )
    }

    /// Ends what a safety is for before it can show: both of these are about an answer that comes late to a process that
    /// lives on. With it they are still found, but in one seed of some 6,000 in place of some 500.
    fn hides(self, mutation: Option<Mutation>) -> bool {
        self == Self::KillAll && matches!(mutation, Some(Mutation::NoRerun | Mutation::LateCheckCounts))
    }
}

const FAULTS: [Fault; 20] = [
    Fault::KillDispatcher,
    Fault::StallDispatcher,
    Fault::KillPod,
    Fault::StallPod,
    Fault::StopPod,
    Fault::KillNats,
    Fault::Failover,
    Fault::DeleteJobs,
    Fault::KillPostgres,
    Fault::KillAll,
    Fault::PostgresAway,
    Fault::NatsAway,
    Fault::EventsFull,
    Fault::Restore,
    Fault::Replay,
    Fault::Resend,
    Fault::Discard,
    Fault::Deactivate,
    Fault::Pause,
    Fault::CreateEndpoint,
];

/// What goes wrong with every message or statement, by chance.
#[derive(Clone, Copy, Default, Debug)]
pub struct Chances {
    pub events_ack_lost: f64,
    pub jobs_ack_lost: f64,
    /// A statement's answer doesn't come; it may have committed.
    pub commit_unknown: f64,
    pub publish_unknown: f64,
    pub answer_lost: f64,
    pub published_twice: f64,
}

impl Chances {
    fn any(&self) -> bool {
        self.events_ack_lost
            + self.jobs_ack_lost
            + self.commit_unknown
            + self.publish_unknown
            + self.answer_lost
            + self.published_twice
            > 0.0
    }
}

/// One seed's setting.
#[derive(Clone, Debug)]
pub struct Setup {
    pub mutation: Option<Mutation>,
    pub dispatchers: usize,
    pub pods: usize,
    pub endpoints: usize,
    pub bundles: usize,
    pub chances: Chances,
    /// Both schedulers believe that they lead.
    pub two_leaders: bool,
    /// Statements overlap: what one saw at its begin may have moved when it changes rows. How long some take.
    pub slowest_statement_ms: u64,
    /// Pods work on copies of a delivery as on jobs of their own, instead of letting them wait for the first.
    pub copies_apart: bool,
    /// When and what.
    pub faults: Vec<(u64, Fault)>,
    /// Share of deliveries that the dispatcher holds.
    pub held: f64,
}

impl Setup {
    pub fn draw(dice: &mut Dice, mutation: Option<Mutation>) -> Self {
        let mut chances = Chances::default();
        let mut faults = Vec::new();
        let mut two_leaders = false;
        // One in twelve has no faults, a third one or two kinds, the rest a mixture. A mixture shows soonest what a
        // safety is for.
        let kinds = match dice.range(0, 11) {
            _ if mutation.is_some() => dice.range(5, 10),
            0 => 0,
            1..=4 => dice.range(1, 2),
            _ => dice.range(3, 8),
        };
        let drawn: Vec<Fault> = FAULTS.into_iter().filter(|f| !f.hides(mutation)).collect();
        for _ in 0..kinds {
            let p = 0.02 + 0.2 * dice.unit();
            match dice.index(drawn.len() + 7) {
                n if n < drawn.len() => {
                    for _ in 0..dice.range(1, if drawn[n].is_done_by_operators() { 6 } else { 3 }) {
                        let at = dice.range(200, super::world::FAULTS_UNTIL_MS - 1000);
                        // Half of them while most events are on their way.
                        let at = if dice.chance(0.5) { at } else { at % 25_000 + 200 };
                        faults.push((at, drawn[n]));
                    }
                }
                n => match n - drawn.len() {
                    0 => chances.events_ack_lost = p,
                    1 => chances.jobs_ack_lost = p,
                    2 => chances.commit_unknown = p,
                    3 => chances.publish_unknown = p,
                    4 => chances.answer_lost = p,
                    5 => chances.published_twice = p,
                    _ => two_leaders = true,
                },
            }
        }
        // What some safeties are for is rare; so it is made to happen.
        let rare: &[Fault] = match mutation {
            Some(Mutation::NoGrace) => &[Fault::KillPostgres],
            Some(Mutation::NoRerun) => &[Fault::StallPod, Fault::StallPod, Fault::Deactivate, Fault::Resend],
            Some(Mutation::AgeFromMessage) => &[Fault::StallDispatcher, Fault::StallDispatcher],
            Some(Mutation::NoClaimGuard) => &[Fault::StallPod, Fault::StallPod],
            _ => &[],
        };
        faults.extend(rare.iter().map(|fault| (dice.range(200, 15_000), *fault)));
        Self {
            mutation,
            dispatchers: dice.range(1, 2) as usize,
            pods: dice.range(1, 3) as usize,
            endpoints: dice.range(1, 4) as usize,
            bundles: dice.range(3, 14) as usize,
            chances,
            two_leaders,
            // Shorter than what a leader waits after an outage, less the pods' time between two flushes.
            slowest_statement_ms: [2, 400, 2500][dice.index(3)],
            copies_apart: dice.chance(0.2),
            faults,
            held: if dice.chance(0.3) { 0.3 } else { 0.0 },
        }
    }

    /// Nothing goes wrong, and no operator acts.
    pub fn is_calm(&self) -> bool {
        self.faults.is_empty() && !self.chances.any() && !self.two_leaders
    }
}
