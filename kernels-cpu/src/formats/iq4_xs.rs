//! IQ4_XS: 256 values in 8 groups of 32, each value 4 bits that index the table of IQ4_NL, each group with a 6-bit scale.
//! `value = (d * (scale - 32)) * VALUES[q]`.
//!
//! Bytes: `d` (f16), 16 bits with the upper two bits of the eight scales (group 0 lowest), 4 bytes with their lower nibbles
//! (even groups low), and for each group 16 bytes whose low nibbles are its values 0-15 and whose high nibbles are 16-31.

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    iq4_nl::{VALUES, lookup},
    parts::{Parts, fixed, nibbles},
};
use rustai_abi::DType;

const BYTES: usize = 136;

pub(super) const FORMAT: Format = Format::new(DType::IQ4_XS, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let &[d0, d1, h0, h1, l0, l1, l2, l3, ref quants @ ..] = block;
        let d = read_f16([d0, d1]);
        let scales = scales([h0, h1], [l0, l1, l2, l3]);
        for ((scale, quants), values) in scales.iter().zip(quants.chunks_exact(16)).zip(values.chunks_exact_mut(32)) {
            lookup(d * f32::from(*scale), &VALUES, quants, values);
        }
    });
}

/// The scales of the eight groups, -32 to 31, from their upper bits and their lower nibbles.
pub(crate) fn scales(high: [u8; 2], low: [u8; 4]) -> [i8; 8] {
    let high = u16::from_le_bytes(high);
    std::array::from_fn(|group| {
        let low = low[group / 2] >> (group % 2 * 4) & 0x0f;
        let high = (high >> (2 * group) & 3) as u8;
        (low | high << 4) as i8 - 32
    })
}

/// Takes a block apart; codes are indices into IQ4_NL's table.
#[inline(always)]
pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let &[d0, d1, h0, h1, l0, l1, l2, l3, ref quants @ ..] = fixed::<BYTES>(block);
    parts.d = [d0, d1];
    for (to, scale) in parts.scales.iter_mut().zip(scales([h0, h1], [l0, l1, l2, l3])) {
        *to = scale as u8;
    }
    for (quants, codes) in quants.as_chunks::<16>().0.iter().zip(parts.codes.as_chunks_mut::<32>().0) {
        nibbles(quants, codes);
    }
}
