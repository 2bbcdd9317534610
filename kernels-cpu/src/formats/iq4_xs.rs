//! IQ4_XS: 256 values in 8 groups of 32, each value 4 bits that index the table of IQ4_NL, each group with a 6-bit scale.
//! `value = (d * (scale - 32)) * VALUES[q]`.
//!
//! Bytes: `d` (f16), 16 bits with the upper two bits of the eight scales (group 0 lowest), 4 bytes with their lower nibbles
//! (even groups low), and for each group 16 bytes whose low nibbles are its values 0-15 and whose high nibbles are 16-31.

use super::{
    Format,
    block::{QK_K, WriteBlock, read_blocks, read_f16, write_searched},
    iq4_nl::{Steps, VALUES, lookup},
    parts::{Parts, put_nibbles},
    search::Whole,
    superblock,
};
use rustai_abi::DType;

const BYTES: usize = 136;

pub(super) const FORMAT: Format =
    Format::new(DType::IQ4_XS, dequantize).with_quantize(write_searched::<Searched, BYTES, QK_K>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let &[d0, d1, h0, h1, l0, l1, l2, l3, ref quants @ ..] = block;
        let d = read_f16([d0, d1]);
        let scales = scales([h0, h1], [l0, l1, l2, l3]);
        for ((scale, quants), values) in scales.iter().zip(quants.chunks_exact(16)).zip(values.chunks_exact_mut(32)) {
            lookup(d * f32::from(*scale), &VALUES, quants, values);
        }
    });
}

/// The scales of the eight groups, -32 to 31, from their upper bits and their lower nibbles.
fn scales(high: [u8; 2], low: [u8; 4]) -> [i8; 8] {
    let high = u16::from_le_bytes(high);
    std::array::from_fn(|group| {
        let low = low[group / 2] >> (group % 2 * 4) & 0x0f;
        let high = (high >> (2 * group) & 3) as u8;
        (low | high << 4) as i8 - 32
    })
}

struct Searched;

impl WriteBlock<BYTES, QK_K> for Searched {
    #[inline(always)]
    fn write(values: &[f32; QK_K], importance: Option<&[f32; QK_K]>, block: &mut [u8; BYTES]) {
        let mut parts = Parts::ZERO;
        superblock::symmetric::<_, 32>(values, importance, Steps, Whole { lowest: -32.0, highest: 31.0 }, &mut parts);
        assemble(&parts, block);
    }
}

/// Writes a block.
#[inline(always)]
fn assemble(parts: &Parts, block: &mut [u8; BYTES]) {
    let [d0, d1, rest @ ..] = block;
    [*d0, *d1] = parts.d;
    let (scales, quants) = rest.split_at_mut(6);
    let stored = parts.scales.map(|scale| (scale as i8 + 32) as u8);
    let high = (0..8).fold(0u16, |bits, group| bits | u16::from(stored[group] >> 4) << (2 * group));
    scales[..2].copy_from_slice(&high.to_le_bytes());
    for (i, low) in scales[2..].iter_mut().enumerate() {
        *low = stored[2 * i] & 0x0f | stored[2 * i + 1] << 4;
    }
    for (quants, codes) in quants.as_chunks_mut::<16>().0.iter_mut().zip(parts.codes.as_chunks::<32>().0) {
        put_nibbles(codes, quants);
    }
}
