//! Softmax.

/// `out[i] = exp(x[i] - max) / Σ exp(x[j] - max)`, for one row.
///
/// Entries of `-inf` get 0. A row of nothing but `-inf`, or one with NaN or `+inf` in it, has no softmax and gives NaN.
///
/// # Panics
/// If the slices differ in length.
pub fn softmax(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "row and result differ in length");
    let max = x.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
    let term = |x: f32| (f64::from(x) - f64::from(max)).exp();
    let sum: f64 = x.iter().map(|x| term(*x)).sum();
    for (out, x) in out.iter_mut().zip(x) {
        *out = (term(*x) / sum) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(x: [f32; N]) -> [f32; N] {
        let mut out = [0.5; N];
        softmax(&x, &mut out);
        out
    }

    #[test]
    fn closed_forms() {
        assert_eq!(of([7.0; 4]), [0.25; 4]);
        assert_eq!(of([]), []);
        assert_eq!(of([-1e30]), [1.0]);
        // exp(ln 3) : exp(0) is 3 : 1.
        let [a, b] = of([3f32.ln(), 0.0]);
        assert!((a - 0.75).abs() < 1e-7 && (b - 0.25).abs() < 1e-7);
        // Large scores neither overflow nor lose the distance.
        assert_eq!(of([3e38, 3e38, f32::NEG_INFINITY, -3e38]), [0.5, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn rows_without_a_softmax_give_nan() {
        assert!(of([f32::NEG_INFINITY; 2]).iter().all(|x| x.is_nan()));
        assert!(of([1.0, f32::NAN]).iter().all(|x| x.is_nan()));
        assert!(of([f32::INFINITY, f32::INFINITY]).iter().all(|x| x.is_nan()));
    }
}
