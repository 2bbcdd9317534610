//! Root-mean-square normalization.

/// `out[i] = x[i] / sqrt(mean(x²) + eps) * weight[i]`, for one row (Zhang and Sennrich, 2019, arXiv 1910.07467).
///
/// # Panics
/// If the slices differ in length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "row, weight and result differ in length");
    let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = (f64::from(*x) * scale * f64::from(*weight)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        let mut out = [0.0; 2];
        // sqrt((9 + 16) / 2) = 5 / sqrt 2
        rms_norm(&[3.0, 4.0], &[1.0, -2.0], 0.0, &mut out);
        let root = 2f64.sqrt();
        assert_eq!(out, [(0.6 * root) as f32, (-1.6 * root) as f32]);
        // Mean square 1 and eps 3 make a divisor of 2.
        rms_norm(&[1.0, -1.0], &[1.0; 2], 3.0, &mut out);
        assert_eq!(out, [0.5, -0.5]);
        rms_norm(&[0.0; 2], &[1.0; 2], 1e-5, &mut out);
        assert_eq!(out, [0.0; 2]);
        // Squares that overflow or underflow in f32 do not matter.
        rms_norm(&[1e30, -1e30], &[1.0; 2], 1e-5, &mut out);
        assert_eq!(out, [1.0, -1.0]);
        rms_norm(&[1e-30, -1e-30], &[1.0; 2], 0.0, &mut out);
        assert_eq!(out, [1.0, -1.0]);
        rms_norm(&[], &[], 1e-5, &mut []);
    }
}
