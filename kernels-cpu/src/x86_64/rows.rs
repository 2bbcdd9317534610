//! Row-wise kernels of AVX-512 and AVX2.
//!
//! SAFETY of the whole file: [`PackBlock`](crate::vector::rows::PackBlock)s are called through the entry points at the
//! end only, which have their features.

use crate::vector::rows::row_kernels;
use std::arch::x86_64::*;

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

row_kernels!(avx2, "avx2,fma,f16c", __m256, pack_block_256);
row_kernels!(avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", __m512, pack_block_512);
