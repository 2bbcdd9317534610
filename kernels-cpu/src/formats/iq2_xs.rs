//! IQ2_XS: 256 values in 16 groups of 16. Eight values are an entry of a codebook of 512, with signs of which seven are
//! stored; a group has a 4-bit scale. `value = d * (scale + 0.5) / 4 * level * sign`.
//!
//! Bytes: `d` (f16), 32 times 16 bits (nine of index, seven of signs on top), 8 bytes of scales (even groups low).

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
    codebook::{eight, even_signs, tables, write_signed},
    iq2_xxs::LEVELS,
};
use rustai_abi::DType;

const BYTES: usize = 74;

pub(super) const FORMAT: Format = Format::new(DType::IQ2_XS, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref rest @ ..]: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let d = read_f16([d0, d1]);
        let (quants, scales) = rest.split_at(64);
        for (i, (quant, values)) in quants.as_chunks().0.iter().zip(values.as_chunks_mut().0).enumerate() {
            let quant = u16::from_le_bytes(*quant);
            let scale = d * (0.5 + group_scale(scales, i / 2)) * 0.25;
            let levels = eight(tables::IQ2_XS[usize::from(quant & 0x1ff)], &LEVELS);
            write_signed(scale, levels, even_signs(u32::from(quant >> 9)), values);
        }
    });
}

/// The nibble of a group, even groups low.
pub(super) fn group_scale(scales: &[u8], group: usize) -> f32 {
    f32::from(scales[group / 2] >> (group % 2 * 4) & 0x0f)
}
