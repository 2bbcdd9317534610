//! Q4_K: 256 values of 4 bits in 8 groups of 32, each group with a 6-bit scale and a 6-bit minimum.
//! `value = (d * scale) * q - dmin * min`.
//!
//! Bytes: `d` (f16), `dmin` (f16), 12 bytes of scales and minima (see `k_scales`), 128 bytes of quants. Each 32 bytes of
//! quants hold two groups: the low nibbles are the first, the high nibbles the second.

use super::{
    Format,
    block::{QK_K, WriteBlock, read_blocks, read_f16, write_searched},
    k_scales,
    parts::{Parts, k_scales_of, put_low_nibbles},
    superblock,
};
use rustai_abi::DType;

const BYTES: usize = 144;

pub(super) const FORMAT: Format =
    Format::new(DType::Q4_K, dequantize).with_quantize(write_searched::<Searched, BYTES, QK_K>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [d0, d1, m0, m1, rest @ ..] = block;
        let d = read_f16([*d0, *d1]);
        let dmin = read_f16([*m0, *m1]);
        let (packed, quants) = rest.split_first_chunk().expect("scales come before the quants");
        let (scales, mins) = k_scales::unpack(packed);
        for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let scale_d = d * f32::from(scales[group]);
            let min = dmin * f32::from(mins[group]);
            let shift = group % 2 * 4;
            for (value, q) in values.iter_mut().zip(&quants[group / 2 * 32..][..32]) {
                *value = scale_d * f32::from(q >> shift & 0x0f) - min;
            }
        }
    });
}

struct Searched;

impl WriteBlock<BYTES, QK_K> for Searched {
    #[inline(always)]
    fn write(values: &[f32; QK_K], importance: Option<&[f32; QK_K]>, block: &mut [u8; BYTES]) {
        let mut parts = Parts::ZERO;
        superblock::affine::<32>(values, importance, 15.0, 63.0, &mut parts);
        assemble(&parts, block);
    }
}

/// Writes a block.
#[inline(always)]
fn assemble(parts: &Parts, block: &mut [u8; BYTES]) {
    let [d0, d1, m0, m1, rest @ ..] = block;
    ([*d0, *d1], [*m0, *m1]) = (parts.d, parts.dmin);
    let (packed, quants) = rest.split_at_mut(12);
    packed.copy_from_slice(&k_scales_of(parts));
    put_low_nibbles(&parts.codes, quants);
}
