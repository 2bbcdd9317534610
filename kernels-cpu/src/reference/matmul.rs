//! Quantized weights times activations.

use crate::formats::Format;

/// Weight rows that are multiplied together. Their sums do not depend on each other, so the processor overlaps them; the
/// order within a sum stays what it is.
const ROWS: usize = 4;

/// `out = x · Wᵀ`: rows of `x` times rows of `weights`.
///
/// - `weights`: `n × k`, row-major blocks of `format`; rows are whole blocks;
/// - `x`: `t × k`, row-major;
/// - `out`: `t × n`, row-major; replaced.
///
/// Weights are dequantized to `f32` first. Products of two `f32` are exact in `f64`, and each sum runs over ascending `k`
/// in `f64` and is rounded once at the end.
///
/// # Panics
/// If the slices do not have these lengths.
pub fn matmul(format: &Format, n: usize, k: usize, weights: &[u8], x: &[f32], out: &mut [f32]) {
    let row_bytes = format.dtype.bytes_for(k).expect("a row is a whole number of blocks");
    assert_eq!(weights.len(), n * row_bytes, "weights are not {n} rows of {k} {} values", format.dtype);
    if n == 0 || k == 0 {
        out.fill(0.0);
        return;
    }
    assert!(x.len().is_multiple_of(k) && out.len() == x.len() / k * n, "activations do not fit {n} x {k} weights");
    let mut rows = vec![0.0; ROWS.min(n) * k];
    for first in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - first);
        let rows = &mut rows[..count * k];
        (format.dequantize)(&weights[first * row_bytes..][..count * row_bytes], rows);
        for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
            let out = &mut out[first..first + count];
            match out.as_chunks_mut::<ROWS>() {
                ([out], []) => *out = dot_rows(rows, x),
                (_, out) => {
                    for (out, row) in out.iter_mut().zip(rows.chunks_exact(k)) {
                        [*out] = dot_rows(row, x);
                    }
                }
            }
        }
    }
}

/// `Σ a[k] * b[k]`, the sum that [`matmul`] makes for each of its results; `b` may lie in memory that others write.
///
/// # Safety
/// `b` is valid for as many values as `a` has.
pub(crate) unsafe fn dot_at(a: &[f32], b: *const f32) -> f32 {
    // SAFETY: promised by the caller.
    a.iter().enumerate().fold(0.0, |sum, (k, a)| sum + f64::from(*a) * f64::from(unsafe { *b.add(k) })) as f32
}

/// Dot products of `N` rows with `x`; all rows are as long as `x`.
fn dot_rows<const N: usize>(rows: &[f32], x: &[f32]) -> [f32; N] {
    let rows: [&[f32]; N] = std::array::from_fn(|i| &rows[i * x.len()..][..x.len()]);
    let mut sums = [0.0f64; N];
    for (k, x) in x.iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum += f64::from(row[k]) * f64::from(*x);
        }
    }
    sums.map(|sum| sum as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{self, q8a};
    use rustai_abi::DType;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn every_row_meets_every_activation() {
        let f32 = formats::of(DType::F32).unwrap();
        // W[i][j] = i + 10 j and x[t] = unit vectors times t + 1 pick columns of W.
        for n in 1..=9 {
            let weights: Vec<f32> = (0..n * 3).map(|at| (at / 3 + 10 * (at % 3)) as f32).collect();
            let x = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0];
            let mut out = vec![f32::NAN; 3 * n];
            matmul(f32, n, 3, &bytes(&weights), &x, &mut out);
            for t in 0..3 {
                for i in 0..n {
                    assert_eq!(out[t * n + i], ((t + 1) * (i + 10 * t)) as f32, "n {n} t {t} i {i}");
                }
            }
        }
    }

    #[test]
    fn sums_keep_what_f32_would_lose() {
        let f32 = formats::of(DType::F32).unwrap();
        let mut out = [0.0];
        matmul(f32, 1, 3, &bytes(&[1e8, 1.0, -1e8]), &[1.0; 3], &mut out);
        assert_eq!(out, [1.0]);
        // SAFETY: both have three values.
        assert_eq!(unsafe { dot_at(&[1e8, 1.0, -1e8], [1.0; 3].as_ptr()) }, 1.0);
    }

    #[test]
    fn quantized_weights_and_activations_give_the_closed_form() {
        // Weights are i % 15 - 7 and activations powers of two with a largest of 127 / 127: both are exact.
        let format = formats::of(DType::Q8_0).unwrap();
        let k = 64;
        let weights: Vec<f32> = (0..3 * k).map(|i| if i % 32 == 0 { 127.0 } else { (i % 15) as f32 - 7.0 }).collect();
        let mut blocks = vec![0; DType::Q8_0.bytes_for(weights.len()).unwrap()];
        format.quantize.unwrap()(&weights, None, &mut blocks);
        let x: Vec<f32> = (0..2 * k).map(|i| if i % 32 == 0 { -127.0 } else { (i % 11) as f32 }).collect();
        let mut rows = vec![0; 2 * q8a::row_bytes(k)];
        for (x, row) in x.chunks(k).zip(rows.chunks_mut(q8a::row_bytes(k))) {
            q8a::quantize_row(x, row);
        }
        let mut seen = vec![0.0; x.len()];
        for (row, seen) in rows.chunks(q8a::row_bytes(k)).zip(seen.chunks_mut(k)) {
            q8a::Row::new(row, k).dequantize(seen);
        }
        let mut plain = [0.0; 6];
        let mut quantized = [0.0; 6];
        matmul(format, 3, k, &blocks, &x, &mut plain);
        matmul(format, 3, k, &blocks, &seen, &mut quantized);
        let expected: Vec<f32> = x
            .chunks(k)
            .flat_map(|x| weights.chunks(k).map(move |w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>()))
            .collect();
        assert_eq!(plain[..], expected);
        assert_eq!(quantized[..], expected);
    }

    #[test]
    fn empty_shapes_give_zeros_or_nothing() {
        let f32 = formats::of(DType::F32).unwrap();
        let mut out = [1.0; 2];
        matmul(f32, 2, 0, &[], &[], &mut out);
        assert_eq!(out, [0.0; 2]);
        matmul(f32, 2, 3, &[0; 24], &[], &mut []);
    }
}
