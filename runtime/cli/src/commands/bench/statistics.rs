//! Mean and deviation.

/// Mean of the values; 0 if there are none.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sample standard deviation (divides by n - 1), as llama-bench reports; 0 for fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_of_the_sample() {
        assert_eq!(mean(&[2.0, 4.0, 4.0, 6.0]), 4.0);
        assert!((deviation(&[2.0, 4.0, 4.0, 6.0]) - (8.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(deviation(&[1.0]), 0.0);
        assert_eq!(mean(&[]), 0.0);
    }
}
