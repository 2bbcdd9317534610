//! Tile kernels for F16, BF16 and F32 weights.

use crate::vector::float::float_kernels;
use std::arch::x86_64::*;

float_kernels! {
    avx2_f16: "avx2,fma,f16c", __m256, F16, 3, 2, 4;
    avx2_bf16: "avx2,fma,f16c", __m256, BF16, 3, 2, 4;
    avx2_f32: "avx2,fma,f16c", __m256, F32, 3, 2, 4;
    avx512_f16: "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", __m512, F16, 8, 1, 2;
    avx512_bf16: "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", __m512, BF16, 8, 1, 2;
    avx512_f32: "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", __m512, F32, 8, 1, 2;
}
