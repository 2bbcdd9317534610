//! IQ4_NL: 32 values of 4 bits that index a table of 16 unevenly spaced steps, one scale. `value = d * VALUES[q]`.
//!
//! Bytes: `d` (f16), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.

use super::{
    Format,
    block::{read_blocks, read_f16},
    parts::{Parts, fixed, nibbles},
};
use rustai_abi::DType;

const LEN: usize = 32;
const BYTES: usize = 18;

/// The steps, denser around zero (`kvalues` of `IQ4_NL` in the `gguf` package's `quants.py`). IQ4_XS has the same.
pub(crate) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) const FORMAT: Format = Format::new(DType::IQ4_NL, dequantize);

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

/// Takes a block apart; codes are indices into [`VALUES`].
#[inline(always)]
pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let &[d0, d1, ref quants @ ..] = fixed::<BYTES>(block);
    parts.d = [d0, d1];
    nibbles(quants, &mut parts.codes);
}
