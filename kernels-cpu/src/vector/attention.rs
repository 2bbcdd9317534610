//! Causal attention over the paged `f16` cache with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867;
//! Dao et al. 2022, arXiv 2205.14135): pages are visited once, no score matrix is kept.
//!
//! A page keeps keys transposed (`[head_dim][PAGE_TOKENS]`), so scores of 32 positions grow side by side in registers
//! from broadcast query values, and no horizontal sum is needed; values are kept as they are (`[PAGE_TOKENS][head_dim]`).
//!
//! SAFETY of the whole file: functions are called through [`attention`] only, whose caller promises what
//! [`AttentionTask`] says.

use crate::{attention::AttentionTask, simd::Simd};
use rustai_abi::PAGE_TOKENS;

/// Rows of the scratch: scaled queries, outputs, scores, and the running maximum and sum of each row.
struct Scratch {
    q: *mut f32,
    out: *mut f32,
    scores: *mut f32,
    max: *mut f32,
    sum: *mut f32,
}

/// Scores of `R` rows from `row` on against one page: `N` vectors of positions.
#[inline(always)]
unsafe fn scores<V: Simd, const R: usize, const N: usize>(s: &Scratch, row: usize, dim: usize, keys: *const u16) {
    // SAFETY: see the head of the file.
    unsafe {
        let mut acc = [[V::splat(0.0); N]; R];
        for d in 0..dim {
            let keys: [V; N] = std::array::from_fn(|n| V::load_f16(keys.add(d * PAGE_TOKENS + n * V::LANES)));
            for r in 0..R {
                let q = V::splat(*s.q.add((row + r) * dim + d));
                for n in 0..N {
                    acc[r][n] = keys[n].fma(q, acc[r][n]);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (n, acc) in acc.into_iter().enumerate() {
                acc.store(s.scores.add((row + r) * PAGE_TOKENS + n * V::LANES));
            }
        }
    }
}

/// Adds `count` positions' values, weighted, to `N` vectors of `R` rows' outputs.
#[inline(always)]
unsafe fn weigh<V: Simd, const R: usize, const N: usize>(
    s: &Scratch,
    row: usize,
    dim: usize,
    column: usize,
    values: *const u16,
    count: usize,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let out = |r: usize, n: usize| s.out.add((row + r) * dim + column + n * V::LANES);
        let mut acc: [[V; N]; R] = std::array::from_fn(|r| std::array::from_fn(|n| V::load(out(r, n))));
        for t in 0..count {
            let values: [V; N] = std::array::from_fn(|n| V::load_f16(values.add(t * dim + column + n * V::LANES)));
            for r in 0..R {
                let p = V::splat(*s.scores.add((row + r) * PAGE_TOKENS + t));
                for n in 0..N {
                    acc[r][n] = values[n].fma(p, acc[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(out(r, n));
            }
        }
    }
}

/// Turns one row's scores into weights, for the positions `from .. to` of the page, and rescales what was gathered so far.
#[inline(always)]
unsafe fn soften<V: Simd>(s: &Scratch, row: usize, dim: usize, from: usize, to: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let scores = s.scores.add(row * PAGE_TOKENS);
        for t in (0..from).chain(to..PAGE_TOKENS) {
            *scores.add(t) = f32::NEG_INFINITY;
        }
        let mut max = V::load(scores);
        for t in (V::LANES..PAGE_TOKENS).step_by(V::LANES) {
            max = max.max(V::load(scores.add(t)));
        }
        let (old, new) = (*s.max.add(row), max.largest());
        if new > old {
            *s.max.add(row) = new;
            if old > f32::NEG_INFINITY {
                let factor = V::splat((old - new).exp());
                *s.sum.add(row) *= (old - new).exp();
                for d in (0..dim).step_by(V::LANES) {
                    let at = s.out.add(row * dim + d);
                    V::load(at).mul(factor).store(at);
                }
            }
        }
        let max = V::splat(*s.max.add(row));
        for t in (0..PAGE_TOKENS).step_by(V::LANES) {
            V::load(scores.add(t)).sub(max).exp().store(scores.add(t));
        }
        for t in (0..from).chain(to..PAGE_TOKENS) {
            *scores.add(t) = 0.0;
        }
        let mut sum = V::splat(0.0);
        for t in (0..PAGE_TOKENS).step_by(V::LANES) {
            sum = sum.add(V::load(scores.add(t)));
        }
        *s.sum.add(row) += sum.sum();
    }
}

macro_rules! in_steps {
    ($rows:expr, $row:ident, [$($step:literal),+], $call:ident::<$vector:ty, R, $n:tt>$args:tt) => {
        let mut $row = 0;
        $(
            while $row + $step <= $rows {
                $call::<$vector, $step, $n>$args;
                $row += $step;
            }
        )+
    };
}

/// One task.
#[inline(always)]
pub(crate) unsafe fn attention<V: Simd>(task: &AttentionTask) {
    // SAFETY: see the head of the file.
    unsafe {
        let (dim, rows) = (task.head_dim, task.tokens * task.group);
        let s = {
            let q = task.scratch;
            let out = q.add(rows * dim);
            let scores = out.add(rows * dim);
            let max = scores.add(rows * PAGE_TOKENS);
            Scratch { q, out, scores, max, sum: max.add(rows) }
        };
        for row in 0..rows {
            let from = task.q.add(row / task.group * task.stride + row % task.group * dim);
            for d in (0..dim).step_by(V::LANES) {
                V::load(from.add(d)).mul(V::splat(task.scale)).store(s.q.add(row * dim + d));
                V::splat(0.0).store(s.out.add(row * dim + d));
            }
            *s.max.add(row) = f32::NEG_INFINITY;
            *s.sum.add(row) = 0.0;
        }
        let end = task.start + task.tokens;
        let first_page = task.first_seen(0) / PAGE_TOKENS;
        for page in first_page..end.div_ceil(PAGE_TOKENS) {
            let (keys, values) = task.page(page);
            let base = page * PAGE_TOKENS;
            // All positions of the page at once, and as many rows as there are registers for.
            match V::LANES {
                16 => {
                    in_steps!(rows, row, [6, 3, 2, 1], scores::<V, R, 2>(&s, row, dim, keys));
                }
                8 => {
                    in_steps!(rows, row, [2, 1], scores::<V, R, 4>(&s, row, dim, keys));
                }
                _ => {
                    in_steps!(rows, row, [2, 1], scores::<V, R, 8>(&s, row, dim, keys));
                }
            }
            for row in 0..rows {
                let token = row / task.group;
                let to = (task.start + token + 1).clamp(base, base + PAGE_TOKENS) - base;
                let from = task.first_seen(token).clamp(base, base + PAGE_TOKENS) - base;
                if from < to {
                    soften::<V>(&s, row, dim, from, to);
                } else {
                    std::slice::from_raw_parts_mut(s.scores.add(row * PAGE_TOKENS), PAGE_TOKENS).fill(0.0);
                }
            }
            let count = PAGE_TOKENS.min(end - base);
            let mut column = 0;
            while column + 4 * V::LANES <= dim {
                // AVX2 has 16 registers, the others 32.
                if V::LANES == 8 {
                    in_steps!(rows, row, [2, 1], weigh::<V, R, 4>(&s, row, dim, column, values, count));
                } else {
                    in_steps!(rows, row, [4, 3, 2, 1], weigh::<V, R, 4>(&s, row, dim, column, values, count));
                }
                column += 4 * V::LANES;
            }
            while column < dim {
                in_steps!(rows, row, [4, 2, 1], weigh::<V, R, 1>(&s, row, dim, column, values, count));
                column += V::LANES;
            }
        }
        for row in 0..rows {
            let to = task.out.add(row / task.group * task.stride + row % task.group * dim);
            let inverse = V::splat(1.0 / *s.sum.add(row));
            for d in (0..dim).step_by(V::LANES) {
                V::load(s.out.add(row * dim + d)).mul(inverse).store(to.add(d));
            }
        }
    }
}
