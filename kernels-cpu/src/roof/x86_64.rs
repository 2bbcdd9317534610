//! The loops for x86-64.
//!
//! Accumulators begin with values of their own that the compiler does not see, so that none of them can be merged with
//! another, and there are enough of them to hide the latency of an instruction (Intel and AMD: 4 or 5 cycles, two per
//! cycle).

use super::{Loop, Loops, STEP};
use crate::Isa;
use std::{
    arch::{asm, x86_64::*},
    hint::black_box,
};

/// How far ahead the prefetching variants of the read loops are, in bytes.
const AHEAD: usize = 4096;

/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn read_avx512(data: &[u8], ahead: bool) -> u64 {
    let mut all = [_mm512_setzero_si512(); STEP / 64];
    for step in data.as_chunks::<STEP>().0 {
        let pieces = step.as_chunks::<64>().0;
        if ahead {
            fetch(pieces);
        }
        for (all, piece) in all.iter_mut().zip(pieces) {
            // SAFETY: a piece has 64 bytes.
            *all = _mm512_or_si512(*all, unsafe { _mm512_loadu_si512(piece.as_ptr().cast()) });
        }
    }
    _mm512_reduce_or_epi64(all.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_or_si512(a, b))) as u64
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn read_avx2(data: &[u8], ahead: bool) -> u64 {
    let mut all = [_mm256_setzero_si256(); 8];
    for step in data.as_chunks::<STEP>().0 {
        let pieces = step.as_chunks::<64>().0;
        if ahead {
            fetch(pieces);
        }
        for (i, piece) in step.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: a piece has 32 bytes.
            all[i % 8] = _mm256_or_si256(all[i % 8], unsafe { _mm256_loadu_si256(piece.as_ptr().cast()) });
        }
    }
    let all = all.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_or_si256(a, b));
    let half = _mm_or_si128(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
    (_mm_cvtsi128_si64(half) | _mm_extract_epi64::<1>(half)) as u64
}

#[inline(always)]
fn fetch(pieces: &[[u8; 64]]) {
    for piece in pieces {
        // SAFETY: prefetching may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(piece.as_ptr().wrapping_add(AHEAD).cast()) };
    }
}

const FLOAT_256: Loop = Loop { instruction: "vfmadd ymm", macs: 12 * 8, run: float_avx2 };
const FLOAT_512: Loop = Loop { instruction: "vfmadd zmm", macs: 16 * 16, run: float_avx512 };

/// The loops of an instruction set.
pub(super) fn loops(isa: Isa) -> Option<Loops> {
    Some(match isa {
        Isa::Avx2 => Loops {
            integer: Loop { instruction: "vpmaddubsw + vpaddw ymm", macs: 8 * 32, run: integer_avx2 },
            float: FLOAT_256,
        },
        Isa::AvxVnni => Loops {
            integer: Loop { instruction: "vpdpbusd ymm", macs: 12 * 32, run: integer_avx_vnni },
            float: FLOAT_256,
        },
        Isa::Avx512Bw => {
            let instruction = "vpmaddubsw + vpaddw zmm";
            Loops { integer: Loop { instruction, macs: 8 * 64, run: integer_avx512bw }, float: FLOAT_512 }
        }
        Isa::Avx512 => Loops {
            integer: Loop { instruction: "vpdpbusd zmm", macs: 16 * 64, run: integer_avx512 },
            float: FLOAT_512,
        },
        _ => return None,
    })
}

/// # Safety
/// The processor has AVX-512F and VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn integer_avx512(turns: u64) -> f64 {
    let (a, b) = (black_box(_mm512_set1_epi8(2)), black_box(_mm512_set1_epi8(3)));
    let mut all: [__m512i; 16] = std::array::from_fn(|i| black_box(_mm512_set1_epi32(i as i32)));
    for _ in 0..turns {
        for one in &mut all {
            *one = _mm512_dpbusd_epi32(*one, a, b);
        }
    }
    all.into_iter().map(|one| f64::from(_mm512_reduce_add_epi32(one))).sum()
}

/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn float_avx512(turns: u64) -> f64 {
    let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.5)));
    let mut all: [__m512; 16] = std::array::from_fn(|i| black_box(_mm512_set1_ps(i as f32)));
    for _ in 0..turns {
        for one in &mut all {
            *one = _mm512_fmadd_ps(a, b, *one);
        }
    }
    all.into_iter().map(|one| f64::from(_mm512_reduce_add_ps(one))).sum()
}

/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn integer_avx512bw(turns: u64) -> f64 {
    let mut a = black_box(_mm512_set1_epi8(2));
    let b = black_box(_mm512_set1_epi8(3));
    let mut all: [__m512i; 8] = std::array::from_fn(|i| black_box(_mm512_set1_epi32(i as i32)));
    for _ in 0..turns {
        for one in &mut all {
            // SAFETY: no instruction at all, as in `integer_avx2`.
            unsafe { asm!("/* {0} */", inout(zmm_reg) a, options(nomem, nostack, preserves_flags)) };
            *one = _mm512_add_epi16(*one, _mm512_maddubs_epi16(a, b));
        }
    }
    all.into_iter().map(|one| f64::from(_mm512_reduce_add_epi32(_mm512_madd_epi16(one, _mm512_set1_epi16(1))))).sum()
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn integer_avx2(turns: u64) -> f64 {
    let mut a = black_box(_mm256_set1_epi8(2));
    let b = black_box(_mm256_set1_epi8(3));
    let mut all: [__m256i; 8] = std::array::from_fn(|i| black_box(_mm256_set1_epi32(i as i32)));
    for _ in 0..turns {
        for one in &mut all {
            // SAFETY: no instruction at all. The compiler has to take `a` for a new value each time, so it cannot compute the
            // product once and add it eight times.
            unsafe { asm!("/* {0} */", inout(ymm_reg) a, options(nomem, nostack, preserves_flags)) };
            *one = _mm256_add_epi16(*one, _mm256_maddubs_epi16(a, b));
        }
    }
    all.into_iter().map(|one| sum_of_lanes(_mm256_madd_epi16(one, _mm256_set1_epi16(1)))).sum()
}

#[target_feature(enable = "avx2")]
fn sum_of_lanes(vector: __m256i) -> f64 {
    let mut lanes = [0i32; 8];
    // SAFETY: there is room for the eight lanes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
    lanes.into_iter().map(f64::from).sum()
}

/// # Safety
/// The processor has AVX2 and AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn integer_avx_vnni(turns: u64) -> f64 {
    let (a, b) = (black_box(_mm256_set1_epi8(2)), black_box(_mm256_set1_epi8(3)));
    let mut all: [__m256i; 12] = std::array::from_fn(|i| black_box(_mm256_set1_epi32(i as i32)));
    for _ in 0..turns {
        for one in &mut all {
            *one = _mm256_dpbusd_avx_epi32(*one, a, b);
        }
    }
    all.into_iter().map(|one| sum_of_lanes(one)).sum()
}

/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn float_avx2(turns: u64) -> f64 {
    let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.5)));
    let mut all: [__m256; 12] = std::array::from_fn(|i| black_box(_mm256_set1_ps(i as f32)));
    for _ in 0..turns {
        for one in &mut all {
            *one = _mm256_fmadd_ps(a, b, *one);
        }
    }
    all.into_iter()
        .map(|one| {
            let mut lanes = [0f32; 8];
            // SAFETY: there is room for the eight lanes.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), one) };
            lanes.into_iter().map(f64::from).sum::<f64>()
        })
        .sum()
}
