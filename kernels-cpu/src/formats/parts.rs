//! Blocks as whole numbers, without any arithmetic, as quantizing puts them together.

use super::{block::QK_K, k_scales};

/// What the bits of one block say. Parts that a type does not have do not count.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    /// A code per value, in the order of the columns: a quant as it is stored, or an index into the type's table.
    pub codes: [u8; QK_K],
    /// The f16 scale.
    pub d: [u8; 2],
    /// The f16 minimum, or scale of the minima.
    pub dmin: [u8; 2],
    /// Integer scales of the runs of 32 or 16 values; signed ones as their bits.
    pub scales: [u8; 16],
    /// Integer minima of the runs.
    pub mins: [u8; 16],
}

impl Parts {
    /// Zeros.
    pub const ZERO: Self = Self { codes: [0; QK_K], d: [0; 2], dmin: [0; 2], scales: [0; 16], mins: [0; 16] };
}

/// The 12 bytes of Q4_K and Q5_K.
#[inline(always)]
pub(super) fn k_scales_of(parts: &Parts) -> [u8; 12] {
    let eight = |values: &[u8; 16]| *values.first_chunk().expect("16 are more than 8");
    k_scales::pack(&eight(&parts.scales), &eight(&parts.mins))
}

/// The 128 bytes of Q4_K and Q5_K: of each 32, the low nibbles are one run and the high nibbles the next.
#[inline(always)]
pub(super) fn put_low_nibbles(codes: &[u8; QK_K], quants: &mut [u8]) {
    for (quants, codes) in quants.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
        put_nibbles(codes, quants);
    }
}

/// The 64 bytes of Q2_K and Q3_K: of each 32, bits 0-1 are one run, bits 2-3 the next, and so on.
#[inline(always)]
pub(super) fn put_crumbs(codes: &[u8; QK_K], quants: &mut [u8]) {
    for (quants, codes) in quants.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        for (i, q) in quants.iter_mut().enumerate() {
            *q = codes[i] & 3 | (codes[i + 32] & 3) << 2 | (codes[i + 64] & 3) << 4 | codes[i + 96] << 6;
        }
    }
}

/// The first half of the codes as low nibbles, the other as high ones; upper bits are left out.
#[inline(always)]
pub(super) fn put_nibbles(codes: &[u8], quants: &mut [u8]) {
    let (low, high) = codes.split_at(quants.len());
    for ((q, low), high) in quants.iter_mut().zip(low).zip(high) {
        *q = low & 0x0f | high << 4;
    }
}

/// Bit `place` of 32 codes, the first lowest.
#[inline(always)]
pub(super) fn bits_of(codes: &[u8], place: u32) -> u32 {
    codes[..32].iter().enumerate().fold(0, |bits, (i, code)| bits | u32::from(code >> place & 1) << i)
}
