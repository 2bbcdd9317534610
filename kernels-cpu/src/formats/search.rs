//! Scale searches: which scale, or scale and offset, reproduces a run of values best when they are rounded to few levels.
//!
//! All searches minimise the weighted squared error `sum w (x - d q)^2` or `sum w (x - d q - a)^2`. For given quants `q` the
//! best `d` and `a` are those of a weighted linear regression, so only the quants are searched for: a set of inverse
//! scales rounds the values in as many ways, and the one whose regression leaves the least error wins. A few rounds of
//! Lloyd's algorithm (1982: assign to the nearest level, then fit the levels) polish it. The regression's remaining error
//! is `sum w x^2` less a *gain*, which is what is compared.
//!
//! Candidates lie beside each other in the lanes of a vector, so that nothing has to be summed across lanes and the
//! compiler vectorises the loops for any instruction set. Values are expected to have a largest magnitude near 1
//! ([`unit_of`]) and weights near 1 or below. Nothing here knows the layout of a block.

use super::block::largest_magnitude_bits;

/// Inverse scales that a search for a scale alone tries.
pub(super) const SCALE_TRIES: usize = 16;

/// Pairs of inverse scale and offset that a search for a line tries.
const LINE_TRIES: usize = 32;

/// Rounds of Lloyd's algorithm after a search.
const POLISH: usize = 2;

/// Runs whose largest magnitude is below this share of their block's are zeros: no scale of the block can hold them.
const NEGLIGIBLE: f32 = 1e-12;

/// The multiples of a scale that a type can store.
pub(super) trait Levels: Copy {
    /// The level that is nearest to `t`; any for NaN.
    fn nearest(self, t: f32) -> f32;
    /// The code of the level that is nearest to `t`.
    fn code(self, t: f32) -> u8;
    /// The level on which try number `index` of [`SCALE_TRIES`] puts the value of largest magnitude.
    fn target(self, index: usize) -> f32;
}

/// Whole numbers from `lowest` to `highest`, coded from 0.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    pub(super) lowest: f32,
    pub(super) highest: f32,
}

impl Levels for Whole {
    #[inline(always)]
    fn nearest(self, t: f32) -> f32 {
        round(t.clamp(self.lowest, self.highest))
    }

    #[inline(always)]
    fn code(self, t: f32) -> u8 {
        // The cast takes NaN to 0.
        (self.nearest(t) - self.lowest) as u8
    }

    #[inline(always)]
    fn target(self, index: usize) -> f32 {
        // The outermost level, and up to one and a half less or more: the latter cuts the largest value off.
        let outermost = if self.lowest < 0.0 { self.lowest } else { self.highest };
        outermost + (index as f32 / (SCALE_TRIES - 1) as f32 * 2.0 - 1.0) * 1.5f32.min(outermost.abs() * 0.4)
    }
}

/// Rounds to a whole number, ties to even; magnitudes up to 2^22. Unlike `f32::round_ties_even` this is two additions on
/// every processor.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    const MAGIC: f32 = 1.5 * (1 << 23) as f32;
    (x + MAGIC) - MAGIC
}

/// The power of two just below the largest magnitude, by which values are divided before a search so that no square
/// overflows or vanishes. `None` if a value is NaN or infinite; `Some(0.0)` if all are zero or denormal.
#[inline(always)]
pub(super) fn unit_of(values: &[f32]) -> Option<f32> {
    const EXPONENT: u32 = 0x7f80_0000;
    let largest = largest_magnitude_bits(values);
    (largest < EXPONENT).then(|| f32::from_bits(largest & EXPONENT))
}

/// The smallest and the largest value; all are finite.
#[inline(always)]
pub(super) fn extremes<const N: usize>(values: &[f32; N]) -> (f32, f32) {
    values.iter().fold((values[0], values[0]), |(low, high), &value| {
        (if value < low { value } else { low }, if value > high { value } else { high })
    })
}

/// Sums `term` over `0..N`, in eight lanes.
#[inline(always)]
pub(super) fn sum<const N: usize>(term: impl Fn(usize) -> f32) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [0f32; LANES];
    for start in (0..N).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// `1 / scale`, or 0 where there is none.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `a / b`, or 0 if `b` is not positive.
#[inline(always)]
fn ratio(a: f32, b: f32) -> f32 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// The scale `d` that minimises `sum w (x - d q)^2`, `q` being the level nearest to `x / d`. 0 if all values are.
#[inline(always)]
pub(super) fn scale<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], levels: L) -> f32 {
    let (low, high) = extremes(x);
    let largest = if -low >= high { low } else { high };
    if largest.abs() < NEGLIGIBLE {
        return 0.0;
    }
    let per_level = 1.0 / largest;
    let inverses: [f32; SCALE_TRIES] = std::array::from_fn(|k| levels.target(k) * per_level);
    let (mut xq, mut qq) = ([0f32; SCALE_TRIES], [0f32; SCALE_TRIES]);
    for (x, w) in x.iter().zip(w) {
        for k in 0..SCALE_TRIES {
            let q = levels.nearest(x * inverses[k]);
            let wq = w * q;
            xq[k] += wq * x;
            qq[k] += wq * q;
        }
    }
    let (mut best, mut gain) = (0.0, 0.0);
    for k in 0..SCALE_TRIES {
        let d = ratio(xq[k], qq[k]);
        if d * xq[k] > gain {
            (best, gain) = (d, d * xq[k]);
        }
    }
    for _ in 0..POLISH {
        let (d, better) = fit_scale(x, w, levels, best);
        if better > gain {
            (best, gain) = (d, better);
        }
    }
    best
}

/// The best scale for the quants that `d` gives, and its gain.
#[inline(always)]
fn fit_scale<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], levels: L, d: f32) -> (f32, f32) {
    let inverse = inverse(d);
    let q: [f32; N] = std::array::from_fn(|i| levels.nearest(x[i] * inverse));
    let xq = sum::<N>(|i| w[i] * q[i] * x[i]);
    let d = ratio(xq, sum::<N>(|i| w[i] * q[i] * q[i]));
    (d, d * xq)
}

/// A line `x = scale * q + offset`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Line {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// What the regression needs of a run.
#[derive(Clone, Copy)]
struct Totals {
    w: f32,
    wx: f32,
}

impl Totals {
    /// The best line for quants with the sums `q = sum w q`, `qq = sum w q^2`, `xq = sum w x q`, and its gain.
    #[inline(always)]
    fn fit(self, q: f32, qq: f32, xq: f32, negative: bool) -> (Line, f32) {
        let determinant = self.w * qq - q * q;
        // A determinant that is rounding noise means that all quants are equal.
        let free = ratio(self.w * xq - self.wx * q, if determinant > 1e-6 * self.w * qq { determinant } else { 0.0 });
        let offset = ratio(self.wx - free * q, self.w);
        let through_zero = negative && offset > 0.0;
        let scale = if through_zero { ratio(xq, qq) } else { free };
        let offset = if through_zero { 0.0 } else { offset };
        (Line { scale, offset }, scale * xq + offset * self.wx)
    }
}

/// The line that minimises `sum w (x - d q - a)^2` for whole `q` from 0 to `top`. With `negative`, `a` is at most 0.
#[inline(always)]
pub(super) fn line<const N: usize>(x: &[f32; N], w: &[f32; N], top: f32, negative: bool) -> Line {
    let (mut low, high) = extremes(x);
    if negative && low > 0.0 {
        low = 0.0;
    }
    let range = high - low;
    if range < NEGLIGIBLE {
        // All are equal, so the offset alone holds them.
        return Line { scale: 0.0, offset: low };
    }
    let totals = Totals { w: sum::<N>(|i| w[i]), wx: sum::<N>(|i| w[i] * x[i]) };
    // Each try cuts off some of the upper end and some of the lower, or lies outside of them.
    let step = range / top;
    let (mut inverses, mut shifts) = ([0f32; LINE_TRIES], [0f32; LINE_TRIES]);
    for k in 0..LINE_TRIES {
        let (up, down) = ((k % UPPER) as f32, (k / UPPER) as f32);
        let low = low + step * (down * CUT - OUTSIDE_LOWER);
        let high = high - step * (up * CUT - OUTSIDE_UPPER);
        inverses[k] = top / (high - low);
        shifts[k] = -low * inverses[k];
    }
    let (mut sq, mut sqq, mut sxq) = ([0f32; LINE_TRIES], [0f32; LINE_TRIES], [0f32; LINE_TRIES]);
    for (x, w) in x.iter().zip(w) {
        for k in 0..LINE_TRIES {
            let q = round((x * inverses[k] + shifts[k]).clamp(0.0, top));
            let wq = w * q;
            sq[k] += wq;
            sqq[k] += wq * q;
            sxq[k] += wq * x;
        }
    }
    let (mut best, mut gain) = (Line::default(), 0.0);
    for k in 0..LINE_TRIES {
        let (line, better) = totals.fit(sq[k], sqq[k], sxq[k], negative);
        if better > gain {
            (best, gain) = (line, better);
        }
    }
    for _ in 0..POLISH {
        let inverse = inverse(best.scale);
        let q: [f32; N] = std::array::from_fn(|i| round(((x[i] - best.offset) * inverse).clamp(0.0, top)));
        let (q1, qq) = (sum::<N>(|i| w[i] * q[i]), sum::<N>(|i| w[i] * q[i] * q[i]));
        let (line, better) = totals.fit(q1, qq, sum::<N>(|i| w[i] * q[i] * x[i]), negative);
        if better > gain {
            (best, gain) = (line, better);
        }
    }
    best
}

/// Tries of the upper end for each of the lower.
const UPPER: usize = 8;
/// Distance between tries, in levels.
const CUT: f32 = 0.25;
/// The first tries lie so far outside, in levels: a whole one above, so that values which had half as many levels before
/// find them again.
const OUTSIDE_LOWER: f32 = 0.25;
/// As [`OUTSIDE_LOWER`], for the upper end.
const OUTSIDE_UPPER: f32 = 1.0;
