//! The unit of matrix multiplication: some groups of weight rows times tokens of a batch.
//!
//! A tile kernel leaves plain sums in a small scratch block, a row for each token; what happens to them then (bias,
//! residual, SwiGLU) is the same code for all formats and instruction sets, in `executor::run`.
//!
//! Every kernel adds up the blocks of a row in the order of its columns with the same operations, whatever the number
//! of tokens, threads or tiles, so a result never depends on how work was cut or batched.

use crate::pack::GROUP;

/// Rows of the smallest tile (the last one of a matrix may have one group only).
pub(crate) const TILE_ROWS: usize = 2 * GROUP;

/// Bytes of scratch that a tile kernel may use for expanded weights, or for what it prepares of activations.
pub(crate) const PANEL_BYTES: usize = 64 << 10;

/// Arguments of a tile kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// First group of packed rows; 64-byte aligned.
    pub(crate) group: *const u8,
    /// Bytes from one group to the next.
    pub(crate) stride: usize,
    /// Groups: 1 or 2, or any number for a kernel that takes strips (see `Matrix`).
    pub(crate) groups: usize,
    /// Columns of the matrix, which is the length of an activation row.
    pub(crate) cols: usize,
    /// Activations: rows of `q8a` blocks or of `f32`, as the layout wants.
    pub(crate) x: *const u8,
    /// Bytes from one activation row to the next.
    pub(crate) x_stride: usize,
    /// Activation rows, at least 1.
    pub(crate) tokens: usize,
    /// Result, a row of `groups * GROUP` values for each token; 64-byte aligned.
    pub(crate) out: *mut f32,
    /// Values from one row of the result to the next, a multiple of `GROUP`.
    pub(crate) out_stride: usize,
    /// Scratch of `PANEL_BYTES`; 64-byte aligned.
    pub(crate) panel: *mut u8,
    /// The matrix's bytes that are packed next, if weights are packed as they are used; a kernel may fetch them into the second-level
    /// cache meanwhile, from some way in, instead of weights to come. Only AVX-512 kernels of integer types do (see PERFORMANCE.md,
    /// "What did not pay").
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "other kernels do not fetch for packing"))]
    pub(crate) fetched: Option<*const u8>,
}

impl Tile {
    /// Where the results of group `group` with token `token` go.
    ///
    /// # Safety
    /// The tile has both.
    #[inline(always)]
    pub(crate) unsafe fn out(&self, token: usize, group: usize) -> *mut f32 {
        // SAFETY: the caller says that the place exists.
        unsafe { self.out.add(token * self.out_stride + group * GROUP) }
    }
}

/// A tile kernel.
///
/// # Safety
/// The processor has the kernel's features; all pointers are valid for what the fields say, and nobody else accesses
/// `out` or `panel` meanwhile.
pub(crate) type TileKernel = unsafe fn(&Tile);
