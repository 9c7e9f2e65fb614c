//! Times counted in logarithmic buckets, from which percentiles are told. Each doubling from 64 µs on is divided into
//! eight equal parts, so a bucket is at most an eighth wider than its lower bound, whatever the scale.
//!
//! The record statement puts times into the same buckets (`relay_bucket` in the migrations; a test compares the two),
//! the fold merges them; `relay_store` hands them out as [`Histogram`]s, and the statistics' routes show them.
//! Invariant: merging histograms is the same as counting all their samples in one.

use std::collections::BTreeMap;

/// Percentiles are off by this share of the true value at most: half a bucket's width. Below [`LOWEST_US`] they are off
/// by up to half of that instead, and above [`HIGHEST_US`] they stay there.
pub const ERROR_MAX: f64 = 1.0 / 17.0;
/// The upper bound of the first bucket, in microseconds.
pub const LOWEST_US: u64 = 1 << LOWEST_OCTAVE;
/// The lower bound of the last bucket, in microseconds: 12.7 days.
pub const HIGHEST_US: u64 = 1 << HIGHEST_OCTAVE;

const LOWEST_OCTAVE: u32 = 6;
const HIGHEST_OCTAVE: u32 = 40;
const PARTS: u64 = 8;
const PARTS_BITS: u32 = 3;
/// Merged buckets are stored as number · 2^40 + samples.
const SAMPLES_BITS: u32 = 40;

/// The number of a bucket: 0 below [`LOWEST_US`], the last one from [`HIGHEST_US`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket(u16);

impl Bucket {
    /// The last one.
    pub const LAST: Self = Self(((HIGHEST_OCTAVE - LOWEST_OCTAVE) as u16) * (PARTS as u16) + 1);

    /// The bucket of a time in microseconds.
    pub fn of(us: u64) -> Self {
        if us < LOWEST_US {
            return Self(0);
        }
        let octave = us.ilog2();
        if octave >= HIGHEST_OCTAVE {
            return Self::LAST;
        }
        let part = (us >> (octave - PARTS_BITS)) - PARTS;
        // Both are small: 33 octaves of 8 parts.
        Self((octave - LOWEST_OCTAVE) as u16 * PARTS as u16 + part as u16 + 1)
    }

    /// Its number.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The time that stands for it, in microseconds: off by the same share from both of its bounds.
    pub fn middle_us(self) -> f64 {
        let Some(n) = self.0.checked_sub(1) else { return LOWEST_US as f64 / 2.0 };
        if self >= Self::LAST {
            return HIGHEST_US as f64;
        }
        let (octave, part) = (LOWEST_OCTAVE + u32::from(n) / PARTS as u32, u64::from(n) % PARTS);
        let lower = ((PARTS + part) << (octave - PARTS_BITS)) as f64;
        let upper = ((PARTS + part + 1) << (octave - PARTS_BITS)) as f64;
        2.0 * lower * upper / (lower + upper)
    }
}

/// How many times fell into each bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(BTreeMap<u16, u64>);

impl Histogram {
    /// Counts `samples` times in a bucket, by its number.
    pub fn add(&mut self, number: u16, samples: u64) {
        let count = self.0.entry(number.min(Bucket::LAST.0)).or_default();
        *count = count.saturating_add(samples);
    }

    /// Adds another one's samples.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(number, samples)| self.add(*number, *samples));
    }

    /// How many times were counted.
    pub fn samples(&self) -> u64 {
        self.0.values().fold(0, |all, n| all.saturating_add(*n))
    }

    /// The time in microseconds that `percent` of the samples don't exceed (nearest rank), off by [`ERROR_MAX`] at most;
    /// `None` without samples.
    pub fn percentile_us(&self, percent: u8) -> Option<f64> {
        let rank = (u128::from(self.samples()) * u128::from(percent.min(100))).div_ceil(100).max(1);
        let mut seen = 0;
        self.0.iter().find_map(|(number, samples)| {
            seen += u128::from(*samples);
            (seen >= rank).then(|| Bucket(*number).middle_us())
        })
    }
}

/// The two histograms that statistics keep, which are stored in one array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// How long the endpoint took, of each attempt that it answered.
    pub answered: Histogram,
    /// From the acceptance of the event (or from when it was sent again) until its delivery was on record.
    pub delivered: Histogram,
}

impl Latencies {
    /// What is added to the bucket numbers of [`Self::delivered`] where both are in one array.
    pub const DELIVERED_FROM: u16 = 512;

    /// Reads merged buckets.
    pub fn unpack(packed: &[i64]) -> Self {
        let mut both = Self::default();
        for value in packed {
            let samples = u64::try_from(value & ((1 << SAMPLES_BITS) - 1)).unwrap_or(0);
            let number = u16::try_from(value >> SAMPLES_BITS).unwrap_or(u16::MAX);
            match number.checked_sub(Self::DELIVERED_FROM) {
                Some(number) => both.delivered.add(number, samples),
                None => both.answered.add(number, samples),
            }
        }
        both
    }

    /// Adds another one's samples.
    pub fn merge(&mut self, other: &Self) {
        self.answered.merge(&other.answered);
        self.delivered.merge(&other.delivered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(times: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        times.iter().for_each(|us| histogram.add(Bucket::of(*us).number(), 1));
        histogram
    }

    /// Times of all scales alike.
    fn time() -> impl Strategy<Value = u64> {
        (0u32..44, any::<u64>()).prop_map(|(bits, n)| n >> (63 - bits))
    }

    #[test]
    fn known_buckets() {
        for (us, number) in [(0, 0), (63, 0), (64, 1), (71, 1), (72, 2), (127, 8), (128, 9), (HIGHEST_US - 1, 272)] {
            assert_eq!(Bucket::of(us).number(), number, "{us}");
        }
        assert_eq!(Bucket::LAST.number(), 273);
        assert_eq!(Bucket::of(HIGHEST_US), Bucket::LAST);
        assert_eq!(Bucket::of(u64::MAX), Bucket::LAST);
        assert!(Bucket::LAST.number() < Latencies::DELIVERED_FROM);
    }

    #[test]
    fn nothing_has_no_percentiles_and_one_sample_is_all_of_them() {
        assert_eq!(Histogram::default().percentile_us(50), None);
        let one = counted(&[1_000_000]);
        assert_eq!(one.percentile_us(1), one.percentile_us(99));
    }

    #[test]
    fn stored_buckets_are_read() {
        let both = Latencies::unpack(&[(3 << 40) | 7, (514 << 40) | 1]);
        assert_eq!((both.answered.samples(), both.delivered.samples()), (7, 1));
        assert_eq!(both.delivered.percentile_us(50), Some(Bucket(2).middle_us()));
    }

    proptest! {
        #[test]
        fn percentiles_are_within_their_error(mut times in prop::collection::vec(time(), 1..300), percent in 0u8..=100) {
            let estimate = counted(&times).percentile_us(percent).unwrap();
            times.sort_unstable();
            let rank = (times.len() * usize::from(percent)).div_ceil(100).max(1);
            let exact = times[rank - 1].min(HIGHEST_US) as f64;
            let allowed = if exact < LOWEST_US as f64 { LOWEST_US as f64 / 2.0 } else { exact * ERROR_MAX };
            prop_assert!((estimate - exact).abs() <= allowed * 1.000_001, "{estimate} for {exact}");
        }

        #[test]
        fn buckets_are_in_the_order_of_times(a in time(), b in time()) {
            prop_assert!(Bucket::of(a.min(b)) <= Bucket::of(a.max(b)));
            prop_assert!(Bucket::of(a.min(b)).middle_us() <= Bucket::of(a.max(b)).middle_us());
        }

        #[test]
        fn merging_is_counting_together(a in prop::collection::vec(time(), 0..100), b in prop::collection::vec(time(), 0..100)) {
            let mut merged = counted(&a);
            merged.merge(&counted(&b));
            prop_assert_eq!(merged, counted(&[a, b].concat()));
        }
    }
}
