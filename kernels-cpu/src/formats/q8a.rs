//! The runtime's activation format: 8-bit blocks with what integer dot products need.
//!
//! Weights stay quantized while they are multiplied, so activations are quantized too, a row at a time. In memory only;
//! numbers have the machine's byte order. A row of `width` values (a multiple of 32) is
//!
//! | offset | content |
//! |---|---|
//! | 0 | `width` quants (i8 in `-127..=127`) |
//! | [`scales_offset`] | `width / 32` scales (f32), one per block of 32 values |
//! | [`sums_offset`] | `width / 32` [`Sums`]: two for a block's first 16 quants, two for its last 16 |
//! | … | zeros up to [`row_bytes`], a multiple of 64 |
//!
//! so that rows that start at a multiple of 64 bytes stay aligned. `value = scale * quant`. The sums serve formats whose
//! quants have an offset or a minimum: `Σ (q - c) · a = Σ q · a - c · Σ a`. They are kept per 16 values because Q6_K has
//! a scale for so many.
//!
//! # The rule for a block
//! With `amax` the largest magnitude of the block's values:
//! - `amax` infinite or a value NaN: the scale is NaN and all quants are 0, so that every result made from the block is
//!   NaN;
//! - `amax < 2^-119`: the scale is 0 and all quants are 0. No block then has a denormal scale, or a factor that overflows;
//! - otherwise `scale = amax / 127`, and each quant is `value * (127 / amax)` rounded to nearest, ties to even. Both
//!   quotients are rounded to `f32` once, as `vdivps` does, and rounding is that of `vcvtps2dq`, so vector code can write
//!   the very same bytes. The largest magnitude itself always gives 127.

/// Values in a block.
pub const BLOCK: usize = 32;

/// Alignment of a row and of its length, in bytes.
pub const ALIGN: usize = 64;

/// Blocks whose largest magnitude is smaller count as zero: 2^-119.
pub const ZERO_BELOW: f32 = f32::from_bits((127 - 119) << 23);

/// Sums of a block's first and last 16 quants, each in two parts: of the first two columns of every four, and of the last
/// two. Kernels that add up products in 16 bits keep these two parts side by side.
pub type Sums = [[i16; 2]; 2];

/// Where the scales of a row of `width` values begin, in bytes.
pub const fn scales_offset(width: usize) -> usize {
    width
}

/// Where the sums of a row of `width` values begin, in bytes.
pub const fn sums_offset(width: usize) -> usize {
    width + width / BLOCK * size_of::<f32>()
}

/// Bytes from one row of `width` values to the next.
pub const fn row_bytes(width: usize) -> usize {
    (sums_offset(width) + width / BLOCK * size_of::<Sums>()).next_multiple_of(ALIGN)
}

/// Rows narrower than this are kept in two planes where products are sensitive to rounding.
///
/// Rounding errors of a dot product average out over its terms, so narrow models are the noisiest, and they are cheap.
/// Which products are sensitive is for who makes the program to say.
const TWO_PLANES_BELOW: usize = 1024;

/// Rows that a vector of `width` values takes where products are sensitive to rounding: one, or two for a narrow one. The
/// second row is the quantized remainder that the first leaves, so that the sum of the two stands for the values with about
/// 15 bits.
pub const fn planes(width: usize) -> usize {
    if width < TWO_PLANES_BELOW { 2 } else { 1 }
}

/// Subtracts from `values` what `row` stands for. A scale that is NaN makes all values of its block NaN.
///
/// # Panics
/// If `row` is too short for `values`.
pub fn subtract(values: &mut [f32], row: &[u8]) {
    let row = Row::new(row, values.len());
    for (b, values) in values.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let scale = row.scale(b);
        for (value, quant) in values.iter_mut().zip(row.quants(b)) {
            *value -= scale * f32::from(quant);
        }
    }
}

/// Quantizes one row; see the module for the rule.
///
/// # Panics
/// If `values` is no whole number of blocks, or `row` is not [`row_bytes`] long.
pub fn quantize_row(values: &[f32], row: &mut [u8]) {
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "a row of {} values is no whole number of blocks", values.len());
    assert_eq!(row.len(), row_bytes(values.len()), "wrong length for a row of {} values", values.len());
    let (quants, rest) = row.split_at_mut(scales_offset(values.len()));
    let (scales, rest) = rest.split_at_mut(blocks.len() * size_of::<f32>());
    let (sums, padding) = rest.split_at_mut(blocks.len() * size_of::<Sums>());
    padding.fill(0);
    let quants = quants.as_chunks_mut::<BLOCK>().0;
    let scales = scales.as_chunks_mut::<4>().0;
    let sums = sums.as_chunks_mut::<2>().0.as_chunks_mut::<4>().0;
    for (((values, quants), scale), sums) in blocks.iter().zip(quants).zip(scales).zip(sums) {
        let (d, block) = quantize_block(values);
        *scale = d.to_ne_bytes();
        for (byte, quant) in quants.iter_mut().zip(block) {
            *byte = quant as u8;
        }
        for (sum, part) in sums.iter_mut().zip(sums_of(&block).as_flattened()) {
            *sum = part.to_ne_bytes();
        }
    }
}

/// Scale and quants of one block.
fn quantize_block(values: &[f32; BLOCK]) -> (f32, [i8; BLOCK]) {
    // Without their signs, bit patterns order like the numbers, with infinity and then NaN on top.
    let top = values.iter().fold(0, |top, value| value.abs().to_bits().max(top));
    let amax = f32::from_bits(top);
    if !amax.is_finite() {
        return (f32::NAN, [0; BLOCK]);
    }
    if amax < ZERO_BELOW {
        return (0.0, [0; BLOCK]);
    }
    let factor = 127.0 / amax;
    (amax / 127.0, values.map(|value| round_small(value * factor)))
}

/// The sums of a block.
fn sums_of(block: &[i8; BLOCK]) -> Sums {
    let mut sums = Sums::default();
    for (i, quant) in block.iter().enumerate() {
        sums[i / 16][i % 4 / 2] += i16::from(*quant);
    }
    sums
}

/// Rounds a magnitude of at most 127.4 to nearest, ties to even. Next to 1.5 * 2^23 the last bit of an `f32` is worth one, so
/// the addition rounds; the low byte of the pattern is the result. Unlike `round_ties_even` this needs no call on
/// processors without SSE4.1.
fn round_small(value: f32) -> i8 {
    (value + 12_582_912.0).to_bits() as i8
}

/// A quantized row, read only.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    quants: &'a [[u8; BLOCK]],
    scales: &'a [[u8; 4]],
    sums: &'a [[[u8; 2]; 4]],
}

impl<'a> Row<'a> {
    /// The row of `width` values that `bytes` begins with.
    ///
    /// # Panics
    /// If `width` is no whole number of blocks or `bytes` is too short.
    pub fn new(bytes: &'a [u8], width: usize) -> Self {
        assert!(width.is_multiple_of(BLOCK), "a row of {width} values is no whole number of blocks");
        assert!(bytes.len() >= row_bytes(width), "{} bytes are too few for a row of {width} values", bytes.len());
        let blocks = width / BLOCK;
        let sums = bytes[sums_offset(width)..].as_chunks().0.as_chunks().0;
        Self {
            quants: bytes[..width].as_chunks().0,
            scales: &bytes[scales_offset(width)..].as_chunks().0[..blocks],
            sums: &sums[..blocks],
        }
    }

    /// Blocks in the row.
    pub fn blocks(&self) -> usize {
        self.scales.len()
    }

    /// The quants of a block.
    pub fn quants(&self, block: usize) -> [i8; BLOCK] {
        self.quants[block].map(|byte| byte as i8)
    }

    /// The scale of a block.
    pub fn scale(&self, block: usize) -> f32 {
        f32::from_ne_bytes(self.scales[block])
    }

    /// The sums of a block's first 16 and last 16 quants.
    pub fn sums(&self, block: usize) -> [i32; 2] {
        let [a, b, c, d] = self.sums[block].map(|part| i32::from(i16::from_ne_bytes(part)));
        [a + b, c + d]
    }

    /// The values that the row stands for, `scale * quant`, rounded to `f32`.
    ///
    /// # Panics
    /// If `out` is not as wide as the row.
    pub fn dequantize(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.blocks() * BLOCK, "wrong width");
        for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let scale = self.scale(block);
            *out = self.quants(block).map(|quant| scale * f32::from(quant));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0xaa; row_bytes(values.len())];
        quantize_row(values, &mut bytes);
        bytes
    }

    #[test]
    fn the_layout_is_fixed() {
        // 576 = 18 blocks: 576 + 18 * 12 = 792, rounded up to 832.
        assert_eq!((scales_offset(576), sums_offset(576), row_bytes(576)), (576, 648, 832));
        assert_eq!((row_bytes(0), row_bytes(32), row_bytes(1536)), (0, 64, 2112));
        let mut values = vec![0.0; 64];
        values[32] = -254.0;
        values[33] = 254.0;
        values[50] = 2.0;
        let bytes = row(&values);
        assert_eq!(bytes[32..34], [129, 127]);
        assert_eq!(bytes[50], 1);
        assert_eq!(bytes[64..68], 0f32.to_ne_bytes());
        assert_eq!(bytes[68..72], 2f32.to_ne_bytes());
        assert_eq!(bytes[72..80], [0; 8]);
        assert_eq!(bytes[80..84], [0; 4]);
        assert_eq!([&bytes[84..86], &bytes[86..88]], [0i16.to_ne_bytes(), 1i16.to_ne_bytes()]);
        assert_eq!(bytes[88..], [0; 40], "padding is zero");
    }

    #[test]
    fn ties_go_to_even_and_accessors_agree() {
        let mut values = [0.0; 32];
        values[..8].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]);
        values[16] = 126.5;
        let bytes = row(&values);
        let row = Row::new(&bytes, 32);
        assert_eq!(row.quants(0)[..8], [127, 0, 2, 2, 0, -2, -2, -127]);
        assert_eq!((row.scale(0), row.sums(0), row.blocks()), (1.0, [0, 126], 1));
        let mut back = [1.0; 32];
        row.dequantize(&mut back);
        assert_eq!(back[..4], [127.0, 0.0, 2.0, 2.0]);
    }

    #[test]
    fn rounding_equals_the_library_everywhere() {
        let mut state = 1u32;
        for _ in 0..200_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state as f32 / u32::MAX as f32 - 0.5) * 254.8;
            assert_eq!(i32::from(round_small(value)), value.round_ties_even() as i32, "{value}");
        }
        for half in -254..=254i16 {
            let value = f32::from(half) / 2.0;
            assert_eq!(i32::from(round_small(value)), value.round_ties_even() as i32, "{value}");
        }
    }

    #[test]
    fn extremes_have_a_defined_result() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 64];
            values[40] = bad;
            let bytes = row(&values);
            let row = Row::new(&bytes, 64);
            assert!(row.scale(1).is_nan());
            assert_eq!((row.quants(1), row.sums(1)), ([0; 32], [0, 0]));
            assert_eq!(row.quants(0), [127; 32], "the other block is not touched");
        }
        for tiny in [0.0, -0.0, 1e-45, ZERO_BELOW.next_down(), -ZERO_BELOW.next_down()] {
            let bytes = row(&[tiny; 32]);
            let row = Row::new(&bytes, 32);
            assert_eq!((row.scale(0).to_bits(), row.quants(0)), (0, [0; 32]));
        }
        for extreme in [ZERO_BELOW, f32::MAX] {
            let bytes = row(&[-extreme; 32]);
            let row = Row::new(&bytes, 32);
            assert!(row.scale(0).is_normal());
            assert_eq!((row.quants(0), row.sums(0)), ([-127; 32], [-2032, -2032]));
        }
    }

    #[test]
    fn the_largest_magnitude_always_gives_127() {
        let mut amax = ZERO_BELOW;
        while amax.is_finite() {
            assert_eq!(quantize_block(&[-amax; BLOCK]).1, [-127; BLOCK], "{amax:e}");
            amax *= 1.000_37;
        }
    }
}
