//! NVFP4: 64 four-bit floats in 4 groups of 16, each with an 8-bit float as its scale. `value = d * VALUES[q]`.
//!
//! Bytes: four scales (E4M3 without a sign), and for each group 8 bytes whose low nibbles are its values 0-7 and whose high
//! nibbles are values 8-15.
//!
//! Where E4M3 has NaN (0x7f), ggml and the `gguf` package read zero, and the sign bit counts for nothing except that 0xff
//! is the number 480. So it is here: every byte pattern gives finite values.

use super::{Format, block::read_blocks, iq4_nl::lookup, mxfp4::VALUES};
use rustai_abi::DType;

const LEN: usize = 64;
const BYTES: usize = 36;

pub(super) const FORMAT: Format = Format::new(DType::NVFP4, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[s0, s1, s2, s3, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let groups = quants.chunks_exact(8).zip(values.chunks_exact_mut(16));
        for (scale, (quants, values)) in [s0, s1, s2, s3].into_iter().zip(groups) {
            lookup(half_scale(scale), &VALUES, quants, values);
        }
    });
}

/// Half of what an E4M3 float (four bits of exponent with a bias of 7, three of mantissa) stands for: it goes with the
/// doubled [`VALUES`].
fn half_scale(bits: u8) -> f32 {
    let (exponent, mantissa) = (bits >> 3 & 0x0f, f32::from(bits & 7));
    match (bits, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        // 2^(exponent - 8), made of its bits.
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 127 - 8) << 23),
    }
}
