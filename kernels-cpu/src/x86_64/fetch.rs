//! Fetching weights ahead of their use.
//!
//! A group of rows is one stretch of memory: codes first, scales after them. Kernels read both side by side, two streams that
//! break off where the group ends. With rows of 2,048 columns that is every 18 KB, before the processor's own prefetchers
//! have caught up, so each block fetches the codes and scales of one that comes later, in the next group where this one ends.

use crate::pack::Packed;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Bytes of codes between what is read and what is fetched: enough for the latency of memory.
const AHEAD: usize = 12 << 10;

/// Fetches, into the second-level cache, what a kernel needs some time after block `b` of the `blocks` blocks of the group at
/// `group`. `next` is the group that it reads after this one.
///
/// Fetching into the first-level cache was slower (PERFORMANCE.md).
#[inline(always)]
pub(super) unsafe fn fetch_ahead<F: Packed>(mut group: *const u8, next: *const u8, blocks: usize, b: usize) {
    let (codes, scales) = const { (F::BLOCKS.codes.registers() * 64, F::BLOCKS.scales.bytes(256) / 8) };
    let mut b = b + (AHEAD / codes).min(blocks);
    if b >= blocks {
        b -= blocks;
        group = next;
    }
    // SAFETY: the instruction is part of the baseline and cannot fault, whatever the address.
    unsafe {
        for line in 0..const { F::BLOCKS.codes.registers() } {
            _mm_prefetch::<_MM_HINT_T1>(group.wrapping_add(b * codes + line * 64).cast());
        }
        _mm_prefetch::<_MM_HINT_T1>(group.wrapping_add(blocks * codes + b * scales).cast());
    }
}
