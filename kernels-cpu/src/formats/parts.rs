//! Blocks taken apart into whole numbers, before any arithmetic: what packing rearranges.

use super::{block::QK_K, k_scales};

/// What the bits of one block say. Parts that a type does not have keep their last contents.
pub(crate) struct Parts {
    /// A code per value, in the order of the columns: a quant as it is stored, or an index into the type's table.
    pub(crate) codes: [u8; QK_K],
    /// The f16 scale.
    pub(crate) d: [u8; 2],
    /// The f16 minimum, or scale of the minima.
    pub(crate) dmin: [u8; 2],
    /// Integer scales of the runs of 32 or 16 values; signed ones as their bits.
    pub(crate) scales: [u8; 16],
    /// Integer minima of the runs.
    pub(crate) mins: [u8; 16],
}

impl Parts {
    pub(crate) const ZERO: Self = Self { codes: [0; QK_K], d: [0; 2], dmin: [0; 2], scales: [0; 16], mins: [0; 16] };

    /// The 12 bytes of Q4_K and Q5_K.
    #[inline(always)]
    pub(super) fn set_k_scales(&mut self, packed: &[u8; 12]) {
        let (scales, mins) = k_scales::unpack(packed);
        self.scales[..8].copy_from_slice(&scales);
        self.mins[..8].copy_from_slice(&mins);
    }

    /// The 128 bytes of Q4_K and Q5_K: of each 32, the low nibbles are one run and the high nibbles the next.
    #[inline(always)]
    pub(super) fn set_low_nibbles(&mut self, quants: &[u8]) {
        for (quants, codes) in quants.as_chunks::<32>().0.iter().zip(self.codes.as_chunks_mut::<64>().0) {
            nibbles(quants, codes);
        }
    }

    /// The 64 bytes of Q2_K and Q3_K: of each 32, bits 0-1 are one run, bits 2-3 the next, and so on.
    #[inline(always)]
    pub(super) fn set_crumbs(&mut self, quants: &[u8]) {
        for (run, codes) in self.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, q) in codes.iter_mut().zip(&quants[run / 4 * 32..][..32]) {
                *code = q >> (run % 4 * 2) & 3;
            }
        }
    }
}

/// The block as an array.
#[inline(always)]
pub(super) fn fixed<const BYTES: usize>(block: &[u8]) -> &[u8; BYTES] {
    block.try_into().expect("one whole block")
}

/// Low nibbles of `quants` become the first codes, high nibbles the next.
#[inline(always)]
pub(super) fn nibbles(quants: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(quants.len());
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        (*low, *high) = (q & 0x0f, q >> 4);
    }
}

/// Sets bit `place` of 32 codes from the bits of `bits`, lowest first.
#[inline(always)]
pub(super) fn add_bits(bits: u32, place: u32, codes: &mut [u8]) {
    for (i, code) in codes[..32].iter_mut().enumerate() {
        *code |= ((bits >> i & 1) as u8) << place;
    }
}
