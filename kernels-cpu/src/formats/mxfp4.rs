//! MXFP4: 32 four-bit floats with one shared power of two (OCP Microscaling Formats 1.0). `value = d * VALUES[q]`.
//!
//! Bytes: the exponent (E8M0), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.
//!
//! Exponent 255 is NaN in the OCP specification; ggml and the `gguf` package read it as the next power of two, 2^128, half
//! of which is finite. So do we: no byte pattern of this type gives a NaN, and the largest values overflow to infinity.

use super::{
    Format,
    block::read_blocks,
    iq4_nl::lookup,
    parts::{Parts, fixed, nibbles},
};
use rustai_abi::DType;

const LEN: usize = 32;
const BYTES: usize = 17;

/// The sixteen E2M1 floats, doubled to be whole numbers (`kvalues` of `MXFP4` in the `gguf` package's `quants.py`).
pub(crate) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) const FORMAT: Format = Format::new(DType::MXFP4, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[exponent, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        lookup(half_scale(exponent), &VALUES, quants, values);
    });
}

/// Half the power of two that an E8M0 exponent stands for, `2^(exponent - 128)`: it goes with the doubled [`VALUES`]. The
/// two smallest are denormal.
pub(crate) fn half_scale(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 0x0020_0000,
        1 => 0x0040_0000,
        _ => (u32::from(exponent) - 1) << 23,
    })
}

/// Takes a block apart; codes are indices into [`VALUES`], and the exponent is the only scale.
#[inline(always)]
pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let &[exponent, ref quants @ ..] = fixed::<BYTES>(block);
    parts.scales[0] = exponent;
    nibbles(quants, &mut parts.codes);
}
