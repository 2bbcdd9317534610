//! Top-p, or nucleus sampling (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1): keeps the
//! best tokens until their probability reaches `p`.
use super::candidates::{Candidate, best_first, highest, keep_mass, total, weight};

/// Keeps the nucleus, best first; never less than the best token.
pub(super) fn top_p(candidates: &mut Vec<Candidate>, p: f32) {
    let highest = highest(candidates);
    let sum = total(candidates, highest);
    keep_mass(candidates, best_first, |candidate| weight(candidate.logit, highest), f64::from(p) * sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_run_that_reaches_p_is_kept() {
        let logits = [0.2f32, 0.5, 0.3].map(f32::ln);
        let all: Vec<Candidate> = (0u32..).zip(logits).map(|(token, logit)| Candidate::new(token, logit)).collect();
        let kept = |p| {
            let mut candidates = all.clone();
            top_p(&mut candidates, p);
            candidates.iter().map(|candidate| candidate.token).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.0), [1]);
        assert_eq!(kept(0.49), [1]);
        assert_eq!(kept(0.6), [1, 2]);
        assert_eq!(kept(0.9), [1, 2, 0]);
    }
}
