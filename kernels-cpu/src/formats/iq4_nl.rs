//! IQ4_NL: 32 values of 4 bits that index a table of 16 unevenly spaced steps, one scale. `value = d * VALUES[q]`.
//!
//! Bytes: `d` (f16), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.

use super::{
    Format,
    block::{WriteBlock, read_blocks, read_f16, write_f16, write_searched},
    parts::put_nibbles,
    search::{Levels, SCALE_TRIES, inverse, scale, unit_of},
    superblock::{NAN, weights},
};
use rustai_abi::DType;

const LEN: usize = 32;
const BYTES: usize = 18;

/// The steps, denser around zero (`kvalues` of `IQ4_NL` in the `gguf` package's `quants.py`). IQ4_XS has the same.
pub(crate) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) const FORMAT: Format =
    Format::new(DType::IQ4_NL, dequantize).with_quantize(write_searched::<Searched, BYTES, LEN>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        lookup(read_f16([d0, d1]), &VALUES, quants, values);
    });
}

/// Multiplies table entries by `scale`: low nibbles of `quants` choose the first half of `out`, high nibbles the second.
pub(super) fn lookup(scale: f32, table: &[i8; 16], quants: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(quants.len());
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        *low = scale * f32::from(table[usize::from(q & 0x0f)]);
        *high = scale * f32::from(table[usize::from(q >> 4)]);
    }
}

/// The steps as levels of a search.
#[derive(Clone, Copy)]
pub(super) struct Steps;

impl Levels for Steps {
    #[inline(always)]
    fn nearest(self, t: f32) -> f32 {
        // A sum over all borders instead of a lookup, so that it is done in the lanes of a vector.
        let mut level = f32::from(VALUES[0]);
        for pair in VALUES.windows(2) {
            let (below, above) = (f32::from(pair[0]), f32::from(pair[1]));
            level += if t > (below + above) * 0.5 { above - below } else { 0.0 };
        }
        level
    }

    #[inline(always)]
    fn code(self, t: f32) -> u8 {
        VALUES.windows(2).map(|pair| u8::from(t > (f32::from(pair[0]) + f32::from(pair[1])) * 0.5)).sum()
    }

    #[inline(always)]
    fn target(self, index: usize) -> f32 {
        // Both ends, because the table has no symmetry; from a sixth less than the end to a sixth more.
        let (end, step) = (VALUES[if index.is_multiple_of(2) { 0 } else { 15 }], (index / 2) as f32);
        f32::from(end) * (5.0 / 6.0 + step / (SCALE_TRIES / 2 - 1) as f32 / 3.0)
    }
}

struct Searched;

impl WriteBlock<BYTES, LEN> for Searched {
    #[inline(always)]
    fn write(values: &[f32; LEN], importance: Option<&[f32; LEN]>, block: &mut [u8; BYTES]) {
        let [d0, d1, quants @ ..] = block;
        let Some(unit) = unit_of(values) else {
            ([*d0, *d1], *quants) = (NAN, [0; LEN / 2]);
            return;
        };
        if unit == 0.0 {
            *block = [0; BYTES];
            return;
        }
        let x = values.map(|value| value / unit);
        [*d0, *d1] = write_f16(scale(&x, &weights(&x, importance), Steps) * unit);
        let inverse = inverse(read_f16([*d0, *d1]) / unit);
        put_nibbles(&x.map(|x| Steps.code(x * inverse)), quants);
    }
}
