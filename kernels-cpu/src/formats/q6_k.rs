//! Q6_K: 256 values of 6 bits around a middle of 32 in 16 groups of 16, each group with a signed 8-bit scale.
//! `value = (d * scale) * (q - 32)`.
//!
//! Bytes: 128 bytes with the low four bits, 64 bytes with the upper two, 16 scales (i8), `d` (f16). Each half of a block is
//! 128 values, 64 low bytes and 32 high bytes: low nibbles are its first 64 values, high nibbles the other 64; bits 0-1
//! of the high bytes belong to its first 32 values, bits 2-3 to the next, and so on.

use super::{
    Format,
    block::{QK_K, WriteBlock, read_blocks, read_f16, write_searched},
    parts::Parts,
    search::Whole,
    superblock,
};
use rustai_abi::DType;

const BYTES: usize = 210;

pub(super) const FORMAT: Format =
    Format::new(DType::Q6_K, dequantize).with_quantize(write_searched::<Searched, BYTES, QK_K>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [head @ .., d0, d1] = block;
        let d = read_f16([*d0, *d1]);
        let (low, rest) = head.split_at(128);
        let (high, scales) = rest.split_at(64);
        for (group, (values, scale)) in values.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
            let scale_d = d * f32::from(*scale as i8);
            // Values of the group are `group * 16 ..`; `run` counts runs of 32 within its half.
            let (half, run, side) = (group / 8, group % 8 / 2, group % 2);
            let low = &low[half * 64 + run % 2 * 32 + side * 16..][..16];
            let high = &high[half * 32 + side * 16..][..16];
            for ((value, low), high) in values.iter_mut().zip(low).zip(high) {
                let q = low >> (run / 2 * 4) & 0x0f | (high >> (run * 2) & 3) << 4;
                *value = scale_d * f32::from(q as i8 - 32);
            }
        }
    });
}

struct Searched;

impl WriteBlock<BYTES, QK_K> for Searched {
    #[inline(always)]
    fn write(values: &[f32; QK_K], importance: Option<&[f32; QK_K]>, block: &mut [u8; BYTES]) {
        let (levels, scales) = (Whole { lowest: -32.0, highest: 31.0 }, Whole { lowest: -128.0, highest: 127.0 });
        let mut parts = Parts::ZERO;
        superblock::symmetric::<_, 16>(values, importance, levels, scales, &mut parts);
        assemble(&parts, block);
    }
}

/// Writes a block.
#[inline(always)]
fn assemble(parts: &Parts, block: &mut [u8; BYTES]) {
    let [head @ .., d0, d1] = block;
    [*d0, *d1] = parts.d;
    let (low, rest) = head.split_at_mut(128);
    let (high, scales) = rest.split_at_mut(64);
    scales.copy_from_slice(&parts.scales);
    for (half, codes) in parts.codes.as_chunks::<128>().0.iter().enumerate() {
        let (low, high) = (&mut low[half * 64..][..64], &mut high[half * 32..][..32]);
        for (i, low) in low.iter_mut().enumerate() {
            *low = codes[i] & 0x0f | codes[i + 64] << 4;
        }
        for (i, high) in high.iter_mut().enumerate() {
            *high = (0..4).fold(0, |bits, run| bits | codes[run * 32 + i] >> 4 << (2 * run));
        }
    }
}
