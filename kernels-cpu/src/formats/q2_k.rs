//! Q2_K: 256 values of 2 bits in 16 groups of 16, each group with a 4-bit scale and a 4-bit minimum.
//! `value = (d * scale) * q - dmin * min`.
//!
//! Bytes: 16 bytes of scale (low nibble) and minimum (high nibble), 64 bytes of quants, `d` (f16), `dmin` (f16). Each half
//! of the quants (32 bytes) holds 128 values: bits 0-1 of its bytes are the first 32, bits 2-3 the next, and so on.

use super::{
    Format,
    block::{QK_K, WriteBlock, read_blocks, read_f16, write_searched},
    parts::{Parts, put_crumbs},
    superblock,
};
use rustai_abi::DType;

const BYTES: usize = 84;

pub(super) const FORMAT: Format =
    Format::new(DType::Q2_K, dequantize).with_quantize(write_searched::<Searched, BYTES, QK_K>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [head @ .., d0, d1, m0, m1] = block;
        let d = read_f16([*d0, *d1]);
        let dmin = read_f16([*m0, *m1]);
        let (scales, quants) = head.split_at(16);
        for (group, (values, scale)) in values.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
            let scale_d = d * f32::from(scale & 0x0f);
            let min = dmin * f32::from(scale >> 4);
            let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
            for (value, q) in values.iter_mut().zip(&quants[half * 32 + side * 16..][..16]) {
                *value = scale_d * f32::from(q >> shift & 3) - min;
            }
        }
    });
}

struct Searched;

impl WriteBlock<BYTES, QK_K> for Searched {
    #[inline(always)]
    fn write(values: &[f32; QK_K], importance: Option<&[f32; QK_K]>, block: &mut [u8; BYTES]) {
        let mut parts = Parts::ZERO;
        superblock::affine::<16>(values, importance, 3.0, 15.0, &mut parts);
        assemble(&parts, block);
    }
}

/// Writes a block.
#[inline(always)]
fn assemble(parts: &Parts, block: &mut [u8; BYTES]) {
    let [head @ .., d0, d1, m0, m1] = block;
    ([*d0, *d1], [*m0, *m1]) = (parts.d, parts.dmin);
    let (scales, quants) = head.split_at_mut(16);
    for ((both, scale), min) in scales.iter_mut().zip(&parts.scales).zip(&parts.mins) {
        *both = scale | min << 4;
    }
    put_crumbs(&parts.codes, quants);
}
