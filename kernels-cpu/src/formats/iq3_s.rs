//! IQ3_S: 256 values in 8 groups of 32. Four values are an entry of a codebook of 512; all signs are stored; a group has a
//! 4-bit scale. `value = d * (1 + 2 * scale) * level * sign`.
//!
//! Bytes: `d` (f16), 64 low bytes of the indices, 8 bytes with their ninth bits (first lowest), 32 bytes of signs, 4 bytes of
//! scales (even groups low).

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    codebook::{tables, two_of_four, write_signed},
    iq2_xs::group_scale,
};
use rustai_abi::DType;

const BYTES: usize = 110;

/// The levels of the codebook.
const LEVELS: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

pub(super) const FORMAT: Format = Format::new(DType::IQ3_S, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref rest @ ..]: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let d = read_f16([d0, d1]);
        let (low, rest) = rest.split_at(64);
        let (high, rest) = rest.split_at(8);
        let (signs, scales) = rest.split_at(32);
        let eights = low.as_chunks::<2>().0.iter().zip(signs).zip(values.as_chunks_mut().0);
        for (i, (([first, second], signs), values)) in eights.enumerate() {
            // The ninth bits of the two indices.
            let ninths = high[i / 4] >> (2 * (i % 4));
            let entries = [
                tables::IQ3_S[usize::from(*first) | usize::from(ninths & 1) << 8],
                tables::IQ3_S[usize::from(*second) | usize::from(ninths >> 1 & 1) << 8],
            ];
            let scale = d * (1.0 + 2.0 * group_scale(scales, i / 4));
            write_signed(scale, two_of_four(entries, &LEVELS), *signs, values);
        }
    });
}
