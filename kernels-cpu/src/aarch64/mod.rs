//! Kernels for AArch64.

mod float;
pub(crate) mod rows;
mod simd;

use crate::{Isa, pack::Layout, tile::TileKernel};

/// The tile kernel for a layout; `None` if the reference has to do it.
pub(crate) fn tile_kernel(isa: Isa, layout: Layout) -> Option<TileKernel> {
    if !matches!(isa, Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm) {
        return None;
    }
    Some(match layout {
        Layout::F16 => float::neon_f16,
        Layout::F32 => float::neon_f32,
        _ => return None,
    })
}
