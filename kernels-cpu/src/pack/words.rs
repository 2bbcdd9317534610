//! Blocks' codes in the order of [`Codes`](super::Codes), and the whole numbers among their scales in that of
//! [`Blocks::whole_of`](super::Blocks), straight from the bits of the file.
//!
//! Each function takes a block, or a block of each of four rows. Those of codes give the part of 32 columns, a word for each
//! register, for columns `32k ..` of the blocks. Files keep most bits in words already, so few operations on whole words do;
//! the words of four rows go through them together.

use super::column::Column;

/// A word for each register; those that a type does not have are zero.
pub type Words<C = u32> = [C; 8];

/// Whole numbers among the scales of a block, each a byte.
pub type Whole<C = u32> = [C; 4];

const LOW: u32 = 0x0f0f_0f0f;
const CRUMB: u32 = 0x0303_0303;
const BIT: u32 = 0x0101_0101;

/// The first registers; the others are zero.
#[inline(always)]
fn registers<C: Column<R>, const R: usize, const N: usize>(columns: [C; N]) -> Words<C> {
    let mut words = [C::splat(0); 8];
    words[..N].copy_from_slice(&columns);
    words
}

/// Thirty-two bytes from `at` on.
#[inline(always)]
fn eight<C: Column<R>, const R: usize>(blocks: [&[u8]; R], at: usize) -> [C; 8] {
    let [[a, b, c, d], [e, f, g, h]] = [C::four(blocks, at), C::four(blocks, at + 16)];
    [a, b, c, d, e, f, g, h]
}

/// Of 32 bytes from `at` on, the low nibbles or the `high` ones are all columns.
#[inline(always)]
fn nibbles_of_32<C: Column<R>, const R: usize>(blocks: [&[u8]; R], at: usize, high: bool) -> [C; 4] {
    let (first, last) = (C::four(blocks, at), C::four(blocks, at + 16));
    let both = |first: C, last: C| match high {
        false => first.and(LOW).or(last.and(LOW).shl(4)),
        true => first.shr(4).and(LOW).or(last.and(!LOW)),
    };
    let ([a, b, c, d], [e, f, g, h]) = (first, last);
    [both(a, e), both(b, f), both(c, g), both(d, h)]
}

/// The fifth bits, which are the bits of a word: bit `4j + c` becomes bit `j` of byte `c`.
#[inline(always)]
fn fifth_bits<C: Column<R>, const R: usize>(blocks: [&[u8]; R], at: usize) -> C {
    let bits = C::one(blocks, at);
    let byte = |c: u32| {
        let every_fourth = bits.shr(c).and(0x1111_1111);
        let pairs = every_fourth.or(every_fourth.shr(3)).and(CRUMB);
        let nibbles = pairs.or(pairs.shr(6)).and(0x000f_000f);
        nibbles.or(nibbles.shr(12)).and(0xff)
    };
    byte(0).or(byte(1).shl(8)).or(byte(2).shl(16)).or(byte(3).shl(24))
}

/// Fifth bits from `at` on, and nibbles after them.
#[inline(always)]
fn fives<C: Column<R>, const R: usize>(blocks: [&[u8]; R], at: usize) -> Words<C> {
    let [a, b, c, d] = C::four(blocks, at + 4);
    registers([a, b, c, d, fifth_bits(blocks, at)])
}

/// Bit `k` of 32 bytes from `at` on, which are eight words: that of word `j` becomes bit `j` of its byte.
#[inline(always)]
fn single_bits<C: Column<R>, const R: usize>(blocks: [&[u8]; R], at: usize, k: u32) -> C {
    let mut bits = C::splat(0);
    for (j, word) in (0..).zip(eight::<C, R>(blocks, at)) {
        bits = bits.or(word.shr(k).and(BIT).shl(j));
    }
    bits
}

/// Bits `2k` and `2k + 1` of 32 bytes from `at` on, which are two times four words: those of word `s` become bits `2s`.
#[inline(always)]
fn crumbs<C: Column<R>, const R: usize>(blocks: [&[u8]; R], at: usize, k: u32) -> [C; 2] {
    let crumb = |word: C| word.shr(2 * k).and(CRUMB);
    let four = |[a, b, c, d]: [C; 4]| crumb(a).or(crumb(b).shl(2)).or(crumb(c).shl(4)).or(crumb(d).shl(6));
    [four(C::four(blocks, at)), four(C::four(blocks, at + 16))]
}

/// The low nibbles are columns 0 to 15, the high ones 16 to 31, as they are wanted.
#[inline(always)]
pub(super) fn q4_0<C: Column<R>, const R: usize>(blocks: [&[u8]; R], _: usize) -> Words<C> {
    registers(C::four(blocks, 2))
}

#[inline(always)]
pub(super) fn q4_1<C: Column<R>, const R: usize>(blocks: [&[u8]; R], _: usize) -> Words<C> {
    registers(C::four(blocks, 4))
}

#[inline(always)]
pub(super) fn mxfp4<C: Column<R>, const R: usize>(blocks: [&[u8]; R], _: usize) -> Words<C> {
    registers(C::four(blocks, 1))
}

#[inline(always)]
pub(super) fn iq4_xs<C: Column<R>, const R: usize>(blocks: [&[u8]; R], k: usize) -> Words<C> {
    registers(C::four(blocks, 8 + 16 * k))
}

#[inline(always)]
pub(super) fn q5_0<C: Column<R>, const R: usize>(blocks: [&[u8]; R], _: usize) -> Words<C> {
    fives(blocks, 2)
}

#[inline(always)]
pub(super) fn q5_1<C: Column<R>, const R: usize>(blocks: [&[u8]; R], _: usize) -> Words<C> {
    fives(blocks, 4)
}

#[inline(always)]
pub(super) fn q8_0<C: Column<R>, const R: usize>(blocks: [&[u8]; R], _: usize) -> Words<C> {
    eight(blocks, 2)
}

#[inline(always)]
pub(super) fn q4_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R], k: usize) -> Words<C> {
    registers(nibbles_of_32(blocks, 16 + k / 2 * 32, k % 2 == 1))
}

#[inline(always)]
pub(super) fn q2_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R], k: usize) -> Words<C> {
    registers(crumbs(blocks, 16 + k / 4 * 32, k as u32 % 4))
}

#[inline(always)]
pub(super) fn q3_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R], k: usize) -> Words<C> {
    let [a, b] = crumbs(blocks, 32 + k / 4 * 32, k as u32 % 4);
    registers([a, b, single_bits(blocks, 0, k as u32)])
}

#[inline(always)]
pub(super) fn q5_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R], k: usize) -> Words<C> {
    let [a, b, c, d] = nibbles_of_32(blocks, 48 + k / 2 * 32, k % 2 == 1);
    registers([a, b, c, d, single_bits(blocks, 16, k as u32)])
}

#[inline(always)]
pub(super) fn q6_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R], k: usize) -> Words<C> {
    let (half, run) = (k / 4, k % 4);
    let [a, b, c, d] = nibbles_of_32(blocks, half * 64 + run % 2 * 32, run >= 2);
    let [e, f] = crumbs(blocks, 128 + half * 32, run as u32);
    registers([a, b, c, d, e, f])
}

/// Of blocks without whole numbers among their scales.
#[inline(always)]
pub(super) fn no_whole<C: Column<R>, const R: usize>(_: [&[u8]; R]) -> Whole<C> {
    [C::splat(0); 4]
}

/// Six-bit numbers from 0 on as bytes, less 32.
#[inline(always)]
fn less_32<C: Column<R>, const R: usize>(words: C) -> C {
    // What is below 32 has ones from bit 5 on then.
    let below = words.xor(0x2020_2020).and(0x2020_2020);
    words.and(0x1f1f_1f1f).or(below).or(below.shl(1)).or(below.shl(2))
}

/// The 12 bytes of Q4_K and Q5_K: eight scales and eight minima. A byte of each word belongs to one of four.
#[inline(always)]
pub(super) fn whole_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R]) -> Whole<C> {
    let [scales, mins, low, _] = C::four(blocks, 4);
    let upper = |word: C| word.shr(2).and(0x3030_3030);
    let first = |word: C| word.and(0x3f3f_3f3f);
    [first(scales), low.and(LOW).or(upper(scales)), first(mins), low.shr(4).and(LOW).or(upper(mins))]
}

/// Sixteen times four bits of scale and four of minimum.
#[inline(always)]
pub(super) fn whole_q2_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R]) -> Whole<C> {
    C::four(blocks, 0)
}

/// Eight bytes with the low four bits of sixteen scales, then four with the upper two.
#[inline(always)]
pub(super) fn whole_q3_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R]) -> Whole<C> {
    let [first, last, high] = [96, 100, 104].map(|at| C::one(blocks, at));
    let scales = |low: C, i: u32| less_32(low.and(LOW).or(high.shr(2 * i).and(CRUMB).shl(4)));
    [scales(first, 0), scales(last, 1), scales(first.shr(4), 2), scales(last.shr(4), 3)]
}

#[inline(always)]
pub(super) fn whole_q6_k<C: Column<R>, const R: usize>(blocks: [&[u8]; R]) -> Whole<C> {
    C::four(blocks, 192)
}

/// Two bytes with the upper two bits of eight scales, then four with the low four.
#[inline(always)]
pub(super) fn whole_iq4_xs<C: Column<R>, const R: usize>(blocks: [&[u8]; R]) -> Whole<C> {
    let (high, low) = (C::one(blocks, 2), C::one(blocks, 4));
    let scales = |high: C, low: C| {
        let apart = low.and(0xff).or(low.and(0xff00).shl(8));
        let low = apart.and(0x000f_000f).or(apart.and(0x00f0_00f0).shl(4));
        let crumb = |i: u32| high.shr(2 * i).and(3).shl(8 * i + 4);
        less_32(low.or(crumb(0)).or(crumb(1)).or(crumb(2)).or(crumb(3)))
    };
    let zero = C::splat(0);
    [scales(high, low), scales(high.shr(8), low.shr(16)), zero, zero]
}
