//! `f32` vectors of any width, so that kernels whose shape does not depend on the width are written once.
//!
//! SAFETY of the whole file: every function needs the features of its type, as the architecture's own module says, and
//! must be inlined into a caller that has them; loads and stores need `LANES` valid elements, unaligned.

/// A vector of `LANES` values.
pub(crate) trait Simd: Copy {
    const LANES: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Rounded to nearest, ties to even.
    unsafe fn store_f16(self, to: *mut u16);
    /// Signed bytes.
    unsafe fn load_i8(from: *const i8) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// The larger; NaN if `other` is, and either if only `self` is.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; NaN if `other` is, and either if only `self` is.
    unsafe fn min(self, other: Self) -> Self;
    /// Whether any value is larger than the other vector's; a comparison with NaN is false.
    unsafe fn exceeds(self, other: Self) -> bool;
    /// Asks for the cache line at an address that will be read soon; any address will do.
    unsafe fn prefetch(at: *const u8);
    unsafe fn round(self) -> Self;
    /// `self * 2^power` for whole powers in -126 ..= 127.
    unsafe fn scale_by_power(self, power: Self) -> Self;
    unsafe fn sum(self) -> f32;
    /// The largest of the values; which, is unspecified if one is NaN.
    unsafe fn largest(self) -> f32;

    /// `e^self`, within 2 units in the last place; arguments beyond the range of normal `f32` are clamped to it, NaN gives
    /// NaN.
    ///
    /// The argument is split as `n ln 2 + r` with |r| <= (ln 2) / 2 (Cody and Waite 1980), and `e^r` is its Taylor
    /// polynomial of degree 6, whose remainder is below 1.3e-7.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            // The argument is the second operand of `max`, so NaN stays.
            let x = Self::splat(88.3).min(Self::splat(-87.3).max(self));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 in two parts; the first has zeros at its end, so that `n` times it is exact.
            let r = n.fma(Self::splat(-0.693_359_4), x);
            let r = n.fma(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 720.0);
            for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = p.fma(r, Self::splat(coefficient));
            }
            p.scale_by_power(n)
        }
    }

    /// `self / (1 + e^-self)` (Elfwing et al., 2018, arXiv 1702.03118).
    #[inline(always)]
    unsafe fn silu(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let one = Self::splat(1.0);
            // Below, where `exp` is clamped, the quotient would grow with the argument; here it is 0 to within 1e-36.
            let x = Self::splat(-200.0).max(self);
            x.div(one.add(Self::splat(0.0).sub(x).exp()))
        }
    }
}
