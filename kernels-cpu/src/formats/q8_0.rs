//! Q8_0: 32 signed bytes and one scale. `value = d * q`.
//!
//! Bytes: `d` (f16), then the 32 quants in order.

use super::{
    Format,
    block::{WriteBlock, inverse_scale, read_blocks, read_f16, write_f16, write_searched},
};
use rustai_abi::DType;

const LEN: usize = 32;
const BYTES: usize = 34;

pub(super) const FORMAT: Format =
    Format::new(DType::Q8_0, dequantize).with_quantize(write_searched::<Writer, BYTES, LEN>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        for (value, q) in values.iter_mut().zip(quants) {
            *value = d * f32::from(*q as i8);
        }
    });
}

struct Writer;

impl WriteBlock<BYTES, LEN> for Writer {
    #[inline(always)]
    fn write(values: &[f32; LEN], _importance: Option<&[f32; LEN]>, block: &mut [u8; BYTES]) {
        let (d, quants) = quantize_block(values);
        let [d0, d1, rest @ ..] = block;
        [*d0, *d1] = write_f16(d);
        *rest = quants.map(|q| q as u8);
    }
}

/// Scale, not yet rounded to half precision, and quants of a block. Inlined, so that it is compiled for its caller's
/// instruction set; the results are the same for all.
///
/// The scale is the largest magnitude over 127; quants are `x / d` rounded to nearest, ties away from zero. Bytes equal
/// those of the `gguf` package, except that a block too small for an invertible `f32` scale (below about 4e-37) gets zero
/// quants, where `gguf` overflows. A value that is not finite makes the scale infinite or NaN, and the block reads back as
/// NaN.
#[inline(always)]
pub(crate) fn quantize_block(values: &[f32; LEN]) -> (f32, [i8; LEN]) {
    // Without their sign, floats are ordered as integers are, infinity and then NaN last.
    let largest = values.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let d = f32::from_bits(largest) / 127.0;
    let inverse = inverse_scale(d);
    let mut quants = [0; LEN];
    for (q, value) in quants.iter_mut().zip(values) {
        // The cast saturates and takes NaN to 0.
        *q = (value * inverse).round() as i8;
    }
    (d, quants)
}
