//! Row-wise kernels of NEON.
//!
//! SAFETY of the whole file: the [`PackBlock`](crate::vector::rows::PackBlock) is called through the entry points at the
//! end only, which have its features.

use crate::{formats::q8a::Sums, vector::rows::row_kernels};
use std::arch::aarch64::*;

#[inline(always)]
unsafe fn pack_block(values: *const f32, factor: f32, quants: *mut u8) -> Sums {
    // SAFETY: see the head of the file; a block is 32 values and 32 quants.
    unsafe {
        let factor = vdupq_n_f32(factor);
        std::array::from_fn(|h| {
            let q: [int32x4_t; 4] =
                std::array::from_fn(|i| vcvtnq_s32_f32(vmulq_f32(vld1q_f32(values.add(h * 16 + i * 4)), factor)));
            let words = |i: usize| vcombine_s16(vmovn_s32(q[i]), vmovn_s32(q[i + 1]));
            let (first, last) = (words(0), words(2));
            vst1q_s8(quants.add(h * 16).cast(), vcombine_s8(vmovn_s16(first), vmovn_s16(last)));
            // Sums of two neighbours; those in even places are of the first two columns of four.
            let pairs = vpaddlq_s16(vaddq_s16(first, last));
            let two = vadd_s32(vget_low_s32(pairs), vget_high_s32(pairs));
            [vget_lane_s32::<0>(two) as i16, vget_lane_s32::<1>(two) as i16]
        })
    }
}

row_kernels!(neon, "neon", float32x4_t, pack_block);
