//! The protocol against everything that can go wrong: a seeded simulation of dispatchers, schedulers, deliverer pods
//! and recorders, which run the real decisions of relay-core against models of JetStream, PostgreSQL and the
//! endpoints that misbehave as the real ones do.
//!
//! `SIM_SEEDS=n` runs so many seeds (10,000 by default), `SIM_SEED=n` one, with its whole trace.

#[path = "simulation/bus.rs"]
mod bus;
#[path = "simulation/config.rs"]
mod config;
#[path = "simulation/dispatcher.rs"]
mod dispatcher;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/pod.rs"]
mod pod;
#[path = "simulation/receivers.rs"]
mod receivers;
#[path = "simulation/store.rs"]
mod store;
#[path = "simulation/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use config::Mutation;
use world::World;

/// Seeds of one run.
const SEEDS: u64 = 10_000;
/// A switched off safety must show within so many.
const MUTATION_SEEDS: u64 = 10_000;
const THREADS: u64 = 2;

#[expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]
fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// What is wrong with a seed, with the end of its trace.
fn explain(seed: u64, mutation: Option<Mutation>, all_of_it: bool) -> Result<String, String> {
    let mut world = World::new(seed, mutation, true);
    world.all_of_it = all_of_it;
    let setup = format!("{:?}", world.setup);
    match world.run() {
        Ok(()) => Ok(format!("{setup}\n{}", world.trace())),
        Err(what) => Err(format!("{setup}\n{}seed {seed}: {what}", world.trace())),
    }
}

/// The smallest failing seed among the first `seeds`, if there is one.
fn first_failure(seeds: u64, mutation: Option<Mutation>) -> Option<u64> {
    let failed = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let failed = &failed;
            scope.spawn(move || {
                let mut seed = thread;
                while seed < seeds.min(failed.load(Ordering::Relaxed)) {
                    if World::new(seed, mutation, false).run().is_err() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    seed += THREADS;
                }
            });
        }
    });
    Some(failed.into_inner()).filter(|seed| *seed < u64::MAX)
}

#[test]
fn nothing_is_lost_and_duplicates_are_explained() {
    if let Some(seed) = number_from("SIM_SEED") {
        match explain(seed, None, true) {
            Ok(trace) => eprintln!("{trace}seed {seed} is fine"),
            Err(trace) => panic!("{trace}"),
        }
        return;
    }
    if let Some(seed) = first_failure(number_from("SIM_SEEDS").unwrap_or(SEEDS), None) {
        panic!("{}\nrun it alone: SIM_SEED={seed}", explain(seed, None, false).expect_err("it failed before"));
    }
}

#[test]
fn every_safety_that_is_switched_off_is_missed() {
    let missed: Vec<String> = Mutation::ALL
        .into_iter()
        .filter_map(|mutation| match first_failure(MUTATION_SEEDS, Some(mutation)) {
            Some(seed) => {
                let what = explain(seed, Some(mutation), false).expect_err("it failed before");
                eprintln!("{mutation:?}: {}", what.lines().last().unwrap_or_default());
                None
            }
            None => Some(format!("{mutation:?}")),
        })
        .collect();
    assert!(missed.is_empty(), "switched off, and no seed of {MUTATION_SEEDS} notices: {missed:?}");
}

#[test]
fn a_seed_always_gives_the_same_history() {
    for seed in 0..20 {
        assert_eq!(explain(seed, None, true), explain(seed, None, true), "seed {seed}");
    }
}
