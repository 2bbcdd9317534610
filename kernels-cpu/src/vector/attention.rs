//! Causal attention over the paged cache with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867;
//! Dao et al. 2022, arXiv 2205.14135): pages are visited once, no score matrix is kept.
//!
//! A page keeps keys transposed (`[head_dim][PAGE_TOKENS]`), so scores of 32 positions grow side by side in registers
//! from broadcast query values, and no horizontal sum is needed; values are kept as they are (`[PAGE_TOKENS][head_dim]`).
//! A value is multiplied only for rows that see its position, since one that is not finite would spoil the others even
//! with a weight of 0.
//!
//! SAFETY of the whole file: functions are called through [`attention`], which is handed [`add_page`], and [`append`] only,
//! whose callers promise what [`AttentionTask`] and [`LayerCache`] say.

mod tiles;

pub(crate) use tiles::{Element, F16, F32, Page, Q8};

use crate::{
    attention::{
        AttentionTask, CHUNK, SUM_LANES, Work,
        cache::{BLOCK, KvElement, LayerCache, Place},
    },
    simd::Simd,
};
use rustai_abi::PAGE_TOKENS;
use std::ops::Range;
use tiles::{scores, weigh};

/// A task's memory, but for the states.
pub(crate) struct Scratch {
    rows: usize,
    dim: usize,
    /// Scaled queries.
    q: *mut f32,
    scores: *mut f32,
    /// A page as `f32`.
    page: *mut f32,
    /// Its scales.
    scales: *mut f32,
    /// Room for two states.
    states: [*mut f32; 2],
}

/// A softmax under way: for each row the sum of weighted values, partial sums of weights, and what is taken from the scores:
/// the maximum so far, or a little less.
#[derive(Clone, Copy)]
pub(crate) struct State {
    out: *mut f32,
    sum: *mut f32,
    max: *mut f32,
}

/// So far a score may exceed what is taken from it before the state is rescaled: rarely after the first page then, and weights
/// and sums stay far from overflow all the same.
const SLACK: f32 = 8.0;

impl Scratch {
    #[inline(always)]
    unsafe fn new(task: &AttentionTask) -> Self {
        let (dim, rows) = (task.head_dim, task.tokens * task.group);
        let state = AttentionTask::state_values(rows, dim);
        // SAFETY: see the head of the file; the parts are those of `AttentionTask::scratch_values`.
        unsafe {
            let q = task.scratch;
            let scores = q.add(rows * dim);
            let states = scores.add(rows * PAGE_TOKENS);
            let page = states.add(2 * state);
            let scales = page.add(2 * PAGE_TOKENS * dim);
            Self { rows, dim, q, scores, page, scales, states: [states, states.add(state)] }
        }
    }

    #[inline(always)]
    unsafe fn state(&self, at: *mut f32) -> State {
        // SAFETY: see the head of the file; the parts are those of `AttentionTask::state_values`.
        unsafe {
            let sum = at.add(self.rows * self.dim);
            State { out: at, sum, max: sum.add(self.rows * SUM_LANES) }
        }
    }

    /// Takes the queries, times the factor on the scores.
    #[inline(always)]
    unsafe fn scale_queries<V: Simd>(&self, task: &AttentionTask) {
        // SAFETY: see the head of the file.
        unsafe {
            for row in 0..self.rows {
                let from = task.q.add(row / task.group * task.stride + row % task.group * self.dim);
                for d in (0..self.dim).step_by(V::LANES) {
                    V::load(from.add(d)).mul(V::splat(task.scale)).store(self.q.add(row * self.dim + d));
                }
            }
        }
    }
}

/// Turns one row's scores into weights, for the positions that it sees of the page, and rescales what was gathered so far.
#[inline(always)]
unsafe fn soften<V: Simd>(s: &Scratch, state: State, row: usize, seen: Range<usize>) {
    // SAFETY: see the head of the file.
    unsafe {
        let scores = s.scores.add(row * PAGE_TOKENS);
        for t in (0..seen.start).chain(seen.end..PAGE_TOKENS) {
            *scores.add(t) = f32::NEG_INFINITY;
        }
        let mut max = V::load(scores);
        for t in (V::LANES..PAGE_TOKENS).step_by(V::LANES) {
            max = max.max(V::load(scores.add(t)));
        }
        let sum = state.sum.add(row * SUM_LANES);
        let old = *state.max.add(row);
        if max.exceeds(V::splat(old + SLACK)) {
            let new = max.largest();
            *state.max.add(row) = new;
            if old > f32::NEG_INFINITY {
                let factor = V::splat(old - new).exp();
                V::load(sum).mul(factor).store(sum);
                for d in (0..s.dim).step_by(V::LANES) {
                    let at = state.out.add(row * s.dim + d);
                    V::load(at).mul(factor).store(at);
                }
            }
        }
        let max = V::splat(*state.max.add(row));
        for t in (0..PAGE_TOKENS).step_by(V::LANES) {
            V::load(scores.add(t)).sub(max).exp().store(scores.add(t));
        }
        for t in (0..seen.start).chain(seen.end..PAGE_TOKENS) {
            *scores.add(t) = 0.0;
        }
        let mut weights = V::load(sum);
        for t in (0..PAGE_TOKENS).step_by(V::LANES) {
            weights = weights.add(V::load(scores.add(t)));
        }
        weights.store(sum);
    }
}

/// [`soften`] for all rows.
#[inline(always)]
unsafe fn soften_all<V: Simd>(s: &Scratch, state: State, whole: bool, seen: impl Fn(usize) -> Range<usize>) {
    for row in 0..s.rows {
        let seen = if whole { 0..PAGE_TOKENS } else { seen(row) };
        if !seen.is_empty() {
            // SAFETY: see the head of the file.
            unsafe { soften::<V>(s, state, row, seen) };
        }
    }
}

/// Calls `$call` for tiles of rows, as many rows at a time as the list allows.
macro_rules! in_steps {
    ($rows:expr, $row:ident, [$($step:literal x $n:literal),+], $call:ident::<$vector:ty, $element:ty>$args:tt) => {
        let mut $row = 0;
        $(
            while $step <= <$element>::ROWS && $row + $step <= $rows {
                $call::<$vector, $element, $step, $n>$args;
                $row += $step;
            }
        )+
    };
}

/// Scores of all rows. AVX2 has 16 registers, the others 32; too few chains of multiply-adds would wait for each other.
#[inline(always)]
unsafe fn all_scores<V: Simd, E: Element>(s: &Scratch, page: &Page) {
    // SAFETY: see the head of the file.
    unsafe {
        match V::LANES {
            16 => {
                in_steps!(s.rows, row, [12 x 2, 6 x 2, 4 x 2, 3 x 2, 2 x 2, 1 x 2], scores::<V, E>(s, page, row));
            }
            8 => {
                in_steps!(s.rows, row, [6 x 2, 4 x 2, 3 x 2, 2 x 4, 1 x 4], scores::<V, E>(s, page, row));
            }
            _ => {
                in_steps!(s.rows, row, [6 x 4, 4 x 4, 3 x 4, 2 x 4, 1 x 8], scores::<V, E>(s, page, row));
            }
        }
    }
}

/// Adds up the weighted values of the positions `seen` for `R` rows from `row` on.
#[inline(always)]
unsafe fn weigh_rows<V: Simd, E: Element, const R: usize>(
    s: &Scratch,
    state: State,
    page: &Page,
    row: usize,
    seen: Range<usize>,
) {
    // Sums that leave registers for a value and a weight.
    let most = if V::LANES == 8 { 12 } else { 24 };
    let mut column = 0;
    macro_rules! columns {
        ($($vectors:literal)+) => {
            $(
                // Heads are a multiple of 16 long, and vectors of one block of 8-bit values share a scale.
                if R * $vectors <= most
                    && ($vectors > 1 || V::LANES == 16)
                    && ($vectors * V::LANES <= BLOCK || !E::SCALED)
                {
                    while column + $vectors * V::LANES <= s.dim {
                        // SAFETY: see the head of the file.
                        unsafe { weigh::<V, E, R, $vectors>(s, state.out, page, row, column, seen.clone()) };
                        column += $vectors * V::LANES;
                    }
                }
            )+
        };
    }
    columns!(8 4 2 1);
}

/// Adds up the weighted values of a page for all rows. If not all rows see the `whole` page, they take what they see one by
/// one.
#[inline(always)]
unsafe fn all_values<V: Simd, E: Element>(
    s: &Scratch,
    state: State,
    page: &Page,
    whole: bool,
    seen: impl Fn(usize) -> Range<usize>,
) {
    let mut row = 0;
    macro_rules! rows {
        ($($step:literal)+) => {
            $(
                while whole && $step <= E::ROWS && row + $step <= s.rows {
                    // SAFETY: see the head of the file.
                    unsafe { weigh_rows::<V, E, $step>(s, state, page, row, 0..PAGE_TOKENS) };
                    row += $step;
                }
            )+
        };
    }
    if V::LANES == 8 {
        rows!(6 4 3 2);
    } else {
        rows!(8 4 2);
    }
    while row < s.rows {
        // SAFETY: see the head of the file.
        unsafe { weigh_rows::<V, E, 1>(s, state, page, row, if whole { 0..PAGE_TOKENS } else { seen(row) }) };
        row += 1;
    }
}

/// Adds the page whose first position is `base` to the state of all rows.
///
/// Each instruction set has it as a function of its own for every way in which entries are stored: it holds all tiles, and
/// where it was inlined, six times for each way, compiling that took longer than all other kernels together.
#[inline(always)]
pub(crate) unsafe fn add_page<V: Simd, E: Element>(
    task: &AttentionTask,
    s: &Scratch,
    state: State,
    page: &Page,
    base: usize,
) {
    let (first, last) = (task.seen(0), task.seen(task.tokens - 1));
    let whole = last.start <= base && first.end >= base + PAGE_TOKENS;
    let seen = |row: usize| {
        let seen = task.seen(row / task.group);
        let clamp = |position: usize| position.clamp(base, base + PAGE_TOKENS) - base;
        clamp(seen.start)..clamp(seen.end)
    };
    // SAFETY: see the head of the file.
    unsafe {
        all_scores::<V, E>(s, page);
        soften_all::<V>(s, state, whole, seen);
        all_values::<V, E>(s, state, page, whole, seen);
    }
}

/// [`add_page`] for one instruction set and element.
pub(crate) type AddPage = unsafe fn(task: &AttentionTask, s: &Scratch, state: State, page: &Page, base: usize);

/// [`add_page`] for pages as they are stored, and for those that were made `f32`.
#[derive(Clone, Copy)]
pub(crate) struct AddPages {
    pub(crate) stored: AddPage,
    pub(crate) wide: AddPage,
}

/// The softmax of all rows over chunk `chunk` alone.
#[inline(always)]
unsafe fn chunk<V: Simd, E: Element>(task: &AttentionTask, s: &Scratch, state: State, chunk: usize, add: AddPages) {
    // SAFETY: see the head of the file.
    unsafe {
        for row in 0..s.rows {
            for d in (0..s.dim).step_by(V::LANES) {
                V::splat(0.0).store(state.out.add(row * s.dim + d));
            }
            V::splat(0.0).store(state.sum.add(row * SUM_LANES));
            *state.max.add(row) = f32::NEG_INFINITY;
        }
        let (first, last) = (task.seen(0), task.seen(task.tokens - 1));
        let positions = first.start.max(chunk * CHUNK)..last.end.min((chunk + 1) * CHUNK);
        for index in positions.start / PAGE_TOKENS..positions.end.div_ceil(PAGE_TOKENS) {
            let base = index * PAGE_TOKENS;
            let (keys, values) = task.cache.head(task.pages[index], task.head);
            // The next page comes from memory while this one is computed.
            let next = task.pages[if (index + 1) * PAGE_TOKENS < last.end { index + 1 } else { index }];
            let (next, _) = task.cache.head(next, task.head);
            let page = Page::new::<V, E>(keys, values, next, s.dim, s.scales);
            if s.rows <= E::ROWS {
                (add.stored)(task, s, state, &page, base);
            } else {
                (add.wide)(task, s, state, &page.expand::<V, E>(s.dim, s.page), base);
            }
        }
    }
}

/// Adds the softmax over a later chunk to `state`.
#[inline(always)]
unsafe fn merge<V: Simd>(task: &AttentionTask, s: &Scratch, state: State, later: State, chunk: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        for row in 0..s.rows {
            let seen = task.seen(row / task.group);
            if seen.end <= chunk * CHUNK || seen.start >= (chunk + 1) * CHUNK {
                continue;
            }
            let (a, b) = (*state.max.add(row), *later.max.add(row));
            let max = a.max(b);
            let (a, b) = (V::splat(a - max).exp(), V::splat(b - max).exp());
            *state.max.add(row) = max;
            let (at, of) = (state.sum.add(row * SUM_LANES), later.sum.add(row * SUM_LANES));
            V::load(of).fma(b, V::load(at).mul(a)).store(at);
            for d in (0..s.dim).step_by(V::LANES) {
                let (at, of) = (state.out.add(row * s.dim + d), later.out.add(row * s.dim + d));
                V::load(of).fma(b, V::load(at).mul(a)).store(at);
            }
        }
    }
}

/// Divides by the sums of weights and hands the result over.
#[inline(always)]
unsafe fn finish<V: Simd>(task: &AttentionTask, s: &Scratch, state: State) {
    // SAFETY: see the head of the file.
    unsafe {
        for row in 0..s.rows {
            let to = task.out.add(row / task.group * task.stride + row % task.group * s.dim);
            let inverse = V::splat(1.0 / V::load(state.sum.add(row * SUM_LANES)).sum());
            for d in (0..s.dim).step_by(V::LANES) {
                V::load(state.out.add(row * s.dim + d)).mul(inverse).store(to.add(d));
            }
        }
    }
}

/// One task, or a part of it.
#[inline(always)]
pub(crate) unsafe fn attention<V: Simd, E: Element>(task: &AttentionTask, work: Work, add: AddPages) {
    // SAFETY: see the head of the file.
    unsafe {
        let s = Scratch::new(task);
        let chunks = task.chunks();
        match work {
            Work::Whole => {
                s.scale_queries::<V>(task);
                let [state, later] = [s.state(s.states[0]), s.state(s.states[1])];
                chunk::<V, E>(task, &s, state, chunks.start, add);
                for index in chunks.start + 1..chunks.end {
                    chunk::<V, E>(task, &s, later, index, add);
                    merge::<V>(task, &s, state, later, index);
                }
                finish::<V>(task, &s, state);
            }
            Work::Chunk { index, state } => {
                s.scale_queries::<V>(task);
                chunk::<V, E>(task, &s, s.state(state), index, add);
            }
            Work::Merge { states } => {
                let at =
                    |index| s.state(states.add((index - chunks.start) * AttentionTask::state_values(s.rows, s.dim)));
                let state = at(chunks.start);
                for index in chunks.start + 1..chunks.end {
                    merge::<V>(task, &s, state, at(index), index);
                }
                finish::<V>(task, &s, state);
            }
        }
    }
}

/// [`LayerCache::append`] for heads of whole vectors.
#[inline(always)]
pub(crate) unsafe fn append<V: Simd>(cache: &LayerCache, place: Place, key: &[f32], value: &[f32]) {
    // SAFETY: see the head of the file.
    unsafe {
        match cache.element {
            KvElement::F16 => {
                let (keys, values) = cache.head(place.page, place.head);
                let (keys, values) = (keys.cast::<u16>(), values.cast::<u16>());
                for d in (0..cache.head_dim).step_by(V::LANES) {
                    let mut halves = [0u16; 16];
                    V::load(key.as_ptr().add(d)).store_f16(halves.as_mut_ptr());
                    for (i, half) in halves[..V::LANES].iter().enumerate() {
                        keys.add((d + i) * PAGE_TOKENS + place.slot).write(*half);
                    }
                    V::load(value.as_ptr().add(d)).store_f16(values.add(place.slot * cache.head_dim + d));
                }
            }
            KvElement::Q8_0 => cache.append_q8_0(place, key, value),
            KvElement::F32 => cache.append(place, key, value),
        }
    }
}
