//! Q4_0: 32 values of 4 bits around a middle of 8, one scale. `value = d * (q - 8)`.
//!
//! Bytes: `d` (f16), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.

use super::{
    Format,
    block::{inverse_scale, largest_magnitude, read_blocks, read_f16, write_blocks, write_f16},
    parts::{Parts, fixed, nibbles},
};
use rustai_abi::DType;

const LEN: usize = 32;
const BYTES: usize = 18;

pub(super) const FORMAT: Format = Format::new(DType::Q4_0, dequantize).with_quantize(quantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        let (low, high) = values.split_at_mut(LEN / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
            *low = d * f32::from((q & 0x0f) as i8 - 8);
            *high = d * f32::from((q >> 4) as i8 - 8);
        }
    });
}

/// The scale maps the value of largest magnitude to quant 0, that is -8: the sign of `d` is the opposite of its sign.
/// Quants are `x / d + 8.5` cut to whole numbers in `0..=15`. Bytes equal those of the `gguf` package, except that a
/// block too small for an invertible `f32` scale (below about 2e-38) gets middle quants there, where `gguf` overflows.
fn quantize(values: &[f32], out: &mut [u8]) {
    write_blocks(values, out, |values: &[f32; LEN], block: &mut [u8; BYTES]| {
        let d = largest_magnitude(values) / -8.0;
        let inverse = inverse_scale(d);
        // The cast saturates and takes NaN to 0.
        let quant = |value: f32| ((value * inverse + 8.5) as u8).min(15);
        let [d0, d1, quants @ ..] = block;
        [*d0, *d1] = write_f16(d);
        let (low, high) = values.split_at(LEN / 2);
        for ((q, low), high) in quants.iter_mut().zip(low).zip(high) {
            *q = quant(*low) | quant(*high) << 4;
        }
    });
}

/// Takes a block apart; codes are the quants.
#[inline(always)]
pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let &[d0, d1, ref quants @ ..] = fixed::<BYTES>(block);
    parts.d = [d0, d1];
    nibbles(quants, &mut parts.codes);
}
