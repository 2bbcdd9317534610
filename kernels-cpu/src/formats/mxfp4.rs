//! MXFP4: 32 four-bit floats with one shared power of two (OCP Microscaling Formats 1.0). `value = d * VALUES[q]`.
//!
//! Bytes: the exponent (E8M0), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.
//!
//! Exponent 255 is NaN in the OCP specification; ggml and the `gguf` package read it as the next power of two, 2^128, half
//! of which is finite. So do we: no byte pattern of this type gives a NaN, and the largest values overflow to infinity.

use super::{
    Format,
    block::{WriteBlock, read_blocks, write_searched},
    iq4_nl::lookup,
    parts::put_nibbles,
    search::{sum, unit_of},
    superblock::shares,
};
use rustai_abi::DType;

const LEN: usize = 32;
const BYTES: usize = 17;

/// The sixteen E2M1 floats, doubled to be whole numbers (`kvalues` of `MXFP4` in the `gguf` package's `quants.py`).
pub(crate) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) const FORMAT: Format =
    Format::new(DType::MXFP4, dequantize).with_quantize(write_searched::<Writer, BYTES, LEN>);

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

struct Writer;

impl WriteBlock<BYTES, LEN> for Writer {
    /// The specification's exponent puts the largest magnitude at 4 to 8 times the power of two, so that what lies above 6
    /// is cut off; the next exponent cuts nothing off but has coarser steps. The one with the smaller error is taken.
    ///
    /// A block with a value that is not finite reads back as infinities.
    #[inline(always)]
    fn write(values: &[f32; LEN], importance: Option<&[f32; LEN]>, block: &mut [u8; BYTES]) {
        let [exponent, quants @ ..] = block;
        let Some(unit) = unit_of(values) else {
            (*exponent, *quants) = (255, [0x77; LEN / 2]);
            return;
        };
        let x = values.map(|value| if unit > 0.0 { value / unit } else { 0.0 });
        let w = importance.and_then(shares).unwrap_or([1.0; LEN]);
        // The unit is the power of two below the largest magnitude: `4 * 2^(smallest - 127)`.
        let smallest = ((unit.to_bits() >> 23) as u8).saturating_sub(2);
        let mut least = f32::INFINITY;
        for candidate in [smallest, smallest + 1] {
            let scale = half_scale(candidate) / unit;
            let inverse = if unit > 0.0 { 1.0 / scale } else { 0.0 };
            let codes = x.map(|x| nearest(x * inverse));
            let error = |i: usize| (x[i] - scale * f32::from(VALUES[usize::from(codes[i])])).powi(2);
            let error = if unit > 0.0 { sum::<LEN>(|i| w[i] * error(i)) } else { 0.0 };
            if error < least {
                (least, *exponent) = (error, candidate);
                put_nibbles(&codes, quants);
            }
        }
    }
}

/// The code whose entry of [`VALUES`] is nearest; of two that are equally near, the one further from zero.
#[inline(always)]
fn nearest(t: f32) -> u8 {
    let borders = VALUES[..8].windows(2).map(|pair| (f32::from(pair[0]) + f32::from(pair[1])) * 0.5);
    let code: u8 = borders.map(|border| u8::from(t.abs() >= border)).sum();
    if t < 0.0 { code | 8 } else { code }
}
