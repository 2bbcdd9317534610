//! What the scalar code of all block formats shares.

use half::f16;

/// Values in a block of the k-quants.
pub(super) const QK_K: usize = 256;

/// Calls `read` for each block of `bytes` and the values that belong to it.
///
/// Fixed array sizes let the compiler drop the bounds checks inside `read`.
///
/// # Panics
/// If `bytes` and `out` do not hold the same whole number of blocks.
pub(super) fn read_blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, rest_bytes) = bytes.as_chunks::<BYTES>();
    let (values, rest_values) = out.as_chunks_mut::<LEN>();
    assert!(rest_bytes.is_empty() && rest_values.is_empty(), "a slice ends inside a block");
    assert_eq!(blocks.len(), values.len(), "bytes and values are for different numbers of blocks");
    for (block, values) in blocks.iter().zip(values) {
        read(block, values);
    }
}

/// Calls `write` for each block of `values` and the bytes that belong to it.
///
/// # Panics
/// As [`read_blocks`].
pub(super) fn write_blocks<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    out: &mut [u8],
    write: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    let (values, rest_values) = values.as_chunks::<LEN>();
    let (blocks, rest_bytes) = out.as_chunks_mut::<BYTES>();
    assert!(rest_bytes.is_empty() && rest_values.is_empty(), "a slice ends inside a block");
    assert_eq!(blocks.len(), values.len(), "bytes and values are for different numbers of blocks");
    for (values, block) in values.iter().zip(blocks) {
        write(values, block);
    }
}

/// A type whose scales are searched for, block by block.
pub(super) trait WriteBlock<const BYTES: usize, const LEN: usize> {
    /// Writes one block. Implementations are always inlined, so that they are compiled for wider vectors too.
    fn write(values: &[f32; LEN], importance: Option<&[f32; LEN]>, block: &mut [u8; BYTES]);
}

/// Writes blocks with the widest vectors that the processor has. Vectors change no result: nothing is contracted or
/// reassociated.
///
/// # Panics
/// As [`read_blocks`]; `importance` must have a number per value.
pub(super) fn write_searched<W: WriteBlock<BYTES, LEN>, const BYTES: usize, const LEN: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide<W: WriteBlock<BYTES, LEN>, const BYTES: usize, const LEN: usize>(
            values: &[f32],
            importance: Option<&[f32]>,
            out: &mut [u8],
        ) {
            write_searched_inline::<W, BYTES, LEN>(values, importance, out);
        }
        // SAFETY: the processor has the feature; nothing else is asked for.
        unsafe { wide::<W, BYTES, LEN>(values, importance, out) };
        return;
    }
    write_searched_inline::<W, BYTES, LEN>(values, importance, out);
}

#[inline(always)]
fn write_searched_inline<W: WriteBlock<BYTES, LEN>, const BYTES: usize, const LEN: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    assert!(importance.is_none_or(|importance| importance.len() == values.len()), "an importance is missing");
    let importance = importance.map(|importance| importance.as_chunks::<LEN>().0);
    let (values, rest_values) = values.as_chunks::<LEN>();
    let (blocks, rest_bytes) = out.as_chunks_mut::<BYTES>();
    assert!(rest_bytes.is_empty() && rest_values.is_empty(), "a slice ends inside a block");
    assert_eq!(blocks.len(), values.len(), "bytes and values are for different numbers of blocks");
    for (i, (values, block)) in values.iter().zip(blocks).enumerate() {
        W::write(values, importance.map(|importance| &importance[i]), block);
    }
}

/// Reads a half-precision number; exact.
pub(super) fn read_f16(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// Rounds to half precision, to nearest, ties to even. Too large a magnitude becomes infinite.
pub(super) fn write_f16(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

/// The value with the largest magnitude, the first of equals; NaN if any value is.
#[inline(always)]
pub(super) fn largest_magnitude(values: &[f32]) -> f32 {
    let largest = largest_magnitude_bits(values);
    values.iter().copied().find(|value| value.to_bits() & MAGNITUDE == largest).unwrap_or(0.0)
}

/// The bits of the largest magnitude: magnitudes order as their bits do, NaN last.
#[inline(always)]
pub(super) fn largest_magnitude_bits(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, value| (value.to_bits() & MAGNITUDE).max(largest))
}

/// All bits but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// `1 / scale`, or 0 where that is of no use: the scale is zero, or so small that its inverse overflows. A block with
/// such a scale reads back as zeros anyway, because half precision cannot hold it.
#[inline(always)]
pub(super) fn inverse_scale(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_infinite() { 0.0 } else { inverse }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_magnitudes_wins_and_nan_stays() {
        assert_eq!(largest_magnitude(&[1.0, -3.0, 3.0, 2.0]), -3.0);
        assert!(largest_magnitude(&[1.0, f32::NAN, 5.0]).is_nan());
        assert_eq!(largest_magnitude(&[]), 0.0);
    }

    #[test]
    fn useless_inverses_are_zero() {
        assert_eq!(inverse_scale(0.0), 0.0);
        assert_eq!(inverse_scale(-0.0), 0.0);
        assert_eq!(inverse_scale(1e-40), 0.0);
        assert_eq!(inverse_scale(-4.0), -0.25);
        assert_eq!(inverse_scale(f32::INFINITY), 0.0);
        assert!(inverse_scale(f32::NAN).is_nan());
    }

    #[test]
    #[should_panic(expected = "different numbers of blocks")]
    fn a_wrong_length_is_refused() {
        read_blocks::<2, 1>(&[0; 4], &mut [0.0; 3], |_, _| {});
    }
}
