//! IQ2_XXS: 256 values in 8 groups of 32. Eight values are an entry of a codebook of 256, with signs of which seven are
//! stored; a group has a 4-bit scale. `value = d * (scale + 0.5) / 4 * level * sign`.
//!
//! Bytes: `d` (f16), and for each group 4 indices of a byte and 32 bits: four times seven signs, the scale on top.

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    codebook::{eight, even_signs, tables, write_signed},
};
use rustai_abi::DType;

const BYTES: usize = 66;

/// The levels of the codebooks of IQ2_XXS, IQ2_XS and IQ2_S. No entry has the fourth.
pub(super) const LEVELS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];

pub(super) const FORMAT: Format = Format::new(DType::IQ2_XXS, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref groups @ ..]: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let d = read_f16([d0, d1]);
        for (&[i0, i1, i2, i3, ref word @ ..], values) in
            groups.as_chunks::<8>().0.iter().zip(values.chunks_exact_mut(32))
        {
            let word = u32::from_le_bytes(*word);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
            for (i, (index, values)) in [i0, i1, i2, i3].into_iter().zip(values.as_chunks_mut().0).enumerate() {
                let levels = eight(tables::IQ2_XXS[usize::from(index)], &LEVELS);
                write_signed(scale, levels, even_signs(word >> (7 * i)), values);
            }
        }
    });
}
