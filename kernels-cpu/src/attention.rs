//! Attention over the paged key/value cache: what a task is, how it can be cut into parts, and the scalar version of it.
//!
//! # Chunks
//! Positions are taken in chunks of [`CHUNK`], counted from position 0. The softmax of a chunk is computed as if there were
//! no other; chunks are then merged in their order. So the result of a row is the same bits whether one task goes through
//! all chunks or several tasks compute one each, and whether its neighbours in the tile are computed with it or not.

pub(crate) mod cache;

use cache::{LayerCache, Place};
use rustai_abi::PAGE_TOKENS;
use std::ops::Range;

/// Positions that are computed as if there were no others. A multiple of `PAGE_TOKENS`; so many that merging costs next to
/// nothing, and so few that a long sequence gives work to many threads.
pub(crate) const CHUNK: usize = 256;

/// Partial sums of a row's weights: as many as the widest vector has values.
pub(crate) const SUM_LANES: usize = 16;

/// Some consecutive tokens of one sequence against one key/value head and the query heads that share it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionTask<'a> {
    /// First token's queries of the first query head of the group.
    pub(crate) q: *const f32,
    /// Where the result goes, laid out as `q`.
    pub(crate) out: *mut f32,
    /// Values from one token to the next in `q` and `out`.
    pub(crate) stride: usize,
    /// Tokens.
    pub(crate) tokens: usize,
    /// Query heads that share the key/value head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// Position of the first token.
    pub(crate) start: usize,
    pub(crate) scale: f32,
    /// Last so many positions are seen.
    pub(crate) window: usize,
    pub(crate) cache: LayerCache,
    /// The key/value head.
    pub(crate) head: usize,
    /// Block table of the sequence.
    pub(crate) pages: &'a [u32],
    /// [`AttentionTask::scratch_values`] values for this task alone.
    pub(crate) scratch: *mut f32,
}

/// Which part of a task is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// All of it.
    Whole,
    /// The softmax over one of the task's [`chunks`](AttentionTask::chunks) alone.
    Chunk {
        index: usize,
        /// Room for [`AttentionTask::state_values`].
        state: *mut f32,
    },
    /// The result from the states of all chunks, which lie one behind the other.
    Merge { states: *mut f32 },
}

impl AttentionTask<'_> {
    /// Scratch for `rows` = tokens times group; it saturates. Queries, scores, two states, an expanded page and its scales.
    pub(crate) const fn scratch_values(rows: usize, head_dim: usize) -> usize {
        let row = head_dim.saturating_add(PAGE_TOKENS);
        let page = head_dim.saturating_mul(2 * PAGE_TOKENS + 2);
        row.saturating_mul(rows)
            .saturating_add(Self::state_values(rows, head_dim).saturating_mul(2))
            .saturating_add(page)
    }

    /// Values of the state of a softmax of `rows` rows: sums of weighted values, sums of weights, and maxima; they saturate.
    pub(crate) const fn state_values(rows: usize, head_dim: usize) -> usize {
        head_dim.saturating_add(SUM_LANES + 1).saturating_mul(rows)
    }

    /// Positions that token `token` of the task sees.
    pub(crate) const fn seen(&self, token: usize) -> Range<usize> {
        let end = self.start + token + 1;
        end.saturating_sub(self.window)..end
    }

    /// Chunks that any token of the task sees.
    pub(crate) const fn chunks(&self) -> Range<usize> {
        self.seen(0).start / CHUNK..self.seen(self.tokens - 1).end.div_ceil(CHUNK)
    }
}

/// The scalar version, for any element: gathers what each token sees and applies [`crate::reference::attention`]. Always
/// computes the whole task.
///
/// # Safety
/// All pointers of the task are valid for what its fields say; nobody else writes them meanwhile.
pub(crate) unsafe fn reference(task: &AttentionTask, _: Work) {
    let dim = task.head_dim;
    for token in 0..task.tokens {
        let seen = task.seen(token);
        let (mut keys, mut values) = (vec![0.0; seen.len() * dim], vec![0.0; seen.len() * dim]);
        for ((key, value), position) in keys.chunks_exact_mut(dim).zip(values.chunks_exact_mut(dim)).zip(seen) {
            let page = task.pages[position / PAGE_TOKENS];
            // SAFETY: the block table covers all positions up to the token's own.
            unsafe { task.cache.read(Place { page, slot: position % PAGE_TOKENS, head: task.head }, key, value) };
        }
        let keys: Vec<&[f32]> = keys.chunks_exact(dim).collect();
        let values: Vec<&[f32]> = values.chunks_exact(dim).collect();
        for head in 0..task.group {
            let at = token * task.stride + head * dim;
            // SAFETY: the task's queries and results are `dim` values per head; this task alone uses them.
            let (q, out) = unsafe {
                (
                    std::slice::from_raw_parts(task.q.add(at), dim).to_vec(),
                    std::slice::from_raw_parts_mut(task.out.add(at), dim),
                )
            };
            crate::reference::attention(&q, &keys, &values, task.scale, out);
        }
    }
}
