//! Rotary position embedding.

use crate::RopeStyle;

/// Rotates the head `head` in place to position `position` (Su et al., 2021, arXiv 2104.09864).
///
/// Pair `i` turns by `position * inv_freq[i]` radians and is multiplied by `magnitude`. With `n = 2 * inv_freq.len()`, the
/// pairs are `(2i, 2i + 1)` or `(i, i + n / 2)`, as `style` says; values from `n` on are kept as they are. Angles, sines and
/// cosines are `f64`.
///
/// # Panics
/// If the head is shorter than `n`.
pub fn rope(head: &mut [f32], style: RopeStyle, inv_freq: &[f32], magnitude: f32, position: u32) {
    let half = inv_freq.len();
    let rotated = &mut head[..2 * half];
    for (i, inv_freq) in inv_freq.iter().enumerate() {
        let (a, b) = match style {
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            RopeStyle::Neox => (i, i + half),
        };
        let (sin, cos) = (f64::from(position) * f64::from(*inv_freq)).sin_cos();
        let (x, y) = (f64::from(rotated[a]), f64::from(rotated[b]));
        let magnitude = f64::from(magnitude);
        rotated[a] = ((x * cos - y * sin) * magnitude) as f32;
        rotated[b] = ((x * sin + y * cos) * magnitude) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f32::consts::{FRAC_1_SQRT_2, FRAC_PI_2, FRAC_PI_4};

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
    }

    #[test]
    fn a_quarter_and_an_eighth_turn() {
        let inv_freq = [FRAC_PI_2, FRAC_PI_4];
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0];
        rope(&mut head, RopeStyle::Interleaved, &inv_freq, 1.0, 1);
        // (1, 2) by 90 degrees is (-2, 1); (3, 4) by 45 degrees is (-1, 7) / sqrt 2; the fifth value is not part of a pair.
        close(&head, &[-2.0, 1.0, -FRAC_1_SQRT_2, 7.0 * FRAC_1_SQRT_2, 5.0]);

        let mut head = [1.0, 3.0, 2.0, 4.0, 5.0];
        rope(&mut head, RopeStyle::Neox, &inv_freq, 10.0, 1);
        close(&head, &[-20.0, -10.0 * FRAC_1_SQRT_2, 10.0, 70.0 * FRAC_1_SQRT_2, 5.0]);
    }

    #[test]
    fn position_zero_changes_nothing() {
        let mut head = [1.5, -2.5, 1e30, 0.0];
        for style in [RopeStyle::Interleaved, RopeStyle::Neox] {
            rope(&mut head, style, &[1.0, 0.1], 1.0, 0);
            assert_eq!(head, [1.5, -2.5, 1e30, 0.0]);
        }
    }

    /// What attention needs: products of a rotated query and key depend on the distance only.
    #[test]
    fn products_depend_on_the_distance() {
        let inv_freq: Vec<f32> = (0..8).map(|i| 10_000f32.powf(-f32::from(i as u8) / 8.0)).collect();
        let q: Vec<f32> = (0..16).map(|i| (i as f32 * 0.7).sin()).collect();
        let k: Vec<f32> = (0..16).map(|i| (i as f32 * 1.3).cos()).collect();
        let product = |at: u32| {
            let (mut q, mut k) = (q.clone(), k.clone());
            rope(&mut q, RopeStyle::Neox, &inv_freq, 1.0, at + 5);
            rope(&mut k, RopeStyle::Neox, &inv_freq, 1.0, at);
            q.iter().zip(&k).map(|(q, k)| q * k).sum::<f32>()
        };
        let near = product(0);
        for at in [1, 100, 8191, 131_072] {
            assert!((product(at) - near).abs() < 1e-5, "{at}");
        }
    }
}
