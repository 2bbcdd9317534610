//! Q4_1: 32 values of 4 bits above a minimum. `value = d * q + m`.
//!
//! Bytes: `d` (f16), `m` (f16), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.

use super::{
    Format,
    block::{inverse_scale, read_blocks, read_f16, write_blocks, write_f16},
    parts::{Parts, fixed, nibbles},
};
use rustai_abi::DType;

const LEN: usize = 32;
const BYTES: usize = 20;

pub(super) const FORMAT: Format = Format::new(DType::Q4_1, dequantize).with_quantize(quantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, m0, m1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        let m = read_f16([m0, m1]);
        let (low, high) = values.split_at_mut(LEN / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
            *low = d * f32::from(q & 0x0f) + m;
            *high = d * f32::from(q >> 4) + m;
        }
    });
}

/// `m` is the smallest value and `d` a fifteenth of the range; quants are `(x - m) / d + 0.5` cut to whole numbers in
/// `0..=15`. Bytes equal those of the `gguf` package, except that a range too small for an invertible `f32` scale
/// (below about 4e-38) gets zero quants, where `gguf` overflows.
fn quantize(values: &[f32], out: &mut [u8]) {
    write_blocks(values, out, |values: &[f32; LEN], block: &mut [u8; BYTES]| {
        let (mut min, mut max) = (values[0], values[0]);
        for &value in values {
            // Once a bound is NaN its comparison is never true again.
            if value < min || value.is_nan() {
                min = value;
            }
            if value > max || value.is_nan() {
                max = value;
            }
        }
        let d = (max - min) / 15.0;
        let inverse = inverse_scale(d);
        // The cast saturates and takes NaN to 0.
        let quant = |value: f32| (((value - min) * inverse + 0.5) as u8).min(15);
        let [d0, d1, m0, m1, quants @ ..] = block;
        [*d0, *d1] = write_f16(d);
        [*m0, *m1] = write_f16(min);
        let (low, high) = values.split_at(LEN / 2);
        for ((q, low), high) in quants.iter_mut().zip(low).zip(high) {
            *q = quant(*low) | quant(*high) << 4;
        }
    });
}

/// Takes a block apart; codes are the quants.
#[inline(always)]
pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let &[d0, d1, m0, m1, ref quants @ ..] = fixed::<BYTES>(block);
    (parts.d, parts.dmin) = ([d0, d1], [m0, m1]);
    nibbles(quants, &mut parts.codes);
}
