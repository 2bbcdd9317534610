//! Kernels for AArch64.
#![expect(
    clippy::needless_range_loop,
    reason = "arrays here are registers, indexed by row and token as in the formulas"
)]

mod dot;
mod expand;
mod float;
mod int;
pub(crate) mod rows;
mod simd;

use crate::{Isa, tile::TileKernel};
use rustai_abi::DType;

/// The tile kernel for a type; `None` if the reference has to do it.
pub(crate) fn tile_kernel(isa: Isa, dtype: DType) -> Option<TileKernel> {
    let integer = match isa {
        Isa::Neon => int::neon::kernel,
        Isa::NeonDotprod => int::dotprod::kernel,
        Isa::NeonI8mm => int::i8mm::kernel,
        _ => return None,
    };
    Some(match dtype {
        DType::F16 => float::neon_f16,
        DType::BF16 => float::neon_bf16,
        DType::F32 => float::neon_f32,
        _ => return integer(dtype),
    })
}
