//! The two products of attention over one page: queries times keys, and weights times values.
//!
//! Both keep a tile of rows times vectors in registers. A page is read in place if few rows share it, which is bound by
//! converting its entries to `f32`; for many rows it is [`expand`]ed once, and what remains are multiply-adds of `f32`.
//! Vectors are never handled in closures: a closure that is not inlined lacks the instruction set of the function around it.
//! Every element of a result is one chain of multiply-adds in the order of its positions, whatever the tile: so all ways
//! give the same bits.
//!
//! SAFETY of the whole file: functions are called by the module above only, with pages and scratch of the task's shape; what
//! a page holds is described in [`cache`](crate::attention::cache).

use super::Scratch;
use crate::{
    attention::cache::{BLOCK, scale_planes},
    simd::Simd,
};
use rustai_abi::PAGE_TOKENS;
use std::ops::Range;

/// One head's share of a page.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    keys: *const u8,
    values: *const u8,
    /// Scales of 8-bit entries as `f32`, in the order of the cache; unused for others.
    key_scales: *const f32,
    value_scales: *const f32,
    /// The head's share of the page that comes next.
    next: *const u8,
}

/// How entries are stored.
pub(crate) trait Element {
    /// Whether entries come in blocks with scales.
    const SCALED: bool;
    /// Bytes that the keys and values of a page have for each value of a head; 0 if they need not be fetched ahead.
    const FETCHED: usize;
    /// Most rows that are computed from them at a time. A page that more rows share is made `f32` first.
    const ROWS: usize;
    /// Entries from `index` on, times `scale` if there are scales.
    unsafe fn load<V: Simd>(from: *const u8, index: usize, scale: V) -> V;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Q8;

impl Element for F32 {
    const SCALED: bool = false;
    const FETCHED: usize = 0;
    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const u8, index: usize, _: V) -> V {
        // SAFETY: see the head of the file.
        unsafe { V::load(from.cast::<f32>().add(index)) }
    }
}

impl Element for F16 {
    const SCALED: bool = false;
    const FETCHED: usize = 2 * PAGE_TOKENS * 2;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const u8, index: usize, _: V) -> V {
        // SAFETY: see the head of the file.
        unsafe { V::load_f16(from.cast::<u16>().add(index)) }
    }
}

impl Element for Q8 {
    const SCALED: bool = true;
    const FETCHED: usize = 2 * (PAGE_TOKENS + PAGE_TOKENS / BLOCK * 2);
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const u8, index: usize, scale: V) -> V {
        // SAFETY: see the head of the file.
        unsafe { V::load_i8(from.cast::<i8>().add(index)).mul(scale) }
    }
}

impl Page {
    /// A head's keys and values as they lie in the cache. Scales are converted into `scales`, `2 * dim` values.
    #[inline(always)]
    pub(super) unsafe fn new<V: Simd, E: Element>(
        keys: *mut u8,
        values: *mut u8,
        next: *const u8,
        dim: usize,
        scales: *mut f32,
    ) -> Self {
        // SAFETY: see the head of the file. A page has as many scales of keys as a head has values, and so of values.
        unsafe {
            let value_scales = scales.add(dim);
            if E::SCALED {
                let planes = scale_planes(keys, values, dim);
                for i in (0..dim).step_by(V::LANES) {
                    V::load_f16(planes[0].add(i)).store(scales.add(i));
                    V::load_f16(planes[1].add(i)).store(value_scales.add(i));
                }
            }
            Self { keys, values, key_scales: scales, value_scales, next }
        }
    }

    /// The page as `f32`, at `to`.
    #[inline(always)]
    pub(super) unsafe fn expand<V: Simd, E: Element>(self, dim: usize, to: *mut f32) -> Self {
        // SAFETY: see the head of the file; there is room for two times `PAGE_TOKENS * dim` values.
        unsafe {
            let values = to.add(PAGE_TOKENS * dim);
            for d in 0..dim {
                for t in (0..PAGE_TOKENS).step_by(V::LANES) {
                    let at = d * PAGE_TOKENS + t;
                    E::load(self.keys, at, self.key_scale::<V, E>(d, t)).store(to.add(at));
                }
            }
            for t in 0..PAGE_TOKENS {
                for d in (0..dim).step_by(V::LANES) {
                    let at = t * dim + d;
                    E::load(self.values, at, self.value_scale::<V, E>(t, d, dim)).store(values.add(at));
                }
            }
            Self { keys: to.cast(), values: values.cast(), ..self }
        }
    }

    /// Scales of the keys of some positions.
    #[inline(always)]
    unsafe fn key_scale<V: Simd, E: Element>(&self, d: usize, t: usize) -> V {
        // SAFETY: see the head of the file.
        unsafe { if E::SCALED { V::load(self.key_scales.add(d / BLOCK * PAGE_TOKENS + t)) } else { V::splat(0.0) } }
    }

    /// The scale of some values of one position.
    #[inline(always)]
    unsafe fn value_scale<V: Simd, E: Element>(&self, t: usize, d: usize, dim: usize) -> V {
        // SAFETY: see the head of the file.
        unsafe { V::splat(if E::SCALED { *self.value_scales.add(t * (dim / BLOCK) + d / BLOCK) } else { 0.0 }) }
    }
}

/// Scores of `R` rows from `row` on against all positions of a page, `N` vectors of positions at a time. Fetches the next page
/// on the way, spread over all steps, since processors stop looking ahead where an address range of 4 KiB ends.
#[inline(always)]
pub(super) unsafe fn scores<V: Simd, E: Element, const R: usize, const N: usize>(s: &Scratch, page: &Page, row: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let dim = s.dim;
        let block = if E::SCALED { BLOCK } else { dim };
        let mut next = page.next;
        let fetched = E::FETCHED * N * V::LANES / PAGE_TOKENS;
        for first in (0..PAGE_TOKENS).step_by(N * V::LANES) {
            let mut acc = [[V::splat(0.0); N]; R];
            for b in (0..dim).step_by(block) {
                let mut scales = [V::splat(0.0); N];
                for n in 0..N {
                    scales[n] = page.key_scale::<V, E>(b, first + n * V::LANES);
                }
                for d in b..b + block {
                    for line in (0..fetched).step_by(64) {
                        V::prefetch(next.wrapping_add(line));
                    }
                    next = next.wrapping_add(fetched);
                    let mut keys = scales;
                    for n in 0..N {
                        keys[n] = E::load(page.keys, d * PAGE_TOKENS + first + n * V::LANES, scales[n]);
                    }
                    for r in 0..R {
                        let q = V::splat(*s.q.add((row + r) * dim + d));
                        for n in 0..N {
                            acc[r][n] = keys[n].fma(q, acc[r][n]);
                        }
                    }
                }
            }
            for r in 0..R {
                for n in 0..N {
                    acc[r][n].store(s.scores.add((row + r) * PAGE_TOKENS + first + n * V::LANES));
                }
            }
        }
    }
}

/// Adds the values of some positions, weighted, to `N` vectors of `R` rows' sums, from `column` on. Vectors of 8-bit values
/// must lie in one block.
#[inline(always)]
pub(super) unsafe fn weigh<V: Simd, E: Element, const R: usize, const N: usize>(
    s: &Scratch,
    out: *mut f32,
    page: &Page,
    row: usize,
    column: usize,
    positions: Range<usize>,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let dim = s.dim;
        let out = out.add(row * dim + column);
        let mut acc = [[V::splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = V::load(out.add(r * dim + n * V::LANES));
            }
        }
        for t in positions {
            let scale = page.value_scale::<V, E>(t, column, dim);
            let mut values = [scale; N];
            for n in 0..N {
                values[n] = E::load(page.values, t * dim + column + n * V::LANES, scale);
            }
            for r in 0..R {
                let p = V::splat(*s.scores.add((row + r) * PAGE_TOKENS + t));
                for n in 0..N {
                    acc[r][n] = values[n].fma(p, acc[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(out.add(r * dim + n * V::LANES));
            }
        }
    }
}
