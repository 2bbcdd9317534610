//! Kernels for AArch64.

mod float;
pub(crate) mod rows;
mod simd;

use crate::{Isa, tile::TileKernel};
use rustai_abi::DType;

/// The tile kernel for a type; `None` if the reference has to do it.
pub(crate) fn tile_kernel(isa: Isa, dtype: DType) -> Option<TileKernel> {
    if !matches!(isa, Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm) {
        return None;
    }
    Some(match dtype {
        DType::F16 => float::neon_f16,
        DType::BF16 => float::neon_bf16,
        DType::F32 => float::neon_f32,
        _ => return None,
    })
}
