//! Temperature and the draw itself: probability proportional to `exp(logit / temperature)` (Ackley, Hinton and Sejnowski 1985,
//! "A Learning Algorithm for Boltzmann Machines").
use super::candidates::{Candidate, highest};

/// The token at `fraction` (0 to below 1) of the probability mass. `None` if no token is possible.
pub(super) fn draw(candidates: &[Candidate], temperature: f32, fraction: f64) -> Option<u32> {
    let highest = highest(candidates);
    let weight = |candidate: &Candidate| -> f64 {
        if candidate.logit == f32::NEG_INFINITY {
            return 0.0;
        }
        // In f64, so that a tiny temperature makes the quotient large and never a product of zero and infinity.
        ((f64::from(candidate.logit) - f64::from(highest)) / f64::from(temperature)).exp()
    };
    let mut left = fraction * candidates.iter().map(weight).sum::<f64>();
    let mut chosen = None;
    for candidate in candidates {
        let weight = weight(candidate);
        if weight > 0.0 {
            // Rounding may leave a rest after the last: then that one it is.
            chosen = Some(candidate.token);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(logits: &[f32]) -> Vec<Candidate> {
        (0u32..).zip(logits).map(|(token, &logit)| Candidate::new(token, logit)).collect()
    }

    #[test]
    fn the_mass_is_divided_in_order() {
        let all = candidates(&[0.25f32, 0.5, 0.25].map(f32::ln));
        let at = |fraction| draw(&all, 1.0, fraction).unwrap();
        assert_eq!([0.0, 0.2, 0.3, 0.7, 0.8, 0.999_999].map(at), [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn low_temperatures_sharpen_and_high_ones_flatten() {
        let all = candidates(&[1.0, 2.0]);
        assert_eq!(draw(&all, 1e-30, 0.0), Some(1));
        // At temperature 1000 both are nearly equal.
        assert_eq!(draw(&all, 1000.0, 0.49), Some(0));
        assert_eq!(draw(&all, 1000.0, 0.51), Some(1));
        assert_eq!(draw(&all, 1.0, 0.49), Some(1));
    }

    #[test]
    fn impossible_tokens_are_never_drawn() {
        let all = candidates(&[f32::NAN, f32::NEG_INFINITY, 0.0, f32::NAN]);
        assert_eq!([0.0, 0.5, 0.999_999].map(|fraction| draw(&all, 1.0, fraction)), [Some(2); 3]);
        assert_eq!(draw(&candidates(&[f32::NAN; 3]), 1.0, 0.5), None);
        assert_eq!(draw(&[], 1.0, 0.5), None);
    }
}
