//! Fuzzing on stable Rust, as tests: each parser of ours is a target, a plain `#[test]` that calls [`fuzz`] with good
//! inputs to begin with and a closure that panics where the parser is wrong (no panic of its own, no broken round trip).
//!
//! Inputs are the seeds, their prefixes, random bytes, and mutations of what was interesting so far. Interesting is an
//! input with an outcome that none had before: the closure says what the outcome is, coarsely (an error's text, a number
//! of items), which leads deeper into a parser without instrumented builds. A panic is reported with a reduced input as
//! a Rust literal, to be put among the seeds: so it stays tested.
//!
//! `cargo test` runs 2,000 inputs a target, the same ones each time. `make fuzz SECONDS=60` runs each for a minute with a
//! seed of its own, which it prints; `FUZZ_SECONDS`, `FUZZ_RUNS` and `FUZZ_SEED` say otherwise.

mod mutate;

use std::any::Any;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::mutate::Mutator;

/// Inputs of a short run.
const RUNS: u64 = 2_000;
/// Seed of a short run: what is green stays green.
const SEED: u64 = 1;
/// Interesting inputs that are kept at most; later ones replace others.
const CORPUS_MAX: usize = 4_096;
/// Bytes of an input at most.
pub const INPUT_BYTES_MAX: usize = 16 * 1024;
/// Prefixes of a seed that are tried at most, counted from its start.
const PREFIXES_MAX: usize = 300;
/// Tries to make a bad input smaller.
const REDUCTIONS_MAX: usize = 2_000;

/// How long a target is fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Budget {
    Runs(u64),
    Time(Duration),
}

/// How a target is fuzzed.
#[derive(Clone, Copy, Debug)]
struct Plan {
    budget: Budget,
    seed: u64,
}

impl Plan {
    /// From the environment.
    fn from_env() -> Self {
        let number = |name: &str| -> Option<u64> {
            let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
        };
        let budget = match (number("FUZZ_SECONDS"), number("FUZZ_RUNS")) {
            (Some(seconds), _) => Budget::Time(Duration::from_secs(seconds)),
            (None, runs) => Budget::Runs(runs.unwrap_or(RUNS)),
        };
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(SEED, |since| since.as_micros() as u64);
        let seed = number("FUZZ_SEED").unwrap_or_else(|| match budget {
            Budget::Time(_) => clock(),
            Budget::Runs(_) => SEED,
        });
        Self { budget, seed }
    }
}

/// Fuzzes `target`. `seeds` are inputs that it takes, or nearly; `words` are pieces that mean something in them.
///
/// # Panics
/// `target` panicked.
#[track_caller]
pub fn fuzz<S: AsRef<[u8]>, O: Hash>(name: &str, seeds: &[S], words: &[&[u8]], target: impl Fn(&[u8]) -> O) {
    let plan = Plan::from_env();
    let started = Instant::now();
    match run(seeds, words, plan, &target) {
        Ok(ran) => eprintln!(
            "{name}: {} inputs, {} outcomes, {:.1} s, FUZZ_SEED={}",
            ran.inputs,
            ran.outcomes,
            started.elapsed().as_secs_f64(),
            plan.seed
        ),
        Err(Bad { input, message }) => {
            let input = reduce(input, &target);
            panic!(
                "{name}: {message}\nFUZZ_SEED={}; the input, reduced to {} bytes:\n    b\"{}\"",
                plan.seed,
                input.len(),
                input.escape_ascii()
            );
        }
    }
}

/// A text, where the bytes are one: for targets that take texts.
pub fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

/// The input in parts, for targets that take several: what stands between bytes `\xff`. Parts that aren't there are
/// empty.
pub fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut parts = input.splitn(N, |byte| *byte == 0xff);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// What a run came to.
struct Ran {
    inputs: u64,
    outcomes: usize,
}

/// An input on which the target panicked.
struct Bad {
    input: Vec<u8>,
    message: String,
}

fn run<S: AsRef<[u8]>, O: Hash>(
    seeds: &[S],
    words: &[&[u8]],
    plan: Plan,
    target: &impl Fn(&[u8]) -> O,
) -> Result<Ran, Bad> {
    let started = Instant::now();
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut corpus: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.as_ref().to_vec()).collect();
    let mut seen = HashSet::new();
    let mut inputs = 0;
    // The seeds and their prefixes come first: each cut of a good input is an input that ends early.
    let mut given: Vec<Vec<u8>> = corpus.clone();
    given.push(Vec::new());
    given.extend(corpus.iter().flat_map(|seed| (1..seed.len().min(PREFIXES_MAX)).map(|end| seed[..end].to_vec())));
    let mut given = given.into_iter();
    let mutator = Mutator::new(words);
    loop {
        let is_over = match plan.budget {
            Budget::Runs(runs) => inputs >= runs && given.len() == 0,
            Budget::Time(time) => started.elapsed() >= time && given.len() == 0,
        };
        if is_over {
            return Ok(Ran { inputs, outcomes: seen.len() });
        }
        let input = given.next().unwrap_or_else(|| mutator.input(&corpus, &mut random));
        inputs += 1;
        match outcome(target, &input) {
            Ok(hash) if seen.insert(hash) => {
                if corpus.len() < CORPUS_MAX {
                    corpus.push(input);
                } else {
                    // Seeds stay.
                    let place = random.random_range(seeds.len()..CORPUS_MAX.max(seeds.len() + 1));
                    corpus[place.min(CORPUS_MAX - 1)] = input;
                }
            }
            Ok(_) => {}
            Err(message) => return Err(Bad { input, message }),
        }
    }
}

/// Calls the target; its outcome, or what it panicked with.
fn outcome<O: Hash>(target: &impl Fn(&[u8]) -> O, input: &[u8]) -> Result<u64, String> {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| target(input))).map_err(words_of)?;
    let mut hasher = DefaultHasher::new();
    outcome.hash(&mut hasher);
    Ok(hasher.finish())
}

fn words_of(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}

/// Leaves out of a bad input what is not needed for the panic.
fn reduce<O: Hash>(mut input: Vec<u8>, target: &impl Fn(&[u8]) -> O) -> Vec<u8> {
    // The panics of the tries are no news.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let mut tries = 0;
    let mut size = input.len().div_ceil(2);
    while size > 0 && tries < REDUCTIONS_MAX {
        let mut start = 0;
        while start < input.len() && tries < REDUCTIONS_MAX {
            let mut less = input.clone();
            less.drain(start..(start + size).min(less.len()));
            tries += 1;
            if outcome(target, &less).is_err() {
                input = less;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
    panic::set_hook(hook);
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { budget: Budget::Runs(200_000), seed: 7 };

    /// A parser that is wrong about one thing, three steps deep.
    fn wrong(input: &[u8]) -> u8 {
        match input {
            [b'a', b'b', b'c', ..] => panic!("on purpose"),
            [b'a', b'b', ..] => 2,
            [b'a', ..] => 1,
            _ => 0,
        }
    }

    fn quietly<T>(f: impl FnOnce() -> T) -> T {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let out = f();
        panic::set_hook(hook);
        out
    }

    /// One test: the panic hook is the process's.
    #[test]
    fn what_is_wrong_is_found_step_by_step_and_reduced() {
        let found = quietly(|| run(&[b"x"], &[], PLAN, &wrong));
        let Err(bad) = found else { panic!("nothing was found") };
        assert_eq!(bad.message, "on purpose");
        assert_eq!(reduce(bad.input, &wrong), b"abc");
        let once_more = quietly(|| run(&[b"x"], &[], PLAN, &wrong)).err().map(|bad| bad.message);
        assert_eq!(once_more.as_deref(), Some("on purpose"));
        // A word of the target's language finds it at once.
        let short = Plan { budget: Budget::Runs(2_000), ..PLAN };
        assert!(quietly(|| run(&[b"x"], &[b"abc"], short, &wrong)).is_err());
    }

    #[test]
    fn seeds_and_their_prefixes_are_always_tried() {
        let tried = std::sync::Mutex::new(HashSet::new());
        let note = |input: &[u8]| {
            tried.lock().unwrap().insert(input.to_vec());
        };
        let ran = run(&["seed"], &[], Plan { budget: Budget::Runs(1), seed: 1 }, &note);
        assert!(ran.is_ok_and(|ran| ran.inputs == 5 && ran.outcomes == 1));
        for prefix in ["", "s", "se", "see", "seed"] {
            assert!(tried.lock().unwrap().contains(prefix.as_bytes()), "{prefix}");
        }
    }

    #[test]
    fn parts_are_split_by_a_byte_that_no_text_has() {
        assert_eq!(parts::<3>(b"a\xffb"), [&b"a"[..], b"b", b""]);
        assert_eq!(parts::<2>(b"a\xffb\xffc"), [&b"a"[..], b"b\xffc"]);
    }
}
