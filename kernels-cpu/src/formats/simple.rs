//! Quantizing runs of 32 values with one scale, or a scale and a minimum: Q4_0 and Q5_0, Q4_1 and Q5_1.
//!
//! Without importance the scale comes straight from the extremes, and quants equal those of the `gguf` package bit for bit,
//! except that a scale too small for an invertible `f32` (below about 2e-38) gives middle or zero quants, where `gguf`
//! overflows. With importance the scale is [searched](super::search) for.

use super::{
    block::{inverse_scale, largest_magnitude, read_f16, write_f16},
    search::{self, Levels, Whole, unit_of},
    superblock::weights,
};

/// Values in a run.
pub(super) const LEN: usize = 32;

/// The scale, as f16, and codes from 0 to `2 * half - 1` around a middle of `half`: `value = d * (code - half)`.
#[inline(always)]
pub(super) fn around_zero(values: &[f32; LEN], importance: Option<&[f32; LEN]>, half: u8) -> ([u8; 2], [u8; LEN]) {
    let middle = f32::from(half);
    if let (Some(importance), Some(unit @ f32::MIN_POSITIVE..)) = (importance, unit_of(values)) {
        let levels = Whole { lowest: -middle, highest: middle - 1.0 };
        let x = values.map(|value| value / unit);
        let d = write_f16(search::scale(&x, &weights(&x, Some(importance)), levels) * unit);
        let inverse = search::inverse(read_f16(d) / unit);
        return (d, x.map(|x| levels.code(x * inverse)));
    }
    // The value of largest magnitude becomes code 0, so the sign of `d` is the opposite of its sign.
    let d = largest_magnitude(values) / -middle;
    let inverse = inverse_scale(d);
    // The cast saturates and takes NaN to 0.
    (write_f16(d), values.map(|value| ((value * inverse + middle + 0.5) as u8).min(2 * half - 1)))
}

/// The scale and the minimum, as f16, and codes from 0 to `top`: `value = d * code + m`.
#[inline(always)]
pub(super) fn above_minimum(
    values: &[f32; LEN],
    importance: Option<&[f32; LEN]>,
    top: u8,
) -> ([u8; 2], [u8; 2], [u8; LEN]) {
    let levels = Whole { lowest: 0.0, highest: f32::from(top) };
    if let (Some(importance), Some(unit @ f32::MIN_POSITIVE..)) = (importance, unit_of(values)) {
        let x = values.map(|value| value / unit);
        let line = search::line(&x, &weights(&x, Some(importance)), levels.highest, false);
        let (d, m) = (write_f16(line.scale * unit), write_f16(line.offset * unit));
        let (inverse, offset) = (search::inverse(read_f16(d) / unit), read_f16(m) / unit);
        return (d, m, x.map(|x| levels.code((x - offset) * inverse)));
    }
    let (min, max) = match unit_of(values) {
        Some(_) => search::extremes(values),
        None => (f32::NAN, f32::NAN),
    };
    let d = (max - min) / levels.highest;
    let inverse = inverse_scale(d);
    // The cast saturates and takes NaN to 0.
    (write_f16(d), write_f16(min), values.map(|value| (((value - min) * inverse + 0.5) as u8).min(top)))
}
