//! IQ2_S: 256 values in 16 groups of 16. Eight values are an entry of a codebook of 1024, with eight signs; a group has a
//! 4-bit scale. `value = d * (scale + 0.5) / 4 * level * sign`.
//!
//! Bytes: `d` (f16), 32 low bytes of the indices, 32 bytes of signs, 8 bytes with the upper two bits of four indices each
//! (first lowest), 8 bytes of scales (even groups low).

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    codebook::{eight, tables, write_signed},
    iq2_xs::group_scale,
    iq2_xxs::LEVELS,
};
use rustai_abi::DType;

const BYTES: usize = 82;

pub(super) const FORMAT: Format = Format::new(DType::IQ2_S, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref rest @ ..]: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let d = read_f16([d0, d1]);
        let (low, rest) = rest.split_at(32);
        let (signs, rest) = rest.split_at(32);
        let (high, scales) = rest.split_at(8);
        for (i, ((low, signs), values)) in low.iter().zip(signs).zip(values.as_chunks_mut().0).enumerate() {
            let index = usize::from(*low) | usize::from(high[i / 4] >> (2 * (i % 4)) & 3) << 8;
            let scale = d * (0.5 + group_scale(scales, i / 2)) * 0.25;
            write_signed(scale, eight(tables::IQ2_S[index], &LEVELS), *signs, values);
        }
    });
}
