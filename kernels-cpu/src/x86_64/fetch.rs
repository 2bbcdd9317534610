//! Fetching weights ahead of their use.
//!
//! A matrix is one stream of memory. Where few instructions take a line, processors keep ahead of it by themselves, if loads come
//! in the order of memory; then instructions that fetch only take the place of loads (PERFORMANCE.md, "One stream"). Where a line
//! serves several tokens, or two groups of rows are read side by side and the streams jump from tile to tile, they are needed.

use crate::{fetch::fetch, pack::Packed};
use std::sync::atomic::{Ordering, compiler_fence};

/// Bytes between what is read and what is fetched: enough for the latency of memory.
const AHEAD: usize = 12 << 10;

/// Fetches, into the second-level cache, what a kernel needs some time after block `b` of the `blocks` blocks of the group at
/// `group`. `next` is the group that it reads after this one.
///
/// Fetching into the first-level cache was slower (PERFORMANCE.md).
#[inline(always)]
pub(super) fn fetch_ahead<F: Packed>(mut group: *const u8, next: *const u8, blocks: usize, b: usize) {
    let bytes = const { F::BLOCKS.bytes() / F::BLOCKS.scales.blocks() };
    let mut b = b + (AHEAD / bytes).min(blocks);
    if b >= blocks {
        b -= blocks;
        group = next;
    }
    fetch(group.wrapping_add(b * bytes), bytes);
}

/// Keeps loads before it before those after it, which today's compiler would mix; only speed depends on it.
#[inline(always)]
pub(super) fn in_order() {
    compiler_fence(Ordering::SeqCst);
}
