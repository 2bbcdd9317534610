//! Min-p (Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs"): keeps the tokens that
//! are at least `p` times as probable as the best one.
use super::candidates::{Candidate, highest};

/// Drops improbable tokens; keeps the order.
pub(super) fn min_p(candidates: &mut Vec<Candidate>, p: f32) {
    // p(token) >= p * p(best) in logarithms; the common denominator cancels out.
    let bar = highest(candidates) + p.ln();
    candidates.retain(|candidate| candidate.logit >= bar);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_far_less_probable_than_the_best_is_dropped() {
        let logits = [0.3f32, 0.6, 0.1].map(f32::ln);
        let all: Vec<Candidate> = (0u32..).zip(logits).map(|(token, logit)| Candidate::new(token, logit)).collect();
        let kept = |p| {
            let mut candidates = all.clone();
            min_p(&mut candidates, p);
            candidates.iter().map(|candidate| candidate.token).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.1), [0, 1, 2]);
        assert_eq!(kept(0.2), [0, 1]);
        assert_eq!(kept(1.0), [1]);
    }

    #[test]
    fn nothing_usable_stays_nothing_usable() {
        let mut candidates = vec![Candidate::new(0, f32::NAN)];
        min_p(&mut candidates, 0.1);
        assert_eq!(candidates.len(), 1);
    }
}
