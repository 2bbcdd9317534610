//! Row-wise kernels: normalization, activation quantization, SwiGLU and other element-wise work.
//!
//! SAFETY of the whole file: the generic bodies are called through the entry points that [`row_kernels`] makes, which
//! need their instruction set and nothing else; lengths are checked, so loads and stores stay inside the slices.

use crate::{
    formats::q8a::{self, BLOCK, ZERO_BELOW},
    simd::Simd,
};

/// Applies `f` to whole vectors of `x` and `y`, and to a zero-padded copy of what is left over.
#[inline(always)]
pub(crate) unsafe fn map2<V: Simd>(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(V, V) -> V) {
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
pub(crate) unsafe fn rms_norm<V: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
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
        // Squares of huge values overflow, and those of tiny ones vanish.
        if !(1e-30..f32::MAX).contains(&square) {
            return crate::reference::rms_norm(x, weight, eps, out);
        }
        let factor = V::splat(1.0 / (square / x.len() as f32 + eps).sqrt());
        map2::<V>(x, weight, out, |x, w| x.mul(factor).mul(w));
    }
}

#[inline(always)]
pub(crate) unsafe fn softmax<V: Simd>(x: &[f32], out: &mut [f32]) {
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

/// What integer registers do: 32 values times `factor`, rounded to nearest even bytes, and their sums. Magnitudes are at
/// most 127.4.
pub(crate) type PackBlock = unsafe fn(values: *const f32, factor: f32, quants: *mut u8) -> q8a::Sums;

/// The rule of [`q8a`], bit for bit.
#[inline(always)]
pub(crate) unsafe fn quantize<V: Simd>(x: &[f32], row: &mut [u8], pack: PackBlock) {
    assert!(x.len().is_multiple_of(BLOCK) && row.len() == q8a::row_bytes(x.len()));
    // SAFETY: see the head of the file; the row's parts have the offsets that `q8a` documents.
    unsafe {
        let quants = row.as_mut_ptr();
        let scales = quants.add(q8a::scales_offset(x.len())).cast::<f32>();
        let sums = quants.add(q8a::sums_offset(x.len())).cast::<q8a::Sums>();
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
            *sums.add(b) = if factor == 0.0 {
                quants.add(b * BLOCK).write_bytes(0, BLOCK);
                q8a::Sums::default()
            } else {
                pack(values, factor, quants.add(b * BLOCK))
            };
        }
    }
}

/// Makes functions of [`add_page`](crate::vector::attention::add_page) for one instruction set.
macro_rules! attention_pages {
    ($features:literal, $vector:ty, $($name:ident: $element:ident),+) => {
        $(
            /// # Safety
            /// Called by attention with these features only.
            #[target_feature(enable = $features)]
            unsafe fn $name(task: &AttentionTask, s: &Scratch, state: State, page: &Page, base: usize) {
                // SAFETY: the caller's promise is ours.
                unsafe { attention::add_page::<$vector, attention::$element>(task, s, state, page, base) }
            }
        )+
    };
}
pub(crate) use attention_pages;

/// Makes a module of entry points for one instruction set: its name, features, vector and [`PackBlock`].
macro_rules! row_kernels {
    ($module:ident, $features:literal, $vector:ty, $pack:ident) => {
        /// Entry points for one instruction set.
        pub(crate) mod $module {
            use super::*;
            use crate::{
                attention::{
                    AttentionTask, Work,
                    cache::{LayerCache, Place},
                },
                simd::Simd,
                vector::{
                    attention::{self, AddPages, Page, Scratch, State},
                    rows::{self, attention_pages},
                },
            };

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { rows::rms_norm::<$vector>(x, weight, eps, out) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn quantize(x: &[f32], row: &mut [u8]) {
                // SAFETY: the caller's promise is ours.
                unsafe { rows::quantize::<$vector>(x, row, super::$pack) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { rows::map2::<$vector>(gate, up, out, |gate, up| gate.silu().mul(up)) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn silu(x: &[f32], out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { rows::map2::<$vector>(x, x, out, |x, _| x.silu()) }
            }

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn softmax(x: &[f32], out: &mut [f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { rows::softmax::<$vector>(x, out) }
            }

            /// # Safety
            /// The processor has the features, and the task is sound (see [`AttentionTask`]) with a head length that is a
            /// multiple of 16 and a cache of `f16`.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn attention_f16(task: &AttentionTask, work: Work) {
                let add = AddPages { stored: add_page_f16, wide: add_page_f32 };
                // SAFETY: the caller's promise is ours.
                unsafe { attention::attention::<$vector, attention::F16>(task, work, add) }
            }

            /// # Safety
            /// As of `attention_f16`, with a cache of 8-bit blocks and a head length that is a multiple of 32.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn attention_q8_0(task: &AttentionTask, work: Work) {
                let add = AddPages { stored: add_page_q8_0, wide: add_page_f32 };
                // SAFETY: the caller's promise is ours.
                unsafe { attention::attention::<$vector, attention::Q8>(task, work, add) }
            }

            attention_pages!($features, $vector, add_page_f16: F16, add_page_q8_0: Q8, add_page_f32: F32);

            /// # Safety
            /// The processor has the features; else as of [`LayerCache::append`], with a head length that is a multiple of 16.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn append(cache: &LayerCache, place: Place, key: &[f32], value: &[f32]) {
                // SAFETY: the caller's promise is ours.
                unsafe { attention::append::<$vector>(cache, place, key, value) }
            }
        }
    };
}
pub(crate) use row_kernels;
