//! Row-wise kernels of AVX-512 and AVX2.
//!
//! SAFETY of the whole file: [`PackBlock`](crate::vector::rows::PackBlock)s are called through the entry points at the
//! end only, which have their features.

use crate::{formats::q8a::Sums, vector::rows::row_kernels};
use std::arch::x86_64::*;

/// The two sums of 16 quants, from the quants as words.
#[inline(always)]
unsafe fn sums(words: __m256i) -> [i16; 2] {
    // SAFETY: see the head of the file.
    unsafe {
        let pairs = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
        let four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
        let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
        [_mm_cvtsi128_si32(two) as i16, _mm_extract_epi32::<1>(two) as i16]
    }
}

/// Quantizes 16 values; their sums.
#[inline(always)]
unsafe fn pack_half_512(values: *const f32, factor: __m512, quants: *mut u8) -> [i16; 2] {
    // SAFETY: see the head of the file; half a block is 16 values and 16 quants.
    unsafe {
        let q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values), factor));
        _mm_storeu_si128(quants.cast(), _mm512_cvtepi32_epi8(q));
        sums(_mm512_cvtepi32_epi16(q))
    }
}

#[inline(always)]
unsafe fn pack_block_512(values: *const f32, factor: f32, quants: *mut u8) -> Sums {
    // SAFETY: see the head of the file; a block is 32 values and 32 quants.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        [pack_half_512(values, factor, quants), pack_half_512(values.add(16), factor, quants.add(16))]
    }
}

/// Quantizes 16 values; their sums.
#[inline(always)]
unsafe fn pack_half_256(values: *const f32, factor: __m256, quants: *mut u8) -> [i16; 2] {
    // SAFETY: see the head of the file; half a block is 16 values and 16 quants.
    unsafe {
        let low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values), factor));
        let high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values.add(8)), factor));
        // Packing works within 128-bit lanes; the permutation puts the quadwords back in order.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_storeu_si128(quants.cast(), bytes);
        sums(words)
    }
}

#[inline(always)]
unsafe fn pack_block_256(values: *const f32, factor: f32, quants: *mut u8) -> Sums {
    // SAFETY: see the head of the file; a block is 32 values and 32 quants.
    unsafe {
        let factor = _mm256_set1_ps(factor);
        [pack_half_256(values, factor, quants), pack_half_256(values.add(16), factor, quants.add(16))]
    }
}

row_kernels!(avx2, "avx2,fma,f16c", __m256, pack_block_256);
row_kernels!(avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", __m512, pack_block_512);
