//! SiLU and the gated unit made from it.

/// `x * sigmoid(x)` (Hendrycks and Gimpel, 2016, arXiv 1606.08415), rounded once.
pub fn silu(x: f32) -> f32 {
    silu_exact(x) as f32
}

/// `out[i] = silu(gate[i]) * up[i]` (SwiGLU, Shazeer 2020, arXiv 2002.05202). The product is rounded, its factors are not.
///
/// # Panics
/// If the slices differ in length.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "gate, up and result differ in length");
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = (silu_exact(*gate) * f64::from(*up)) as f32;
    }
}

/// For `-inf` this is the limit, -0, and not the NaN that `inf / inf` would give.
fn silu_exact(x: f32) -> f64 {
    if x == f32::NEG_INFINITY {
        return -0.0;
    }
    let x = f64::from(x);
    x / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        assert_eq!(silu(0.0), 0.0);
        // sigmoid(ln 3) = 3 / 4
        assert!((silu(3f32.ln()) - 0.75 * 3f32.ln()).abs() < 1e-7);
        assert!((silu(-(3f32.ln())) + 0.25 * 3f32.ln()).abs() < 1e-7);
        assert_eq!(silu(100.0), 100.0);
        assert_eq!(silu(f32::INFINITY), f32::INFINITY);
        assert_eq!((silu(f32::NEG_INFINITY), silu(f32::MIN)), (0.0, 0.0));
        assert!(silu(f32::NAN).is_nan());
        // silu(x) - silu(-x) = x
        for x in [0.1, 1.0, 5.5, 30.0] {
            assert!((silu(x) - silu(-x) - x).abs() <= x * f32::EPSILON);
        }
    }

    #[test]
    fn the_gate_multiplies() {
        let mut out = [f32::NAN; 3];
        swiglu(&[0.0, 100.0, -200.0], &[5.0, -2.0, 1.0], &mut out);
        assert_eq!(out, [0.0, -200.0, (-200.0 * (-200f64).exp()) as f32]);
    }
}
