//! How the attention of a batch is cut into tasks.
//!
//! A task is a tile of consecutive rows of one sequence against one key/value head. Where that gives fewer tasks than keep
//! all threads busy (a long sequence that decodes has one tile, and perhaps three heads), each task is cut further into the
//! [chunks](crate::attention::CHUNK) of its positions; the thread that finishes the last of them merges them. Results are the
//! same bits either way, so they do not depend on the number of threads.

use super::{ExecutorError, reserved};
use crate::{
    KvShape,
    attention::{AttentionTask, CHUNK},
    memory::Region,
};
use rustai_abi::{Batch, PAGE_TOKENS};
use std::sync::atomic::{AtomicUsize, Ordering::*};

/// Queries (tokens times heads of a group) that one task handles, if a group is no larger.
const QUERY_ROWS: usize = 48;

/// Up to so many tasks per thread are cut into chunks.
const TASKS_PER_THREAD: usize = 3;

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueryTile {
    pub(super) sequence: u32,
    /// First row in the batch.
    pub(super) first: u32,
    pub(super) len: u32,
    /// Chunks of positions up to its last row's.
    chunks: u32,
    /// Chunks, and chunks times rows, of the tiles before it.
    chunks_before: usize,
    rows_before: usize,
}

/// A task: a tile, a key/value head, and a chunk of positions if the tile is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) tile: QueryTile,
    pub(super) head: usize,
    pub(super) chunk: Option<usize>,
    /// Number of the tile and head together.
    whole: usize,
}

/// The tiles of the batch, and memory for the states of chunks.
pub(super) struct Queries {
    tiles: Vec<QueryTile>,
    tile_tokens: usize,
    kv_heads: usize,
    max_group: usize,
    head_dim: usize,
    /// Whether tasks are cut into chunks.
    cut: bool,
    states: Region,
    /// Chunks times rows that `states` has room for.
    state_rows: usize,
    /// For each tile and head how many of its chunks are finished; as long as there are tasks that may be cut.
    finished: Vec<AtomicUsize>,
}

impl Queries {
    /// For batches of up to `max_tokens` rows in up to `max_sequences` sequences that decode. `in_parts` says whether the
    /// kernel computes parts.
    pub(super) fn new(
        kv: Option<KvShape>,
        max_group: usize,
        max_tokens: usize,
        max_sequences: usize,
        threads: usize,
        in_parts: bool,
    ) -> Result<Self, ExecutorError> {
        let (kv_heads, head_dim, pages) = kv.map_or((0, 0, 0), |kv| (kv.kv_heads, kv.head_dim, kv.pages));
        // Enough for as many sequences of one row each as the cache holds.
        let state_rows =
            if in_parts && threads > 1 { pages.div_ceil(CHUNK / PAGE_TOKENS).saturating_add(max_sequences) } else { 0 };
        let most_cut = if state_rows > 0 {
            TASKS_PER_THREAD.saturating_mul(threads).min(max_tokens.saturating_mul(kv_heads))
        } else {
            0
        };
        let state = AttentionTask::state_values(max_group, head_dim);
        let bytes = state.saturating_mul(kv_heads).saturating_mul(state_rows).saturating_mul(size_of::<f32>());
        Ok(Self {
            tiles: reserved(max_tokens)?,
            tile_tokens: Self::tile_tokens(max_group),
            kv_heads,
            max_group,
            head_dim,
            cut: false,
            states: Region::new("partial results of attention", bytes)?,
            state_rows,
            finished: (0..most_cut).map(|_| AtomicUsize::new(0)).collect(),
        })
    }

    /// Most tokens of a tile.
    pub(super) fn tile_tokens(max_group: usize) -> usize {
        (QUERY_ROWS / max_group.max(1)).max(1)
    }

    /// Cuts a batch that has been checked.
    pub(super) fn cut(&mut self, batch: &Batch<'_>) {
        self.tiles.clear();
        let (mut row, mut chunks_before, mut rows_before) = (0, 0, 0);
        for (sequence, of) in batch.sequences.iter().enumerate() {
            for start in (0..of.len).step_by(self.tile_tokens) {
                let len = (self.tile_tokens as u32).min(of.len - start);
                let chunks = (of.start + start + len).div_ceil(CHUNK as u32);
                let first = row + start;
                self.tiles.push(QueryTile {
                    sequence: sequence as u32,
                    first,
                    len,
                    chunks,
                    chunks_before,
                    rows_before,
                });
                chunks_before += chunks as usize;
                rows_before += chunks as usize * len as usize;
            }
            row += of.len;
        }
        let tasks = self.tiles.len() * self.kv_heads;
        self.cut = tasks <= self.finished.len() && chunks_before > self.tiles.len() && rows_before <= self.state_rows;
    }

    /// Tasks of the batch.
    pub(super) fn tasks(&self) -> usize {
        let per_head = match self.tiles.last() {
            Some(last) if self.cut => last.chunks_before + last.chunks as usize,
            _ => self.tiles.len(),
        };
        per_head * self.kv_heads
    }

    /// Task `task` of [`tasks`](Self::tasks). Late tiles see most positions: they come first, so that threads finish
    /// together.
    pub(super) fn piece(&self, task: usize) -> Piece {
        let (part, head) = (task / self.kv_heads, task % self.kv_heads);
        let (index, chunk) = if self.cut {
            let index = self.tiles.partition_point(|tile| tile.chunks_before <= part) - 1;
            (index, Some(part - self.tiles[index].chunks_before))
        } else {
            (self.tiles.len() - 1 - part, None)
        };
        Piece { tile: self.tiles[index], head, chunk, whole: index * self.kv_heads + head }
    }

    /// Where the states of a cut tile and head lie, chunk after chunk from position 0 on.
    pub(super) fn states(&self, piece: &Piece) -> *mut f32 {
        let state = AttentionTask::state_values(self.max_group, self.head_dim);
        let Piece { tile, head, .. } = piece;
        let rows = tile.rows_before * self.kv_heads + head * (tile.chunks * tile.len) as usize;
        self.states.as_ptr().cast::<f32>().wrapping_add(rows * state)
    }

    /// Notes that one of `chunks` chunks of the tile and head is finished; true for the last. What other threads wrote for the
    /// others is visible then.
    pub(super) fn finish(&self, piece: &Piece, chunks: usize) -> bool {
        let finished = &self.finished[piece.whole];
        let last = finished.fetch_add(1, AcqRel) + 1 == chunks;
        if last {
            // For the next call, which comes after a barrier.
            finished.store(0, Relaxed);
        }
        last
    }
}
