//! IQ3_XXS: 256 values in 8 groups of 32. Four values are an entry of a codebook of 256; of eight signs seven are stored;
//! a group has a 4-bit scale. `value = d * (scale + 0.5) / 2 * level * sign`.
//!
//! Bytes: `d` (f16), 64 indices of a byte, and for each group 32 bits: four times seven signs, the scale on top.

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    codebook::{even_signs, tables, two_of_four, write_signed},
};
use rustai_abi::DType;

const BYTES: usize = 98;

/// The levels of the codebook.
const LEVELS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];

pub(super) const FORMAT: Format = Format::new(DType::IQ3_XXS, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref rest @ ..]: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let d = read_f16([d0, d1]);
        let (indices, words) = rest.split_at(64);
        let groups = indices.as_chunks::<8>().0.iter().zip(words.as_chunks().0).zip(values.chunks_exact_mut(32));
        for ((indices, word), values) in groups {
            let word = u32::from_le_bytes(*word);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            for (i, (pair, values)) in indices.as_chunks::<2>().0.iter().zip(values.as_chunks_mut().0).enumerate() {
                let levels = two_of_four(pair.map(|index| tables::IQ3_XXS[usize::from(index)]), &LEVELS);
                write_signed(scale, levels, even_signs(word >> (7 * i)), values);
            }
        }
    });
}
