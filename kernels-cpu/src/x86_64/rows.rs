//! Row-wise kernels: normalization, activation quantization, SwiGLU and other element-wise work, attention.
//!
//! SAFETY of the whole file: the generic bodies are called through the entry points at the end only, which need their
//! instruction set and nothing else; lengths are checked, so loads and stores stay inside the slices.

use super::simd::Simd;
use crate::{
    attention::AttentionTask,
    formats::q8a::{self, BLOCK, ZERO_BELOW},
};
use std::arch::x86_64::*;

/// Applies `f` to whole vectors of `x` and `y`, and to a zero-padded copy of what is left over.
#[inline(always)]
unsafe fn map2<V: Simd>(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(V, V) -> V) {
    assert!(x.len() == out.len() && y.len() == out.len());
    let whole = out.len() / V::LANES * V::LANES;
    // SAFETY: see the head of the file.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            f(V::load(x.as_ptr().add(i)), V::load(y.as_ptr().add(i))).store(out.as_mut_ptr().add(i));
        }
        if whole < out.len() {
            let mut rest = [[0.0f32; 16]; 3];
            rest[0][..out.len() - whole].copy_from_slice(&x[whole..]);
            rest[1][..out.len() - whole].copy_from_slice(&y[whole..]);
            f(V::load(rest[0].as_ptr()), V::load(rest[1].as_ptr())).store(rest[2].as_mut_ptr());
            out[whole..].copy_from_slice(&rest[2][..x.len() - whole]);
        }
    }
}

#[inline(always)]
unsafe fn rms_norm<V: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    // SAFETY: see the head of the file.
    unsafe {
        let (mut sums, mut rest) = ([V::splat(0.0); 4], 0.0);
        let whole = x.len() / (4 * V::LANES) * (4 * V::LANES);
        for i in (0..whole).step_by(4 * V::LANES) {
            for (n, sum) in sums.iter_mut().enumerate() {
                let v = V::load(x.as_ptr().add(i + n * V::LANES));
                *sum = v.fma(v, *sum);
            }
        }
        for x in &x[whole..] {
            rest += x * x;
        }
        let square = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum() + rest;
        let factor = V::splat(1.0 / (square / x.len() as f32 + eps).sqrt());
        map2::<V>(x, weight, out, |x, w| x.mul(factor).mul(w));
    }
}

#[inline(always)]
unsafe fn softmax<V: Simd>(x: &[f32], out: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
    // SAFETY: see the head of the file.
    unsafe {
        let shift = V::splat(max);
        map2::<V>(x, x, out, |x, _| x.sub(shift).exp());
        let sum: f64 = out.iter().map(|x| f64::from(*x)).sum();
        for x in out {
            *x = (f64::from(*x) / sum) as f32;
        }
    }
}

/// What differs between the two widths of integer registers: 32 values times `factor`, rounded to nearest even bytes,
/// and the sums of their halves. Magnitudes are at most 127.4.
type PackBlock = unsafe fn(values: *const f32, factor: f32, quants: *mut u8) -> [i32; 2];

#[inline(always)]
unsafe fn pack_block_512(values: *const f32, factor: f32, quants: *mut u8) -> [i32; 2] {
    // SAFETY: see the head of the file; a block is 32 values and 32 quants.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        std::array::from_fn(|h| {
            let q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values.add(h * 16)), factor));
            _mm_storeu_si128(quants.add(h * 16).cast(), _mm512_cvtepi32_epi8(q));
            _mm512_reduce_add_epi32(q)
        })
    }
}

#[inline(always)]
unsafe fn pack_block_256(values: *const f32, factor: f32, quants: *mut u8) -> [i32; 2] {
    // SAFETY: see the head of the file; a block is 32 values and 32 quants.
    unsafe {
        let factor = _mm256_set1_ps(factor);
        std::array::from_fn(|h| {
            let q: [__m256i; 2] = std::array::from_fn(|i| {
                _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values.add(h * 16 + i * 8)), factor))
            });
            // Packing works within 128-bit lanes; the permutation puts the quadwords back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(q[0], q[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(quants.add(h * 16).cast(), bytes);
            let eight = _mm256_add_epi32(q[0], q[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two)))
        })
    }
}

/// The rule of [`q8a`], bit for bit.
#[inline(always)]
unsafe fn quantize<V: Simd>(x: &[f32], row: &mut [u8], pack: PackBlock) {
    assert!(x.len().is_multiple_of(BLOCK) && row.len() == q8a::row_bytes(x.len()));
    // SAFETY: see the head of the file; the row's parts have the offsets that `q8a` documents.
    unsafe {
        let quants = row.as_mut_ptr();
        let scales = quants.add(q8a::scales_offset(x.len())).cast::<f32>();
        let sums = quants.add(q8a::sums_offset(x.len())).cast::<i32>();
        for b in 0..x.len() / BLOCK {
            let values = x.as_ptr().add(b * BLOCK);
            let (mut top, mut poison) = (V::splat(0.0), V::splat(0.0));
            for i in (0..BLOCK).step_by(V::LANES) {
                let v = V::load(values.add(i));
                top = top.max(v).max(V::splat(0.0).sub(v));
                // Zero times a value is zero unless the value is infinite or NaN, which `max` might pass over.
                poison = v.fma(V::splat(0.0), poison);
            }
            let amax = top.largest();
            let (scale, factor) = if poison.sum() != 0.0 || poison.sum().is_nan() {
                (f32::NAN, 0.0)
            } else if amax < ZERO_BELOW {
                (0.0, 0.0)
            } else {
                (amax / 127.0, 127.0 / amax)
            };
            *scales.add(b) = scale;
            let halves = if factor == 0.0 {
                quants.add(b * BLOCK).write_bytes(0, BLOCK);
                [0; 2]
            } else {
                pack(values, factor, quants.add(b * BLOCK))
            };
            *sums.add(2 * b) = halves[0];
            *sums.add(2 * b + 1) = halves[1];
        }
    }
}

macro_rules! entries {
    ($module:ident, $features:literal, $vector:ty, $wide:literal, $pack:ident) => {
        /// Entry points for one instruction set.
        pub(crate) mod $module {
            use super::*;

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { super::rms_norm::<$vector>(x, weight, eps, out) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn quantize(x: &[f32], row: &mut [u8]) {
                // SAFETY: the caller's promise is ours.
                unsafe { super::quantize::<$vector>(x, row, super::$pack) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { map2::<$vector>(gate, up, out, |gate, up| gate.silu().mul(up)) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn silu(x: &[f32], out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { map2::<$vector>(x, x, out, |x, _| x.silu()) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn softmax(x: &[f32], out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { super::softmax::<$vector>(x, out) }
            }

            /// # Safety
            /// The processor has the features, and the task is sound (see [`AttentionTask`]) with a head length that is a
            /// multiple of 16.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn attention(task: &AttentionTask) {
                // SAFETY: the caller's promise is ours.
                unsafe { super::super::attention::attention::<$vector, $wide>(task) }
            }
        }
    };
}

entries!(avx2, "avx2,fma,f16c", __m256, false, pack_block_256);
entries!(avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", __m512, true, pack_block_512);
