//! Top-k: the k best tokens (Fan et al. 2018, "Hierarchical Neural Story Generation", section 5).
use super::candidates::{Candidate, best_first};

/// Fills `kept` with the `k` best of all logits, best first.
///
/// One pass compares each logit with the worst that could still be kept, which almost all fail, and collects the rest; when
/// too many are collected, a partial selection throws out all but k and raises the bar.
pub(super) fn top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    let room = k.saturating_mul(2).max(256);
    let mut bar = f32::NEG_INFINITY;
    for (token, &logit) in (0u32..).zip(logits) {
        // What equals the bar has a higher id than k tokens at least as good, once there is a bar. NaN fails too.
        if logit > bar {
            kept.push(Candidate::new(token, logit));
            if kept.len() == room {
                kept.select_nth_unstable_by(k - 1, best_first);
                kept.truncate(k);
                bar = kept[k - 1].logit;
            }
        }
    }
    kept.sort_unstable_by(best_first);
    kept.truncate(k);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(logits: &[f32], k: usize) -> Vec<u32> {
        let mut kept = Vec::new();
        top_k(logits, k, &mut kept);
        kept.iter().map(|candidate| candidate.token).collect()
    }

    #[test]
    fn the_best_are_kept_best_first_and_the_lower_id_of_equals() {
        assert_eq!(kept(&[1.0, 3.0, 2.0, 3.0], 3), [1, 3, 2]);
        assert_eq!(kept(&[5.0; 1000], 3), [0, 1, 2]);
        assert_eq!(kept(&[1.0, 2.0], 10), [1, 0]);
    }

    #[test]
    fn odd_logits_are_not_kept_or_kept_first() {
        assert_eq!(kept(&[f32::NAN, 1.0, f32::NEG_INFINITY, f32::INFINITY], 4), [3, 1]);
    }

    #[test]
    fn agrees_with_sorting_everything() {
        let logits: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 16.0).collect();
        let mut all: Vec<Candidate> =
            (0u32..).zip(&logits).map(|(token, &logit)| Candidate::new(token, logit)).collect();
        all.sort_by(best_first);
        for k in [1, 2, 40, 255, 256, 1000, 4999, 5000] {
            let best: Vec<u32> = all[..k].iter().map(|candidate| candidate.token).collect();
            assert_eq!(kept(&logits, k), best, "{k}");
        }
    }
}
