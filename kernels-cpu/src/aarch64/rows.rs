//! Row-wise kernels of NEON.
//!
//! SAFETY of the whole file: the [`PackBlock`](crate::vector::rows::PackBlock) is called through the entry points at the
//! end only, which have its features.

use crate::vector::rows::row_kernels;
use std::arch::aarch64::*;

#[inline(always)]
unsafe fn pack_block(values: *const f32, factor: f32, quants: *mut u8) -> [i32; 2] {
    // SAFETY: see the head of the file; a block is 32 values and 32 quants.
    unsafe {
        let factor = vdupq_n_f32(factor);
        std::array::from_fn(|h| {
            let q: [int32x4_t; 4] =
                std::array::from_fn(|i| vcvtnq_s32_f32(vmulq_f32(vld1q_f32(values.add(h * 16 + i * 4)), factor)));
            let words = |i: usize| vcombine_s16(vmovn_s32(q[i]), vmovn_s32(q[i + 1]));
            let bytes = vcombine_s8(vmovn_s16(words(0)), vmovn_s16(words(2)));
            vst1q_s8(quants.add(h * 16).cast(), bytes);
            vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3])))
        })
    }
}

row_kernels!(neon, "neon", float32x4_t, pack_block);
