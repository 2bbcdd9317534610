//! Fetching weights ahead of their use.
//!
//! A group of rows is one stretch of memory: codes first, scales after them. Kernels read both side by side, two streams that
//! break off where the group ends. With rows of 2,048 columns that is every 18 KB, before the processor's own prefetchers
//! have caught up, so each block fetches the codes and scales of one that comes later, in the next group where this one ends.

use crate::{fetch::fetch, pack::Packed};

/// Bytes of codes between what is read and what is fetched: enough for the latency of memory.
const AHEAD: usize = 12 << 10;

/// Fetches, into the second-level cache, what a kernel needs some time after block `b` of the `blocks` blocks of the group at
/// `group`. `next` is the group that it reads after this one.
///
/// Fetching into the first-level cache was slower (PERFORMANCE.md).
#[inline(always)]
pub(super) fn fetch_ahead<F: Packed>(mut group: *const u8, next: *const u8, blocks: usize, b: usize) {
    let (codes, scales) = const { (F::BLOCKS.codes.registers() * 64, F::BLOCKS.scales.bytes(256) / 8) };
    let mut b = b + (AHEAD / codes).min(blocks);
    if b >= blocks {
        b -= blocks;
        group = next;
    }
    fetch(group.wrapping_add(b * codes), codes);
    fetch(group.wrapping_add(blocks * codes + b * scales), 1);
}
