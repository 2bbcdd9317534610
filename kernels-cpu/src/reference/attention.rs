//! Scaled dot-product attention of one query.

/// `out = Σ softmax(scale * q · keys)[j] * values[j]` (Vaswani et al., 2017, arXiv 1706.03762).
///
/// One head of one query over the positions that it sees, oldest first: `keys[j]` is as long as `q`, `values[j]` as long as
/// `out`. Which positions these are (causality, windows) and which heads share a key (grouped queries) is the caller's
/// business. Without any position the result is zeros.
///
/// Two passes: all scores in `f64`, then the weighted sum in `f64`, rounded once at the end.
///
/// # Panics
/// If the lengths differ.
pub fn attention<T: Copy + Into<f64>>(q: &[f32], keys: &[&[T]], values: &[&[T]], scale: f32, out: &mut [f32]) {
    assert_eq!(keys.len(), values.len(), "keys and values are of different numbers of positions");
    let mut scores: Vec<f64> = keys
        .iter()
        .map(|key| {
            assert_eq!(key.len(), q.len(), "key and query differ in length");
            let dot: f64 = q.iter().zip(*key).map(|(q, k)| f64::from(*q) * (*k).into()).sum();
            dot * f64::from(scale)
        })
        .collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |max, score| max.max(*score));
    let mut total = 0.0;
    for score in &mut scores {
        *score = (*score - max).exp();
        total += *score;
    }
    let mut sums = vec![0.0f64; out.len()];
    for (weight, value) in scores.iter().zip(values) {
        assert_eq!(value.len(), sums.len(), "value and result differ in length");
        for (sum, value) in sums.iter_mut().zip(*value) {
            *sum += weight * (*value).into();
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if keys.is_empty() { 0.0 } else { (sum / total) as f32 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    fn halves<const N: usize>(values: [f32; N]) -> [f16; N] {
        values.map(f16::from_f32)
    }

    #[test]
    fn one_position_gives_its_value() {
        let mut out = [0.0; 3];
        attention(&[1.0, 2.0], &[&halves([3.0, -4.0])], &[&halves([0.5, -1.5, 8.0])], 0.7, &mut out);
        assert_eq!(out, [0.5, -1.5, 8.0]);
        attention::<f16>(&[1.0, 2.0], &[], &[], 0.7, &mut out);
        assert_eq!(out, [0.0; 3]);
    }

    #[test]
    fn equal_scores_average() {
        let keys = [halves([0.0, 1.0]), halves([0.0, -1.0]), halves([0.0, 64.0])];
        let values = [halves([3.0]), halves([6.0]), halves([-3.0])];
        let mut out = [f32::NAN];
        attention(&[1.0, 0.0], &keys.each_ref().map(|k| &k[..]), &values.each_ref().map(|v| &v[..]), 1.0, &mut out);
        assert_eq!(out, [2.0]);
    }

    #[test]
    fn scores_weigh_and_scale_counts() {
        // Scores 2 ln 3 * 0.5 and 0 give weights 3/4 and 1/4.
        let keys = [halves([2.0]), halves([0.0])];
        let values = [halves([4.0]), halves([-8.0])];
        let mut out = [f32::NAN];
        let q = [3f32.ln()];
        attention(&q, &keys.each_ref().map(|k| &k[..]), &values.each_ref().map(|v| &v[..]), 0.5, &mut out);
        assert!((out[0] - 1.0).abs() < 1e-6, "{}", out[0]);
    }

    #[test]
    fn huge_scores_do_not_overflow() {
        let keys = [halves([60000.0]), halves([-60000.0]), halves([59968.0])];
        let values = [halves([1.0]), halves([2.0]), halves([3.0])];
        let mut out = [f32::NAN];
        let keys = keys.each_ref().map(|k| &k[..]);
        attention(&[1e30], &keys, &values.each_ref().map(|v| &v[..]), 1.0, &mut out);
        assert_eq!(out, [1.0]);
    }
}
