//! Tile kernels for F16, BF16 and F32 weights.

use crate::vector::float::float_kernels;
use std::arch::aarch64::*;

float_kernels! {
    neon_f16: "neon", float32x4_t, F16, 6, 4, 4;
    neon_bf16: "neon", float32x4_t, BF16, 6, 4, 4;
    neon_f32: "neon", float32x4_t, F32, 6, 4, 4;
}
