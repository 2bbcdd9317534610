//! Q5_K: 256 values of 5 bits in 8 groups of 32, each group with a 6-bit scale and a 6-bit minimum.
//! `value = (d * scale) * q - dmin * min`.
//!
//! Bytes: `d` (f16), `dmin` (f16), 12 bytes of scales and minima (see `k_scales`), 32 bytes of fifth bits, 128 bytes with the
//! low four bits. Low bits are stored as in Q4_K; the fifth bits of group `i` are bit `i` of the 32 bytes.

use super::{
    Format,
    block::{QK_K, WriteBlock, read_blocks, read_f16, write_searched},
    k_scales,
    parts::{Parts, k_scales_of, put_low_nibbles},
    superblock,
};
use rustai_abi::DType;

const BYTES: usize = 176;

pub(super) const FORMAT: Format =
    Format::new(DType::Q5_K, dequantize).with_quantize(write_searched::<Searched, BYTES, QK_K>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [d0, d1, m0, m1, rest @ ..] = block;
        let d = read_f16([*d0, *d1]);
        let dmin = read_f16([*m0, *m1]);
        let (packed, rest) = rest.split_first_chunk().expect("scales come before the quants");
        let (scales, mins) = k_scales::unpack(packed);
        let (fifth, quants) = rest.split_at(32);
        for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let scale_d = d * f32::from(scales[group]);
            let min = dmin * f32::from(mins[group]);
            let shift = group % 2 * 4;
            for ((value, q), fifth) in values.iter_mut().zip(&quants[group / 2 * 32..][..32]).zip(fifth) {
                let q = q >> shift & 0x0f | (fifth >> group & 1) << 4;
                *value = scale_d * f32::from(q) - min;
            }
        }
    });
}

struct Searched;

impl WriteBlock<BYTES, QK_K> for Searched {
    #[inline(always)]
    fn write(values: &[f32; QK_K], importance: Option<&[f32; QK_K]>, block: &mut [u8; BYTES]) {
        let mut parts = Parts::ZERO;
        superblock::affine::<32>(values, importance, 31.0, 63.0, &mut parts);
        assemble(&parts, block);
    }
}

/// Writes a block.
#[inline(always)]
fn assemble(parts: &Parts, block: &mut [u8; BYTES]) {
    let [d0, d1, m0, m1, rest @ ..] = block;
    ([*d0, *d1], [*m0, *m1]) = (parts.d, parts.dmin);
    let (packed, rest) = rest.split_at_mut(12);
    packed.copy_from_slice(&k_scales_of(parts));
    let (fifth, quants) = rest.split_at_mut(32);
    put_low_nibbles(&parts.codes, quants);
    for (i, fifth) in fifth.iter_mut().enumerate() {
        *fifth = (0..8).fold(0, |bits, group| bits | (parts.codes[group * 32 + i] >> 4 & 1) << group);
    }
}
