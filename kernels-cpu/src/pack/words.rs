//! A block's codes in the order of [`Codes`](super::Codes), straight from the bits of the file.
//!
//! Each function gives a row's part of 32 columns, one word for each register, for columns `32k ..` of a block. Files keep most
//! bits in words already, so few operations on whole words do.

use crate::formats::parts::fixed;

/// A word for each register; those that a type does not have are zero.
pub type Words = [u32; 8];

const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;
const CRUMB: u64 = 0x0303_0303_0303_0303;
const BIT: u64 = 0x0101_0101_0101_0101;

/// Sixteen bytes from byte `at` on: four words, two in each number.
#[inline(always)]
fn pairs<const B: usize>(block: &[u8; B], at: usize) -> [u64; 2] {
    let pairs = block[at..at + 16].as_chunks().0;
    [u64::from_le_bytes(pairs[0]), u64::from_le_bytes(pairs[1])]
}

/// The first and the second word of a pair.
#[inline(always)]
fn split(pair: u64) -> [u32; 2] {
    [pair as u32, (pair >> 32) as u32]
}

/// The low nibbles are columns 0 to 15, the high ones 16 to 31, as they are wanted.
#[inline(always)]
fn nibbles<const B: usize>(block: &[u8; B], at: usize) -> Words {
    let [[a, b], [c, d]] = pairs(block, at).map(split);
    [a, b, c, d, 0, 0, 0, 0]
}

/// Of 32 bytes from `at` on, the low nibbles or the `high` ones are all columns.
#[inline(always)]
fn nibbles_of_32<const B: usize>(block: &[u8; B], at: usize, high: bool) -> Words {
    let (first, last) = (pairs(block, at), pairs(block, at + 16));
    let two = |i: usize| match high {
        false => first[i] & LOW | (last[i] & LOW) << 4,
        true => first[i] >> 4 & LOW | last[i] & LOW << 4,
    };
    let [[a, b], [c, d]] = [split(two(0)), split(two(1))];
    [a, b, c, d, 0, 0, 0, 0]
}

/// The fifth bits, which are the bits of a word: bit `4j + c` becomes bit `j` of byte `c`.
#[inline(always)]
fn fifth_bits<const B: usize>(block: &[u8; B], at: usize) -> u32 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let byte = |c: u32| {
        let every_fourth = bits >> c & 0x1111_1111;
        let pairs = (every_fourth | every_fourth >> 3) & 0x0303_0303;
        let nibbles = (pairs | pairs >> 6) & 0x000f_000f;
        (nibbles | nibbles >> 12) & 0xff
    };
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

/// Fifth bits from `at` on, and nibbles after them.
#[inline(always)]
fn fives<const B: usize>(block: &[u8; B], at: usize) -> Words {
    let mut words = nibbles(block, at + 4);
    words[4] = fifth_bits(block, at);
    words
}

/// Bit `k` of 32 bytes from `at` on, which are eight words: that of word `j` becomes bit `j` of its byte.
#[inline(always)]
fn single_bits<const B: usize>(block: &[u8; B], at: usize, k: usize) -> u32 {
    let ([a, b], [c, d]) = (pairs(block, at), pairs(block, at + 16));
    let bit = |pair: u64| pair >> k & BIT;
    let [even, odd] = split(bit(a) | bit(b) << 2 | bit(c) << 4 | bit(d) << 6);
    even | odd << 1
}

/// Bits `2k` and `2k + 1` of 32 bytes from `at` on, which are two times four words: those of word `s` become bits `2s`.
#[inline(always)]
fn crumbs<const B: usize>(block: &[u8; B], at: usize, k: usize) -> [u32; 2] {
    [at, at + 16].map(|at| {
        let [a, b] = pairs(block, at).map(|pair| pair >> (2 * k) & CRUMB);
        let [even, odd] = split(a | b << 4);
        even | odd << 2
    })
}

#[inline(always)]
pub(super) fn q4_0(block: &[u8], _: usize) -> Words {
    nibbles(fixed::<18>(block), 2)
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8], _: usize) -> Words {
    nibbles(fixed::<20>(block), 4)
}

#[inline(always)]
pub(super) fn mxfp4(block: &[u8], _: usize) -> Words {
    nibbles(fixed::<17>(block), 1)
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8], k: usize) -> Words {
    nibbles(fixed::<136>(block), 8 + 16 * k)
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8], _: usize) -> Words {
    fives(fixed::<22>(block), 2)
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8], _: usize) -> Words {
    fives(fixed::<24>(block), 4)
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8], _: usize) -> Words {
    let block = fixed::<34>(block);
    let ([[a, b], [c, d]], [[e, f], [g, h]]) = (pairs(block, 2).map(split), pairs(block, 18).map(split));
    [a, b, c, d, e, f, g, h]
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8], k: usize) -> Words {
    nibbles_of_32(fixed::<144>(block), 16 + k / 2 * 32, k % 2 == 1)
}

#[inline(always)]
pub(super) fn q2_k(block: &[u8], k: usize) -> Words {
    let block = fixed::<84>(block);
    let [a, b] = crumbs(block, 16 + k / 4 * 32, k % 4);
    [a, b, 0, 0, 0, 0, 0, 0]
}

#[inline(always)]
pub(super) fn q3_k(block: &[u8], k: usize) -> Words {
    let block = fixed::<110>(block);
    let [a, b] = crumbs(block, 32 + k / 4 * 32, k % 4);
    [a, b, single_bits(block, 0, k), 0, 0, 0, 0, 0]
}

#[inline(always)]
pub(super) fn q5_k(block: &[u8], k: usize) -> Words {
    let block = fixed::<176>(block);
    let mut words = nibbles_of_32(block, 48 + k / 2 * 32, k % 2 == 1);
    words[4] = single_bits(block, 16, k);
    words
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8], k: usize) -> Words {
    let block = fixed::<210>(block);
    let (half, run) = (k / 4, k % 4);
    let mut words = nibbles_of_32(block, half * 64 + run % 2 * 32, run >= 2);
    [words[4], words[5]] = crumbs(block, 128 + half * 32, run);
    words
}
