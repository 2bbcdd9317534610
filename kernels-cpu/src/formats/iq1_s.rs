//! IQ1_S: 256 values in 8 groups of 32. Eight values are an entry of a codebook of 2048; a group has a 3-bit scale and a
//! shift of an eighth up or down. `value = d * (2 * scale + 1) * (level + shift)`.
//!
//! Bytes: `d` (f16), 32 low bytes of the indices, and for each group 16 bits: four times the upper three bits of an index
//! (first lowest), the scale, and the sign of the shift.

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    codebook::{eight, tables},
};
use rustai_abi::DType;

const BYTES: usize = 50;

/// The levels of the codebook of IQ1_S and IQ1_M. No entry has the fourth.
const LEVELS: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];

/// What is added to a level, or taken from it.
const SHIFT: f32 = 0.125;

pub(super) const FORMAT: Format = Format::new(DType::IQ1_S, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref rest @ ..]: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let d = read_f16([d0, d1]);
        let (low, groups) = rest.split_at(32);
        let groups = low.as_chunks::<4>().0.iter().zip(groups.as_chunks().0).zip(values.chunks_exact_mut(32));
        for ((low, word), values) in groups {
            let word = u16::from_le_bytes(*word);
            let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
            for (i, (low, values)) in low.iter().zip(values.as_chunks_mut().0).enumerate() {
                write_shifted(scale, [*low, (word >> (3 * i) & 7) as u8], word & 0x8000 != 0, values);
            }
        }
    });
}

/// The eight values of the entry at `index` (low byte, upper three bits), with the shift down or up.
pub(super) fn write_shifted(scale: f32, index: [u8; 2], down: bool, out: &mut [f32; 8]) {
    let shift = if down { -SHIFT } else { SHIFT };
    let levels = eight(tables::IQ1[usize::from(u16::from_le_bytes(index) & 0x7ff)], &LEVELS);
    for (value, level) in out.iter_mut().zip(levels) {
        *value = scale * (level + shift);
    }
}
