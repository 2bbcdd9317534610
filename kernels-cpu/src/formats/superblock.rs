//! Quantizing 256 values whose groups have small whole scales under one common scale: the k-quants and IQ4_XS.
//!
//! Each group is searched for its own scale ([`search`](super::search)); then the groups' scales are themselves rounded to
//! multiples of a common one, the quants are chosen anew for what the groups got, and the common scale is fitted once more
//! to all 256 values. Every rounding is thus answered by the choices after it.
//!
//! The result are [`Parts`]; this module knows no layout.

use super::{
    block::{QK_K, read_f16, write_f16},
    parts::Parts,
    search::{self, Levels, Whole, inverse, round, sum, unit_of},
};

/// Rounds of fitting the common scales and choosing the quants.
const ROUNDS: usize = 2;

/// Groups in a block, at most.
const GROUPS: usize = 16;

/// Quarters of a NaN, for blocks that hold a value that is not finite.
pub(super) const NAN: [u8; 2] = [0x00, 0x7e];

/// How much the error of each value counts: its importance (the mean square of the activations that it meets), more for
/// values that are large in their block. Weights are at most about 1.
///
/// Without importance all activations are taken as equal.
#[inline(always)]
pub(super) fn weights<const N: usize>(x: &[f32; N], importance: Option<&[f32; N]>) -> [f32; N] {
    let mean = sum::<N>(|i| x[i] * x[i]) / N as f32;
    let own: [f32; N] = std::array::from_fn(|i| (mean + x[i] * x[i]).sqrt());
    match importance.and_then(shares) {
        Some(shares) => std::array::from_fn(|i| shares[i] * own[i]),
        None => own,
    }
}

/// Importance as shares of the largest; `None` if that is zero or not finite.
#[inline(always)]
pub(super) fn shares<const N: usize>(importance: &[f32; N]) -> Option<[f32; N]> {
    let most = importance.iter().fold(0f32, |most, value| if *value > most { *value } else { most });
    (most > 0.0 && most < f32::INFINITY).then(|| importance.map(|value| value / most))
}

/// The common scale of a block as it will be read back: rounded to half precision.
#[derive(Clone, Copy)]
struct Common {
    bits: [u8; 2],
    /// In units of the normalised values.
    value: f32,
}

impl Common {
    #[inline(always)]
    fn new(value: f32, unit: f32) -> Self {
        let bits = write_f16(value * unit);
        Self { bits, value: read_f16(bits) / unit }
    }
}

/// Quantizes to `levels` in groups of `GROUP` values whose scales are `scales`. Codes go to `parts.codes`, scales to
/// `parts.scales` as their bits, and the common scale to `parts.d`.
#[inline(always)]
pub(super) fn symmetric<L: Levels, const GROUP: usize>(
    values: &[f32; QK_K],
    importance: Option<&[f32; QK_K]>,
    levels: L,
    scales: Whole,
    parts: &mut Parts,
) {
    *parts = Parts::ZERO;
    let Some(unit) = unit_of(values) else {
        parts.d = NAN;
        return;
    };
    // A scale of 0 makes all values 0, whatever the codes.
    if unit == 0.0 {
        return;
    }
    let x = values.map(|value| value / unit);
    let w = weights(&x, importance);
    let (xs, ws) = (x.as_chunks::<GROUP>().0, w.as_chunks::<GROUP>().0);
    let (mut found, mut counts) = ([0f32; GROUPS], [0f32; GROUPS]);
    for (g, (x, w)) in xs.iter().zip(ws).enumerate() {
        found[g] = search::scale(x, w, levels);
        // How much the block's error grows with the error of this scale.
        let inverse = inverse(found[g]);
        let q: [f32; GROUP] = std::array::from_fn(|i| levels.nearest(x[i] * inverse));
        counts[g] = sum::<GROUP>(|i| w[i] * q[i] * q[i]);
    }
    let mut common = Common::new(search::scale(&found, &counts, scales), unit);
    let by_common = inverse(common.value);
    let multiples = found.map(|scale| scales.nearest(scale * by_common));
    for _ in 0..ROUNDS {
        // The best common scale for the quants that this one gives.
        let (mut xq, mut qq) = (0.0, 0.0);
        for (g, (x, w)) in xs.iter().zip(ws).enumerate() {
            let inverse = inverse(common.value * multiples[g]);
            let q: [f32; GROUP] = std::array::from_fn(|i| levels.nearest(x[i] * inverse) * multiples[g]);
            xq += sum::<GROUP>(|i| w[i] * q[i] * x[i]);
            qq += sum::<GROUP>(|i| w[i] * q[i] * q[i]);
        }
        if qq > 0.0 {
            common = Common::new(xq / qq, unit);
        }
    }
    parts.d = common.bits;
    for (g, (x, codes)) in xs.iter().zip(parts.codes.as_chunks_mut::<GROUP>().0).enumerate() {
        let inverse = inverse(common.value * multiples[g]);
        *codes = std::array::from_fn(|i| levels.code(x[i] * inverse));
        parts.scales[g] = multiples[g] as i8 as u8;
    }
}

/// Quantizes to whole numbers from 0 to `top` in groups of `GROUP` values, each group with a scale and a minimum from 0 to
/// `most`. Codes go to `parts.codes`, scales and minima to `parts.scales` and `parts.mins`, the common scales to
/// `parts.d` and `parts.dmin`.
#[inline(always)]
pub(super) fn affine<const GROUP: usize>(
    values: &[f32; QK_K],
    importance: Option<&[f32; QK_K]>,
    top: f32,
    most: f32,
    parts: &mut Parts,
) {
    *parts = Parts::ZERO;
    let Some(unit) = unit_of(values) else {
        (parts.d, parts.dmin) = (NAN, NAN);
        return;
    };
    if unit == 0.0 {
        return;
    }
    let x = values.map(|value| value / unit);
    let w = weights(&x, importance);
    let (xs, ws) = (x.as_chunks::<GROUP>().0, w.as_chunks::<GROUP>().0);
    let multiples_of = Whole { lowest: 0.0, highest: most };

    let (mut found, mut counts) = ([0f32; GROUPS], [0f32; GROUPS]);
    let mut offsets = [0f32; GROUPS];
    for (g, (x, w)) in xs.iter().zip(ws).enumerate() {
        let line = search::line(x, w, top, true);
        let q = quants(x, line.scale, line.offset, top);
        (found[g], offsets[g]) = (line.scale, line.offset);
        counts[g] = sum::<GROUP>(|i| w[i] * q[i] * q[i]);
    }
    let mut d = Common::new(search::scale(&found, &counts, multiples_of), unit);
    let by_d = inverse(d.value);
    let scales = found.map(|scale| multiples_of.nearest(scale * by_d));

    // With the scales settled, the minima have another optimum than before.
    let (mut minima, mut counts) = ([0f32; GROUPS], [0f32; GROUPS]);
    for (g, (x, w)) in xs.iter().zip(ws).enumerate() {
        let scale = d.value * scales[g];
        let q = quants(x, scale, offsets[g], top);
        counts[g] = sum::<GROUP>(|i| w[i]);
        let below = sum::<GROUP>(|i| w[i] * (scale * q[i] - x[i]));
        minima[g] = if below > 0.0 && counts[g] > 0.0 { below / counts[g] } else { 0.0 };
    }
    let mut dmin = Common::new(search::scale(&minima, &counts, multiples_of), unit);
    let by_dmin = inverse(dmin.value);
    let mins = minima.map(|min| multiples_of.nearest(min * by_dmin));

    for _ in 0..ROUNDS {
        // Regression of x on the scaled quants `s` and the scaled minima `m`: x = d s - dmin m.
        let (mut ss, mut sm, mut mm, mut xs_sum, mut xm) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (g, (x, w)) in xs.iter().zip(ws).enumerate() {
            let q = quants(x, d.value * scales[g], -dmin.value * mins[g], top);
            let (s, m) = (scales[g], mins[g]);
            let wq = sum::<GROUP>(|i| w[i] * q[i]);
            let total = sum::<GROUP>(|i| w[i]);
            ss += s * s * sum::<GROUP>(|i| w[i] * q[i] * q[i]);
            sm += s * m * wq;
            mm += m * m * total;
            xs_sum += s * sum::<GROUP>(|i| w[i] * q[i] * x[i]);
            xm += m * sum::<GROUP>(|i| w[i] * x[i]);
        }
        let determinant = ss * mm - sm * sm;
        if determinant > 1e-6 * ss * mm {
            let (scale, min) = ((xs_sum * mm - xm * sm) / determinant, (xs_sum * sm - xm * ss) / determinant);
            if scale > 0.0 && min >= 0.0 {
                (d, dmin) = (Common::new(scale, unit), Common::new(min, unit));
            }
        } else if mm == 0.0 && ss > 0.0 {
            d = Common::new(xs_sum / ss, unit);
        }
    }
    (parts.d, parts.dmin) = (d.bits, dmin.bits);
    for (g, (x, codes)) in xs.iter().zip(parts.codes.as_chunks_mut::<GROUP>().0).enumerate() {
        let q = quants(x, d.value * scales[g], -dmin.value * mins[g], top);
        *codes = q.map(|q| q as u8);
        (parts.scales[g], parts.mins[g]) = (scales[g] as u8, mins[g] as u8);
    }
}

/// The nearest whole numbers from 0 to `top` on a line.
#[inline(always)]
fn quants<const N: usize>(x: &[f32; N], scale: f32, offset: f32, top: f32) -> [f32; N] {
    let inverse = inverse(scale);
    std::array::from_fn(|i| round(((x[i] - offset) * inverse).clamp(0.0, top)))
}
