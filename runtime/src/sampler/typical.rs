//! Locally typical sampling (Meister et al. 2022, "Locally Typical Sampling"): keeps the tokens whose information is closest
//! to the entropy of the distribution, until their probability reaches `p`.
use super::candidates::{Candidate, highest, keep_mass, total, weight};
use std::cmp::Ordering;

/// Keeps the typical tokens, the most typical first.
pub(super) fn typical(candidates: &mut Vec<Candidate>, p: f32) {
    let highest = highest(candidates);
    if highest == f32::NEG_INFINITY {
        return;
    }
    let sum = total(candidates, highest);
    // -ln p = ln(sum) - (logit - highest)
    let information = |logit: f32| sum.ln() - f64::from(logit - highest);
    let entropy: f64 = candidates
        .iter()
        .filter(|candidate| candidate.logit > f32::NEG_INFINITY)
        .map(|candidate| weight(candidate.logit, highest) / sum * information(candidate.logit))
        .sum();
    let surprise = |candidate: &Candidate| (information(candidate.logit) - entropy).abs();
    let order = |a: &Candidate, b: &Candidate| -> Ordering {
        surprise(a).total_cmp(&surprise(b)).then(super::candidates::best_first(a, b))
    };
    keep_mass(candidates, order, |candidate| weight(candidate.logit, highest), f64::from(p) * sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_typical_are_kept() {
        // Probabilities 0.5, 0.3, 0.2: entropy 1.030; surprises |0.693 - 1.030| = 0.336, |1.204 - 1.030| = 0.174, 0.580.
        let logits = [0.5f32, 0.3, 0.2].map(f32::ln);
        let all: Vec<Candidate> = (0u32..).zip(logits).map(|(token, logit)| Candidate::new(token, logit)).collect();
        let kept = |p| {
            let mut candidates = all.clone();
            typical(&mut candidates, p);
            candidates.iter().map(|candidate| candidate.token).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.2), [1]);
        assert_eq!(kept(0.5), [1, 0]);
        assert_eq!(kept(0.9), [1, 0, 2]);
    }

    #[test]
    fn impossible_tokens_do_not_count() {
        let mut candidates =
            vec![Candidate::new(0, f32::NEG_INFINITY), Candidate::new(1, 0.0), Candidate::new(2, f32::NAN)];
        typical(&mut candidates, 0.9);
        assert_eq!(candidates, [Candidate::new(1, 0.0)]);
        let mut candidates = vec![Candidate::new(0, f32::NAN)];
        typical(&mut candidates, 0.9);
        assert_eq!(candidates.len(), 1);
    }
}
