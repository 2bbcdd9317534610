//! The tokens still in play, and the two things every stage does with them: order them and weigh them.
use std::cmp::Ordering;

/// A token and its logit, which is never NaN and never plus infinity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) token: u32,
}

impl Candidate {
    /// Makes a logit comparable: NaN becomes minus infinity, plus infinity the largest number.
    pub(super) fn new(token: u32, logit: f32) -> Self {
        let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
        Self { logit, token }
    }
}

/// Best first: higher logits, then lower ids. A total order, since ids differ.
pub(super) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The highest logit.
pub(super) fn highest(candidates: &[Candidate]) -> f32 {
    candidates.iter().fold(f32::NEG_INFINITY, |highest, candidate| highest.max(candidate.logit))
}

/// Probability of a logit up to a factor: 1 for the highest, and 0 for minus infinity.
pub(super) fn weight(logit: f32, highest: f32) -> f64 {
    // The difference of two infinities would be NaN.
    if logit == f32::NEG_INFINITY { 0.0 } else { f64::from(logit - highest).exp() }
}

/// Sum of all weights.
pub(super) fn total(candidates: &[Candidate], highest: f32) -> f64 {
    candidates.iter().map(|candidate| weight(candidate.logit, highest)).sum()
}

/// Keeps the shortest run, in `order`, whose `mass` reaches `wanted`; at least one, and all if it never does. The run is left in
/// order.
///
/// Only as much as is kept gets sorted: a nucleus is a few tokens of a vocabulary of a quarter million.
pub(super) fn keep_mass(
    candidates: &mut Vec<Candidate>,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    mass: impl Fn(&Candidate) -> f64,
    wanted: f64,
) {
    let (mut sorted, mut kept, mut reached) = (0, 0, 0.0);
    let mut step = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let part = step.min(rest.len());
        if part < rest.len() {
            rest.select_nth_unstable_by(part - 1, &order);
        }
        rest[..part].sort_unstable_by(&order);
        sorted += part;
        step *= 4;
        while kept < sorted {
            reached += mass(&candidates[kept]);
            kept += 1;
            if reached >= wanted {
                candidates.truncate(kept);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_logits_become_comparable() {
        assert_eq!(Candidate::new(0, f32::NAN).logit, f32::NEG_INFINITY);
        assert_eq!(Candidate::new(0, f32::INFINITY).logit, f32::MAX);
        assert_eq!(weight(f32::NEG_INFINITY, f32::NEG_INFINITY), 0.0);
        assert_eq!(weight(f32::MAX, f32::MAX), 1.0);
    }

    #[test]
    fn keeping_mass_equals_sorting_everything() {
        let all: Vec<Candidate> = (0..1000u32)
            .map(|token| Candidate::new(token, (token.wrapping_mul(2_654_435_761) >> 22) as f32 / 64.0))
            .collect();
        let mut sorted = all.clone();
        sorted.sort_by(best_first);
        let highest = highest(&all);
        let sum = total(&all, highest);
        for wanted in [0.0, 0.1, 0.5, 0.9, 0.999, 1.0, 2.0] {
            let mut kept = all.clone();
            keep_mass(&mut kept, best_first, |candidate| weight(candidate.logit, highest), wanted * sum);
            assert_eq!(kept, sorted[..kept.len()]);
            let mass = |run: &[Candidate]| total(run, highest);
            assert!(mass(&kept) >= wanted * sum * (1.0 - 1e-12) || kept.len() == all.len(), "{wanted}");
            assert!(kept.len() == 1 || mass(&kept[..kept.len() - 1]) < wanted * sum, "{wanted}");
        }
    }
}
