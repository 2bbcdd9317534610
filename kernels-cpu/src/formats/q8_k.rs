//! Q8_K: 256 signed bytes, one `f32` scale and the sums of 16 groups. `value = d * q`.
//!
//! Bytes: `d` (f32), the 256 quants in order, then for each group of 16 the sum of its quants (i16). ggml uses it for
//! activations that meet k-quants; files hold it rarely.

use super::{
    Format,
    block::{QK_K, largest_magnitude, read_blocks, write_blocks},
};
use rustai_abi::DType;

const BYTES: usize = 292;

pub(super) const FORMAT: Format = Format::new(DType::Q8_K, dequantize).with_quantize(quantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [d0, d1, d2, d3, quants @ ..] = block;
        let d = f32::from_le_bytes([*d0, *d1, *d2, *d3]);
        for (value, q) in values.iter_mut().zip(quants) {
            *value = d * f32::from(*q as i8);
        }
    });
}

/// The value of largest magnitude becomes -127, so `d` has the opposite sign; others round to nearest, ties to even.
/// A block of zeros has `d = 0`, and so has a block so small (below about 4e-37) that the factor on it would overflow.
/// A block with a NaN or infinity has a NaN scale and zero quants.
fn quantize(values: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    write_blocks(values, out, |values: &[f32; QK_K], block: &mut [u8; BYTES]| {
        let largest = largest_magnitude(values);
        let (d, factor) = match -127.0 / largest {
            _ if !largest.is_finite() => (f32::NAN, f32::NAN),
            factor if factor.is_infinite() => (0.0, 0.0),
            factor => (1.0 / factor, factor),
        };
        let [d0, d1, d2, d3, rest @ ..] = block;
        [*d0, *d1, *d2, *d3] = d.to_le_bytes();
        let (quants, sums) = rest.split_at_mut(QK_K);
        for (q, value) in quants.iter_mut().zip(values) {
            // The cast takes NaN to 0.
            *q = (value * factor).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
        for (sum, group) in sums.as_chunks_mut().0.iter_mut().zip(quants.as_chunks::<16>().0) {
            *sum = group.iter().map(|q| i16::from(*q as i8)).sum::<i16>().to_le_bytes();
        }
    });
}
