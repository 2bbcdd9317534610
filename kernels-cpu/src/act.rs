//! One row of quantized activations, as the integer kernels read it.

use crate::{formats::q8a, tile::Tile};

/// One token's `q8a` row.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    quants: *const u8,
    /// Scale of each block of 32 columns.
    pub(crate) scales: *const f32,
    /// Sums of the quants of each block.
    pub(crate) sums: *const q8a::Sums,
}

impl Row {
    /// Row `t` of the tile's activations.
    ///
    /// # Safety
    /// The tile's activations are `q8a` rows, and there is a row `t`.
    #[inline(always)]
    pub(crate) unsafe fn of(tile: &Tile, t: usize) -> Self {
        // SAFETY: the caller says that the row exists; its parts lie where `q8a` says.
        unsafe {
            let quants = tile.x.add(t * tile.x_stride);
            let scales = quants.add(q8a::scales_offset(tile.cols)).cast();
            Self { quants, scales, sums: quants.add(q8a::sums_offset(tile.cols)).cast() }
        }
    }

    /// The 32 quants of block `b`.
    ///
    /// # Safety
    /// The row has the block.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) unsafe fn block(self, b: usize) -> *const i8 {
        // SAFETY: the caller says that the block exists.
        unsafe { self.quants.add(b * 32).cast() }
    }

    /// Columns `4j .. 4j + 4` of block `b`, for broadcasting.
    ///
    /// # Safety
    /// The row has the block, and `j < 8`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn four(self, b: usize, j: usize) -> i32 {
        // SAFETY: the caller says that the columns exist.
        unsafe { self.quants.add(b * 32 + j * 4).cast::<i32>().read_unaligned() }
    }

    /// Fetches the line with block `b` of the row `rows` rows further on, which the next round of a loop over rows reads.
    ///
    /// # Safety
    /// None: prefetching may name any address.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn prefetch_later(self, tile: &Tile, rows: usize, b: usize) {
        let ahead = self.quants.wrapping_add(rows * tile.x_stride + b * 32);
        // SAFETY: the instruction is part of the baseline and cannot fault.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ahead.cast()) };
    }
}
