//! How the next input is made: of random bytes now and then, mostly by changing one that was interesting in a few places.

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

use crate::INPUT_BYTES_MAX;

/// Changes of one input at most.
const CHANGES_MAX: u32 = 6;
/// Of this many inputs one is random.
const RANDOM_ONE_OF: u32 = 20;
/// Bytes at which things begin or end.
const BYTES: &[u8] = b"\x00\x01\x7f\x80\xff\t\n\r \"%&'*+,-./0159:;<=>?@AZ[\\]^_`az{|}~";
/// Numbers at which something overflows, as texts.
const NUMBERS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1",
    b"127",
    b"128",
    b"255",
    b"256",
    b"65535",
    b"65536",
    b"2147483647",
    b"2147483648",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"1e308",
    b"1e309",
    b"1e-400",
    b"0.1",
    b"NaN",
    b"00",
    b"+1",
    b"1_000",
];
/// The same as four bytes of a length.
const LENGTHS: &[u32] = &[0, 1, 2, 16, 255, 256, 65_535, 65_536, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
/// Texts that surprise who counts bytes as characters, or compares without folding.
const TEXTS: &[&str] =
    &["é", "ß", "İ", "Å", "\u{202e}", "\u{feff}", "\u{1F600}", "１", "。", "\u{0}", "\\u0000", "\\ud800", "%00", "%2e"];

/// Makes inputs.
pub(crate) struct Mutator<'a> {
    words: &'a [&'a [u8]],
}

impl<'a> Mutator<'a> {
    /// `words` are put in as they are.
    pub(crate) fn new(words: &'a [&'a [u8]]) -> Self {
        Self { words }
    }

    /// The next input.
    pub(crate) fn input(&self, corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
        if corpus.is_empty() || random.random_range(0..RANDOM_ONE_OF) == 0 {
            let mut bytes = vec![0; random.random_range(0..200)];
            random.fill_bytes(&mut bytes);
            return bytes;
        }
        let mut input = pick(corpus, random).clone();
        for _ in 0..random.random_range(1..=CHANGES_MAX) {
            self.change(&mut input, corpus, random);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&self, input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut StdRng) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..15) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.random_range(0..8);
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.random();
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = *pick(BYTES, random);
                }
            }
            3 => input.insert(at, *pick(BYTES, random)),
            4 => input.insert(at, random.random()),
            5 => drop(input.drain(range(input, random))),
            6 => input.truncate(at),
            7 => {
                let piece = input[range(input, random)].to_vec();
                put(input, at, &piece);
            }
            // Long, and deep.
            8 => {
                let piece = input[range(input, random)].to_vec();
                let times = random.random_range(2..300usize).min(INPUT_BYTES_MAX / piece.len().max(1));
                put(input, at, &piece.repeat(times));
            }
            9 => {
                let other = pick(corpus, random);
                let piece = &other[range(other, random)];
                let place = range(input, random);
                input.splice(place, piece.iter().copied());
            }
            10 => put(input, at, pick(TEXTS, random).as_bytes()),
            11 => {
                // In place of a number, where one is.
                let start = input[at..].iter().position(u8::is_ascii_digit).map_or(at, |found| at + found);
                let end =
                    input[start..].iter().position(|b| !b.is_ascii_digit()).map_or(input.len(), |found| start + found);
                input.splice(start..end, pick(NUMBERS, random).iter().copied());
            }
            12 => {
                if let Some(length) = input.get_mut(at..at + 4) {
                    length.copy_from_slice(&pick(LENGTHS, random).to_be_bytes());
                }
            }
            _ if self.words.is_empty() => input.insert(at, *pick(BYTES, random)),
            13 => put(input, at, pick::<&[u8]>(self.words, random)),
            _ => {
                let place = range(input, random);
                input.splice(place, pick::<&[u8]>(self.words, random).iter().copied());
            }
        }
    }
}

fn pick<'a, T>(all: &'a [T], random: &mut StdRng) -> &'a T {
    &all[random.random_range(0..all.len())]
}

fn range(input: &[u8], random: &mut StdRng) -> std::ops::Range<usize> {
    let (a, b) = (random.random_range(0..=input.len()), random.random_range(0..=input.len()));
    // Short ones more often than long ones.
    let (start, end) = (a.min(b), a.max(b));
    if random.random() { start..end } else { start..end.min(start + 8) }
}

fn put(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    if input.len() + piece.len() <= 2 * INPUT_BYTES_MAX {
        input.splice(at..at, piece.iter().copied());
    }
}
