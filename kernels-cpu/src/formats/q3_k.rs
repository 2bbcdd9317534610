//! Q3_K: 256 values of 3 bits around a middle of 4 in 16 groups of 16, each group with a 6-bit scale around 32.
//! `value = (d * (scale - 32)) * (q - 4)`.
//!
//! Bytes: 32 bytes of third bits, 64 bytes with the low two bits, 12 bytes of scales, `d` (f16). Low bits are stored as in
//! Q2_K; the third bits of the `i`-th 32 values are bit `i` of the first 32 bytes.

use super::{
    Format,
    block::{QK_K, WriteBlock, read_blocks, read_f16, write_searched},
    parts::{Parts, put_crumbs},
    search::Whole,
    superblock,
};
use rustai_abi::DType;

const BYTES: usize = 110;

pub(super) const FORMAT: Format =
    Format::new(DType::Q3_K, dequantize).with_quantize(write_searched::<Searched, BYTES, QK_K>);

/// The 16 scales, less their middle of 32. Bytes 0-7 hold the low four bits of scales 0-7 (low nibble) and 8-15 (high
/// nibble); byte `8 + i` holds the upper two bits of scales `i`, `i + 4`, `i + 8` and `i + 12`, lowest first.
fn unpack_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (i / 8 * 4) & 0x0f;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [head @ .., d0, d1] = block;
        let d = read_f16([*d0, *d1]);
        let (third, rest) = head.split_at(32);
        let (quants, packed) = rest.split_at(64);
        let scales = unpack_scales(packed.first_chunk().expect("12 bytes are left"));
        for (group, (values, scale)) in values.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
            let scale_d = d * f32::from(scale);
            let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
            let quants = &quants[half * 32 + side * 16..][..16];
            let third = &third[side * 16..][..16];
            for ((value, q), third) in values.iter_mut().zip(quants).zip(third) {
                let q = q >> shift & 3 | (third >> (group / 2) & 1) << 2;
                *value = scale_d * f32::from(q as i8 - 4);
            }
        }
    });
}

struct Searched;

impl WriteBlock<BYTES, QK_K> for Searched {
    #[inline(always)]
    fn write(values: &[f32; QK_K], importance: Option<&[f32; QK_K]>, block: &mut [u8; BYTES]) {
        let (levels, scales) = (Whole { lowest: -4.0, highest: 3.0 }, Whole { lowest: -32.0, highest: 31.0 });
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
    let (third, rest) = head.split_at_mut(32);
    let (quants, packed) = rest.split_at_mut(64);
    put_crumbs(&parts.codes, quants);
    for (i, third) in third.iter_mut().enumerate() {
        *third = (0..8).fold(0, |bits, run| bits | (parts.codes[run * 32 + i] >> 2 & 1) << run);
    }
    packed.copy_from_slice(&pack_scales(&parts.scales.map(|scale| scale as i8)));
}

/// The inverse of [`unpack_scales`].
fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
    let stored = scales.map(|scale| (scale + 32) as u8);
    std::array::from_fn(|i| match i {
        0..8 => stored[i] & 0x0f | stored[i + 8] << 4,
        _ => (0..4).fold(0, |bits, j| bits | stored[i - 8 + 4 * j] >> 4 << (2 * j)),
    })
}
