//! Log-probabilities from logits.

/// Natural logarithm of the softmax of `logits` at `token`; minus infinity for a token that does not exist.
///
/// Sums in `f64`, since vocabularies of a hundred thousand tokens are common.
pub(super) fn logprob(logits: &[f32], token: u32) -> f32 {
    let Some(&logit) = logits.get(token as usize) else { return f32::NEG_INFINITY };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    (f64::from(logit - max) - sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_whatever_the_offset() {
        for offset in [0.0, 1e4, -1e4] {
            let logits = [0.5, -1.0, 2.0, 0.0].map(|logit| logit + offset);
            let sum: f32 = (0..4).map(|token| logprob(&logits, token).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-3, "{sum}");
        }
        assert!((logprob(&[0.0, 0.0], 1) - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(logprob(&[0.0], 1), f32::NEG_INFINITY);
    }
}
