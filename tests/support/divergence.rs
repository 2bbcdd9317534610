//! How far two sets of logits are apart.

/// KL(p || q) of the distributions that two sets of logits stand for, in nats.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    log_softmax(p).iter().zip(log_softmax(q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Squared L2 norms of `q - p` and of `p`, each with its mean taken away, since no distribution depends on it. The root of
/// their quotient is the relative error of logits.
pub fn squares(p: &[f32], q: &[f32]) -> (f64, f64) {
    let n = p.len() as f64;
    let mean = |sum: f64| sum / n;
    let of_p = mean(p.iter().map(|&x| f64::from(x)).sum());
    let of_error = mean(p.iter().zip(q).map(|(&p, &q)| f64::from(q) - f64::from(p)).sum());
    p.iter().zip(q).fold((0.0, 0.0), |(error, norm), (&p, &q)| {
        let e = f64::from(q) - f64::from(p) - of_error;
        (error + e * e, norm + (f64::from(p) - of_p).powi(2))
    })
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - largest - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_two_coins() {
        // p = (1/4, 3/4), q = (1/2, 1/2), and a constant that changes nothing.
        let expected = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        assert!((kl(&[0.0, 3f32.ln()], &[7.0, 7.0]) - expected).abs() < 1e-7);
        assert!(kl(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]).abs() < 1e-12);
    }

    #[test]
    fn errors_are_relative_to_the_spread_and_a_constant_is_none() {
        let (error, norm) = squares(&[1.0, 3.0], &[6.0, 8.0]);
        assert!(error < 1e-12 && (norm - 2.0).abs() < 1e-12);
        let (error, norm) = squares(&[1.0, 3.0], &[1.0, 5.0]);
        assert!((error - 2.0).abs() < 1e-12 && (norm - 2.0).abs() < 1e-12);
    }
}
