//! IQ1_M: 256 values in 16 groups of 16. Eight values are an entry of the codebook of IQ1_S with a shift of an eighth up or
//! down; a group has a 3-bit scale. `value = d * (2 * scale + 1) * (level + shift)`.
//!
//! Bytes: 32 low bytes of the indices, 16 bytes with a nibble for each index (even ones low: its upper three bits, and the
//! sign of the shift on top), and four times 16 bits: four scales (first lowest), and a nibble of `d` (f16, lowest first).

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    iq1_s::write_shifted,
};
use rustai_abi::DType;

const BYTES: usize = 56;

pub(super) const FORMAT: Format = Format::new(DType::IQ1_M, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let &[ref head @ .., a0, a1, b0, b1, c0, c1, d0, d1] = block;
        let words = [[a0, a1], [b0, b1], [c0, c1], [d0, d1]].map(u16::from_le_bytes);
        let d = read_f16([(a1 >> 4) | (b1 & 0xf0), (c1 >> 4) | (d1 & 0xf0)]);
        let (low, high) = head.split_at(32);
        for (i, (low, values)) in low.iter().zip(values.as_chunks_mut().0).enumerate() {
            let (group, high) = (i / 2, high[i / 2] >> (i % 2 * 4));
            let scale = d * f32::from(2 * (words[group / 4] >> (3 * (group % 4)) & 7) + 1);
            write_shifted(scale, [*low, high & 7], high & 8 != 0, values);
        }
    });
}
